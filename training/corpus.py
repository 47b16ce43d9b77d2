"""Utterances by the thousand, synthesized once and kept in a folder.

    python -m training.corpus FOLDER

Every synthesizer has two files: `NAME.npy` with the samples of all its utterances one after the
other (16 bit, 24 kHz), and `NAME.json` with where each begins and what is said when.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from training.shape import SAMPLE_RATE_HZ
from training.speech import Samples, Synthesizer, Utterance, Word
from training.vocabulary import DIGITS, OTHER_WORDS, WORDS

# Chances of utterances that are of the vocabulary alone, of other words alone, and of both.
_KINDS = (0.75, 0.12, 0.13)
_DIGIT_SHARE = 0.25
_MOST_WORDS = 7
_SEED = 20_26


def _espeak() -> Synthesizer:
    from training.espeak import TRAINING_VARIANTS, Espeak

    return Espeak(TRAINING_VARIANTS)


def _espeak_held_out() -> Synthesizer:
    from training.espeak import HELD_OUT_VARIANTS, Espeak

    return Espeak(HELD_OUT_VARIANTS)


def _hibari() -> Synthesizer:
    from training.neural import Hibari

    return Hibari()


def _joe() -> Synthesizer:
    from training.neural import Joe

    return Joe(seed=_SEED)


def _flite() -> Synthesizer:
    from training.flite import Flite

    return Flite()


def _pico_us() -> Synthesizer:
    from training.pico import Pico

    return Pico("en-US")


def _pico_gb() -> Synthesizer:
    from training.pico import Pico

    return Pico("en-GB")


def _rhvoice() -> Synthesizer:
    from training.rhvoice import RHVoice

    return RHVoice()


def _kokoro_us() -> Synthesizer:
    from training.kokoro import Kokoro

    return Kokoro(british=False)


def _kokoro_gb() -> Synthesizer:
    from training.kokoro import Kokoro

    return Kokoro(british=True)


def _festival() -> Synthesizer:
    from training.festival import Festival

    return Festival()


@dataclass(frozen=True)
class Part:
    """The utterances of one synthesizer.

    Attributes:
        name: Of its files.
        synthesizer: Makes it, in the process that makes the part.
        utterances: How many it is asked for.
        dice: The number of its dice, so that it stays the same whatever other parts there are.
    """

    name: str
    synthesizer: Callable[[], Synthesizer]
    utterances: int
    dice: int


# The slowest two last, side by side.
PARTS = (
    Part("joe", _joe, 2600, 0),
    Part("hibari", _hibari, 6000, 1),
    Part("espeak", _espeak, 9000, 2),
    Part("espeak_held_out", _espeak_held_out, 600, 3),
    Part("flite", _flite, 4000, 4),
    Part("pico_us", _pico_us, 400, 5),
    Part("festival", _festival, 2000, 6),
    Part("pico_gb", _pico_gb, 400, 7),
    Part("rhvoice", _rhvoice, 4000, 8),
    Part("kokoro_us", _kokoro_us, 1100, 8),
    Part("kokoro_gb", _kokoro_gb, 1500, 9),
)


def words_to_say(dice: np.random.Generator) -> list[str]:
    """Up to seven words, most of them from the vocabulary."""
    count = min(int(dice.geometric(0.3)), _MOST_WORDS)
    share_of_others = (0.0, 1.0, 0.5)[int(dice.choice(3, p=_KINDS))]
    return [_word(share_of_others, dice) for _ in range(count)]


def _word(share_of_others: float, dice: np.random.Generator) -> str:
    if dice.random() < share_of_others:
        return str(dice.choice(OTHER_WORDS))
    return str(dice.choice(DIGITS if dice.random() < _DIGIT_SHARE else WORDS))


def make(folder: Path, part: Part) -> None:
    """Synthesizes and writes one part."""
    synthesizer = part.synthesizer()
    pieces, index, offset = [], [], 0
    for number in range(part.utterances):
        dice = np.random.default_rng([_SEED, part.dice, number])
        spoken = synthesizer.speak(words_to_say(dice), dice)
        if spoken is None:
            continue
        piece = np.round(spoken.samples * 32_767).astype(np.int16)
        pieces.append(piece)
        index.append((offset, len(piece), [astuple(word) for word in spoken.words]))
        offset += len(piece)
    np.save(folder / f"{part.name}.npy", np.concatenate(pieces))
    (folder / f"{part.name}.json").write_text(json.dumps(index))
    minutes = offset / SAMPLE_RATE_HZ / 60
    print(f"{part.name}: {len(index)} utterances of {part.utterances}, {minutes:.0f} min")


def write_pronunciations(folder: Path) -> None:
    """Writes `pronunciations.json`: each word's phonemes, a character each, without stress."""
    from hibari import Hibari

    voice = Hibari()
    spelt = {word: "".join(voice.phonemize(word)) for word in (*WORDS, *OTHER_WORDS)}
    spelt = {
        word: "".join(c for c in text if c.isalpha() and c not in "ˈˌ")
        for word, text in spelt.items()
    }
    (folder / "pronunciations.json").write_text(json.dumps(spelt, indent=1))


class Corpus:
    """The utterances of one synthesizer, read from a folder when they are asked for."""

    def __init__(self, folder: Path, name: str) -> None:
        self._samples = np.load(folder / f"{name}.npy", mmap_mode="r")
        self._index = json.loads((folder / f"{name}.json").read_text())

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> Utterance:
        offset, length, words = self._index[number]
        samples: Samples = self._samples[offset : offset + length].astype(np.float32) / 32_768
        return Utterance(samples, tuple(Word(*word) for word in words))


def main() -> None:
    """Makes all parts, two at a time, and the pronunciations when they are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    # A process for each: espeak-ng remembers what it has said before.
    with ProcessPoolExecutor(2, max_tasks_per_child=1) as pool:
        for done in [pool.submit(make, folder, part) for part in PARTS]:
            done.result()
    write_pronunciations(folder)


if __name__ == "__main__":
    main()
