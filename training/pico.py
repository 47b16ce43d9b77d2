"""SVOX Pico's English voices, which only the evaluation hears."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ttspico

from training.speech import Samples, Utterance, word_by_word

_RATE_HZ = 16_000


class Pico:
    """Statistical synthesis, with rates, pitches and throats that people have.

    It is played at another rate for another throat. It does not tell when it says what.
    """

    name = "pico"

    def __init__(self, language: str) -> None:
        self._engine = ttspico.TtsEngine(language)
        self._engine.volume = 60

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance:
        """See `training.speech.Synthesizer`."""
        throat = dice.uniform(0.93, 1.08)
        self._engine.rate = int(dice.uniform(80, 125) / throat)
        self._engine.pitch = int(100 * np.exp(dice.uniform(-0.3, 0.25)))

        def say(text: str) -> Samples:
            return np.frombuffer(self._engine.speak(text), np.int16).astype(np.float32) / 2**15

        return word_by_word(words, say, _RATE_HZ * throat, dice)
