"""Utterances with the times of their words, and what every synthesizer has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import soxr

from training.shape import SAMPLE_RATE_HZ

Samples = npt.NDArray[np.float32]

# A word ends where the last window louder than its loudest one less this ends.
_SILENCE_DB = 32.0
_WINDOW_S = 0.010
# Of a word spoken alone: its loudest sample less this is where it begins and ends, with some more.
_ALONE_SILENCE_DB, _ALONE_MARGIN_S = 40.0, 0.010


@dataclass(frozen=True)
class Word:
    """A word and when it is spoken, in seconds from the beginning."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Utterance:
    """Speech at 24 kHz and its words in order."""

    samples: Samples
    words: tuple[Word, ...]


class Synthesizer(Protocol):
    """Something that speaks, in many voices."""

    name: str

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance | None:
        """Says `words` in a voice, at a rate and a pitch that the dice choose.

        Returns None where the synthesizer does not tell when each word was said.
        """
        ...


def sentence(words: Sequence[str], dice: np.random.Generator) -> str:
    """The words with punctuation between them, which makes synthesizers vary their melody."""
    comma_chance = dice.choice([0.0, 0.1, 0.4])
    text = "".join(word + ("," if dice.random() < comma_chance else "") + " " for word in words)
    return text.strip().rstrip(",") + dice.choice([".", ".", "", "?", "!"])


def utterance(
    samples: Samples, rate_hz: float, words: Sequence[str], starts_s: Sequence[float]
) -> Utterance:
    """What was synthesized at `rate_hz`, resampled, with each word's end found by its loudness."""
    samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
    peak = float(np.abs(samples).max(initial=1e-6))
    samples *= 0.5 / peak
    limits_s = [*starts_s[1:], len(samples) / SAMPLE_RATE_HZ]
    spoken = [
        _word(word, start_s, limit_s, samples)
        for word, start_s, limit_s in zip(words, starts_s, limits_s, strict=True)
    ]
    return Utterance(samples, tuple(spoken))


def word_by_word(
    words: Sequence[str],
    say: Callable[[str], Samples],
    rate_hz: float,
    dice: np.random.Generator,
) -> Utterance:
    """Words that `say` says one at a time, put together.

    So it is known when each is said, by whatever synthesizer. Gaps are up to 0.4 s.
    """
    longest_gap_s = dice.choice([0.02, 0.1, 0.4])
    pieces: list[Samples] = [_silence(0.05, rate_hz)]
    starts_s, length = [], len(pieces[0])
    for word in words:
        spoken = _trimmed(say(word + dice.choice([".", ".", "?", "!"])), rate_hz)
        starts_s.append(length / rate_hz)
        pieces += [spoken, _silence(dice.uniform(0, longest_gap_s), rate_hz)]
        length += len(spoken) + len(pieces[-1])
    pieces.append(_silence(0.1, rate_hz))
    return utterance(np.concatenate(pieces), rate_hz, words, starts_s)


def _silence(seconds: float, rate_hz: float) -> Samples:
    return np.zeros(int(seconds * rate_hz), np.float32)


def _trimmed(samples: Samples, rate_hz: float) -> Samples:
    """Without the silence around it, and with edges that do not click."""
    quiet = np.abs(samples).max() * 10 ** (-_ALONE_SILENCE_DB / 20)
    loud = np.flatnonzero(np.abs(samples) > quiet)
    margin = int(_ALONE_MARGIN_S * rate_hz)
    first, last = max(loud[0] - margin, 0), min(loud[-1] + margin, len(samples))
    edge = np.minimum(np.arange(last - first), margin) / margin
    return samples[first:last] * (edge * edge[::-1]).astype(np.float32)


def _word(text: str, start_s: float, limit_s: float, samples: Samples) -> Word:
    """The word between two times, without the silence around it."""
    window = int(_WINDOW_S * SAMPLE_RATE_HZ)
    first = int(start_s * SAMPLE_RATE_HZ)
    part = samples[first : int(limit_s * SAMPLE_RATE_HZ)]
    count = len(part) // window
    if count < 2:
        return Word(text, start_s, limit_s)
    loudness = np.square(part[: count * window].reshape(count, window)).mean(axis=1)
    loud = np.flatnonzero(loudness > loudness.max() * 10 ** (-_SILENCE_DB / 10))
    return Word(
        text, start_s + float(loud[0]) * _WINDOW_S, start_s + float(loud[-1] + 1) * _WINDOW_S
    )
