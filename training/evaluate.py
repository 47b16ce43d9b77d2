"""What the embedded model gets right and wrong, asked through a server as its users ask.

    python -m training.evaluate CORPUS [--markdown FILE]

Voices, one whole synthesizer, rates and noises are ones the training has not heard.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moshi_ctl import EndWord, Step, Word, listen
from moshi_ctl.demo.server import Server, serving
from moshi_ctl.protocol import FRAME_RATE_HZ
from training import noise, streams
from training.corpus import Corpus
from training.speech import SAMPLE_RATE_HZ, Samples, Utterance
from training.speech import Word as SpokenWord
from training.vocabulary import WORDS

_SEED = 99
_LANES = 8
_SILENCE_S = 1.5
_PAUSE_HEAD = 2
_NOISE_MINUTES = 10

# What the training has not heard, and the part of the corpus that has it.
_VOICES = {
    "espeak-ng, other voices": "espeak_held_out",
    "SVOX Pico, American": "pico_us",
    "SVOX Pico, British": "pico_gb",
}


@dataclass(frozen=True)
class Heard:
    """What came back for one recording."""

    words: tuple[Word, ...]
    pauses: tuple[float, ...]
    """The pause head's probability in each step."""


@dataclass
class Score:
    """Of one condition."""

    spoken: int = 0
    errors: int = 0
    start_errors_s: list[float] = field(default_factory=list)
    end_errors_s: list[float] = field(default_factory=list)
    pauses_fired: int = 0
    pauses_early: int = 0
    recordings: int = 0

    @property
    def word_error_rate(self) -> float:
        """Substitutions, deletions and insertions over the words spoken."""
        return self.errors / max(1, self.spoken)


def aligned(spoken: Sequence[str], heard: Sequence[str]) -> tuple[int, list[tuple[int, int]]]:
    """The edit distance (Levenshtein), and the pairs of indices of words that are the same."""
    table = np.zeros((len(spoken) + 1, len(heard) + 1), int)
    table[:, 0], table[0] = np.arange(len(spoken) + 1), np.arange(len(heard) + 1)
    for i, word in enumerate(spoken, 1):
        for j, other in enumerate(heard, 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (word != other)
            )
    pairs, i, j = [], len(spoken), len(heard)
    while i and j:
        if table[i, j] == table[i - 1, j - 1] + (spoken[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            if spoken[i] == heard[j]:
                pairs.append((i, j))
        elif table[i, j] == table[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return int(table[-1, -1]), pairs


def score(utterances: Iterable[Utterance], heard: Iterable[Heard]) -> Score:
    """Counts what was right and wrong."""
    total = Score()
    for utterance, answer in zip(utterances, heard, strict=True):
        spoken = [word for word in utterance.words if word.text in WORDS]
        errors, pairs = aligned([w.text for w in spoken], [w.text.strip() for w in answer.words])
        total.spoken += len(spoken)
        total.errors += errors
        for i, j in pairs:
            total.start_errors_s.append(answer.words[j].start_time - spoken[i].start_s)
            stop_time = answer.words[j].stop_time
            if stop_time is not None:
                total.end_errors_s.append(stop_time - spoken[i].end_s)
        end = int((utterance.words[-1].end_s) * FRAME_RATE_HZ)
        begin = int((utterance.words[0].start_s) * FRAME_RATE_HZ) + 2
        total.recordings += 1
        total.pauses_fired += any(p > 0.5 for p in answer.pauses[end:])
        total.pauses_early += any(p > 0.5 for p in answer.pauses[begin:end])
    return total


async def transcribe(server: Server, samples: Samples) -> Heard:
    """One recording, as fast as the server takes it."""

    async def source() -> AsyncIterator[Samples]:
        yield samples.astype(np.float32)

    words: list[Word] = []
    pauses: list[float] = []
    async for event in listen(source(), server.url, key=server.key):
        match event:
            case Word():
                words.append(event)
            case EndWord(stop_time=stop_time):
                words[-1] = Word(words[-1].text, words[-1].start_time, stop_time)
            case Step(prs=prs):
                pauses.append(prs[_PAUSE_HEAD])
    return Heard(tuple(words), tuple(pauses))


async def transcribe_all(server: Server, recordings: Sequence[Samples]) -> list[Heard]:
    """All recordings, on all lanes at once."""
    places = asyncio.Semaphore(_LANES)

    async def one(samples: Samples) -> Heard:
        async with places:
            return await transcribe(server, samples)

    return await asyncio.gather(*map(one, recordings))


def quiet(utterance: Utterance) -> Samples:
    """The utterance, and then nothing."""
    return np.concatenate(
        [utterance.samples, np.zeros(int(_SILENCE_S * SAMPLE_RATE_HZ), np.float32)]
    )


def noisy(snr_db: float) -> Callable[[Utterance], Samples]:
    """The utterance in noise that is so many dB below it."""

    def recording(utterance: Utterance) -> Samples:
        clean = quiet(utterance)
        dice = np.random.default_rng([_SEED, len(clean)])
        kind = noise.NOISES[int(dice.integers(len(noise.NOISES)))]
        sound = noise.normalised(kind(len(clean), dice))
        active = clean[np.abs(clean) > 0.01]
        level = np.sqrt(np.mean(active**2)) * 10 ** (-snr_db / 20)
        mix = clean + level * sound
        return (mix / max(1.0, np.abs(mix).max())).astype(np.float32)

    return recording


def faster(speed: float) -> Callable[[Utterance], Utterance]:
    """Played at another rate, pitch included."""

    def changed(utterance: Utterance) -> Utterance:
        words = [SpokenWord(w.text, w.start_s / speed, w.end_s / speed) for w in utterance.words]
        return Utterance(streams.faster(utterance.samples, speed), tuple(words))

    return changed


def only_known(corpus: Corpus) -> list[Utterance]:
    """The utterances whose words are all in the vocabulary."""
    return [
        u
        for u in map(corpus.__getitem__, range(len(corpus)))
        if all(w.text in WORDS for w in u.words)
    ]


def only_others(corpus: Corpus) -> list[Utterance]:
    """The utterances that have no word of the vocabulary."""
    return [
        u
        for u in map(corpus.__getitem__, range(len(corpus)))
        if all(w.text not in WORDS for w in u.words)
    ]


async def report(folder: Path, most: int | None) -> list[str]:
    """The lines of a Markdown report over at most so many utterances of each synthesizer."""
    corpora = {voices: Corpus(folder, name) for voices, name in _VOICES.items()}
    known = {voices: only_known(corpus)[:most] for voices, corpus in corpora.items()}
    lines = [
        "| speech | condition | words | WER | start off by | end off by | pause seen | early |",
        "|---|---|---|---|---|---|---|---|",
    ]
    async with serving("demo", []) as server:
        for voices, utterances in known.items():
            conditions: list[tuple[str, list[Utterance], Callable[[Utterance], Samples]]] = [
                ("clean", utterances, quiet),
                ("noise, 20 dB", utterances, noisy(20)),
                ("noise, 10 dB", utterances, noisy(10)),
                ("noise, 5 dB", utterances, noisy(5)),
                ("0.8 times as fast", list(map(faster(0.8), utterances)), quiet),
                ("1.25 times as fast", list(map(faster(1.25), utterances)), quiet),
            ]
            for condition, spoken, recording in conditions:
                answers = await transcribe_all(server, [recording(u) for u in spoken])
                lines.append(_row(voices, condition, score(spoken, answers)))
                print(lines[-1], flush=True)
        lines += ["", "| what is heard | minutes | false words a minute |", "|---|---|---|"]
        for name, recordings in _wordless(corpora.values()).items():
            answers = await transcribe_all(server, recordings)
            minutes = sum(map(len, recordings)) / SAMPLE_RATE_HZ / 60
            words = sum(len(answer.words) for answer in answers)
            lines.append(f"| {name} | {minutes:.1f} | {words / minutes:.2f} |")
            print(lines[-1], flush=True)
    return lines


def _row(voices: str, condition: str, total: Score) -> str:
    starts, ends = np.abs(total.start_errors_s), np.abs(total.end_errors_s)
    return (
        f"| {voices} | {condition} | {total.spoken} | {100 * total.word_error_rate:.1f} % "
        f"| {starts.mean():.3f} s | {ends.mean():.3f} s "
        f"| {100 * total.pauses_fired / total.recordings:.1f} % "
        f"| {100 * total.pauses_early / total.recordings:.1f} % |"
    )


def _wordless(corpora: Iterable[Corpus]) -> dict[str, list[Samples]]:
    length, dice = 30 * SAMPLE_RATE_HZ, np.random.default_rng([_SEED, 2])

    def minutes(kind: noise.Noise) -> list[Samples]:
        sounds = [noise.normalised(kind(length, dice)) for _ in range(2 * _NOISE_MINUTES)]
        return [
            (sound / np.abs(sound).max() * 10 ** (dice.uniform(-30, -3) / 20)).astype(np.float32)
            for sound in sounds
        ]

    others = [quiet(u) for corpus in corpora for u in only_others(corpus)]
    kinds = {
        "noise": noise.coloured,
        "hum": noise.hum,
        "music": noise.music,
        "clatter": noise.clatter,
    }
    return {name: minutes(kind) for name, kind in kinds.items()} | {
        "silence": [np.zeros(length, np.float32)] * 4,
        "speech without a word of the vocabulary": others,
    }


def main() -> None:
    """Prints the report, and writes it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--most", type=int, help="utterances of each synthesizer, for a quick look")
    arguments = parser.parse_args()
    lines = asyncio.run(report(arguments.corpus, arguments.most))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
