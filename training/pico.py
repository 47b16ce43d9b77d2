"""SVOX Pico's English voices, which only the evaluation hears.

They do not tell when they say what, so words are spoken one at a time and put together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ttspico

from training.speech import Samples, Utterance, utterance

_RATE_HZ = 16_000
# Where a word begins and ends: its loudest sample less this, and some time more.
_SILENCE_DB = 40.0
_MARGIN_S = 0.010


class Pico:
    """Statistical synthesis, with rates, pitches and throats that people have.

    It is played at another rate for another throat.
    """

    name = "pico"

    def __init__(self, language: str) -> None:
        self._engine = ttspico.TtsEngine(language)
        self._engine.volume = 60

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance:
        """See `training.speech.Synthesizer`."""
        engine = self._engine
        throat = dice.uniform(0.93, 1.08)
        engine.rate = int(dice.uniform(80, 125) / throat)
        engine.pitch = int(100 * np.exp(dice.uniform(-0.3, 0.25)))
        longest_gap_s = dice.choice([0.02, 0.1, 0.4])
        pieces: list[Samples] = [_silence(0.05)]
        starts_s, length = [], len(pieces[0])
        for word in words:
            spoken = engine.speak(word + dice.choice([".", ".", "?", "!"]))
            samples = _trimmed(np.frombuffer(spoken, np.int16).astype(np.float32) / 2**15)
            starts_s.append(length / _RATE_HZ / throat)
            pieces += [samples, _silence(dice.uniform(0, longest_gap_s))]
            length += len(samples) + len(pieces[-1])
        pieces.append(_silence(0.1))
        return utterance(np.concatenate(pieces), _RATE_HZ * throat, words, starts_s)


def _silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * _RATE_HZ), np.float32)


def _trimmed(samples: Samples) -> Samples:
    """Without the silence around it, and with edges that do not click."""
    loud = np.flatnonzero(np.abs(samples) > np.abs(samples).max() * 10 ** (-_SILENCE_DB / 20))
    margin = int(_MARGIN_S * _RATE_HZ)
    first, last = max(loud[0] - margin, 0), min(loud[-1] + margin, len(samples))
    edge = np.minimum(np.arange(last - first), margin) / margin
    return samples[first:last] * (edge * edge[::-1]).astype(np.float32)
