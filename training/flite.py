"""flite's voices, which tell when each phoneme ends."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence

import numpy as np
import soundfile

from training.speech import Utterance, utterance


class Flite:
    """flite's statistical and diphone voices."""

    name = "flite"

    def __init__(self, voices: Sequence[str] = ("awb", "rms", "slt", "kal16")) -> None:
        self._voices = voices
        self._phonemes: dict[tuple[str, str], int] = {}

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance | None:
        """See `Synthesizer`. A word's phonemes are counted by letting it be spoken alone."""
        voice = str(dice.choice(self._voices))
        stretch = dice.uniform(0.85, 1.25)
        counts = [self._count(voice, word) for word in words]
        samples, rate_hz, segments = self._say(voice, " ".join(words), stretch)
        starts_s, phonemes = [], [end for name, end in segments if name != "pau"]
        begins = [0.0, *(end for _, end in segments)][: len(segments)]
        begins = [begin for begin, (name, _) in zip(begins, segments, strict=True) if name != "pau"]
        if len(phonemes) != sum(counts):
            return None
        at = 0
        for count in counts:
            starts_s.append(begins[at])
            at += count
        return utterance(samples, rate_hz, words, starts_s)

    def _count(self, voice: str, word: str) -> int:
        if (voice, word) not in self._phonemes:
            _, _, segments = self._say(voice, word, 1.0)
            self._phonemes[voice, word] = sum(name != "pau" for name, _ in segments)
        return self._phonemes[voice, word]

    def _say(
        self, voice: str, text: str, stretch: float
    ) -> tuple[np.ndarray, int, list[tuple[str, float]]]:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command = ["flite", "-voice", voice, "-psdur", "--setf", f"duration_stretch={stretch}"]
            printed = subprocess.run(
                [*command, "-t", text, "-o", file.name], capture_output=True, text=True, check=True
            ).stdout
            samples, rate_hz = soundfile.read(file.name, dtype="float32")
        segments = re.findall(r"([a-z]+):([\d.]+)", printed)
        return samples, rate_hz, [(name, float(end)) for name, end in segments]
