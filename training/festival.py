"""Festival's diphone voice `ked`."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from training.speech import Utterance, sentence, utterance

_VOICE = "voice_ked_diphone"
# Said after everything that an utterance prints.
_END = "end of utterance"


class Festival:
    """One process that speaks whatever it is told, with its word times."""

    name = "festival"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            ["festival", "--pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._ask(f"({_VOICE})") is None:
            raise OSError(f"festival has no {_VOICE}; on Debian: apt-get install festvox-kdlpc16k")

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance | None:
        """See `training.speech.Synthesizer`."""
        file = Path(self._folder.name) / "spoken.wav"
        throat = dice.uniform(0.85, 1.25)
        stretch, pitch_hz = throat * dice.uniform(0.8, 1.3), dice.uniform(80, 140) / throat
        printed = self._ask(
            f"(Parameter.set 'Duration_Stretch {stretch})"
            f"(set! int_lr_params '((target_f0_mean {pitch_hz}) "
            f"(target_f0_std {dice.uniform(6, 22)}) (model_f0_mean 170) (model_f0_std 34)))"
            f'(set! said (utt.synth (Utterance Text "{sentence(words, dice)}")))'
            f'(utt.save.wave said "{file}" \'riff)'
            '(mapcar (lambda (word) (format t "%f\\n" (item.feat word \'word_start)))'
            " (utt.relation.items said 'Word))"
        )
        if printed is None:
            self._start()
            return None
        starts_s = [float(line) for line in printed]
        if len(starts_s) != len(words):
            return None
        samples, rate_hz = soundfile.read(file, dtype="float32")
        return utterance(samples, rate_hz * throat, words, [start / throat for start in starts_s])

    def _ask(self, expressions: str) -> list[str] | None:
        """The lines that Scheme prints; none when festival dies of it, as it does now and then."""
        end = f'(format t "{_END}\\n")(fflush nil)'
        print(expressions, end, file=self._process.stdin, flush=True)
        lines = []
        for line in self._process.stdout or ():
            if line.strip() == _END:
                return lines
            lines.append(line)
        return None
