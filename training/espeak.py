"""espeak-ng through its library, which tells when each word begins."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.speech import Utterance, sentence, utterance
from training.vocabulary import words_of

_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE, _WORD_GAP = 1, 3, 4, 7
_EVENT_END_OF_LIST, _EVENT_WORD = 0, 1


class _Event(ctypes.Structure):
    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char_p),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)

_ACCENTS = words_of("""
    en-us en en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc
""")

# Voices that sound like people, and of klatt's synthesis a few.
TRAINING_VARIANTS = words_of("""
    m1 m2 m3 m4 m6 m7 f1 f2 f3 f5 Alex Alicia Andrea Andy Denis Diogo Gene Henrique Hugo Jacky Lee
    Marco Mario Michael Nguyen adam anika announcer aunty belinda benjamin boris caleb david ed
    edward grandma grandpa iven iven3 john klatt klatt2 klatt4 linda marcelo max miguel norbert
    pablo paul pedro quincy rob sandro steph travis victor zac
""")
HELD_OUT_VARIANTS = words_of("""
    m5 m8 f4 Annie Gene2 Mike antonio edward2 gustave iven2 klatt3 michel robert shelby steph2
""")


class Espeak:
    """Formant synthesis in the accents and variants given."""

    name = "espeak-ng"

    def __init__(self, variants: Sequence[str]) -> None:
        path = ctypes.util.find_library("espeak-ng")
        if path is None:
            raise OSError("libespeak-ng is not installed; on Debian: apt-get install espeak-ng")
        self._library = ctypes.CDLL(path)
        self._rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        if self._rate_hz <= 0:
            raise OSError(f"espeak_Initialize failed with {self._rate_hz}")
        self._voices = [f"{accent}+{variant}" for variant in variants for accent in _ACCENTS]
        self._chunks: list[np.ndarray] = []
        self._starts_s: list[float] = []
        self._callback = _Callback(self._receive)  # espeak keeps the pointer, we the object
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32))
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            if events[index].type == _EVENT_WORD:
                self._starts_s.append(events[index].audio_position_ms / 1e3)
            index += 1
        return 0

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance | None:
        """See `Synthesizer`."""
        self._chunks.clear()
        self._starts_s.clear()
        if self._library.espeak_SetVoiceByName(str(dice.choice(self._voices)).encode()) != 0:
            return None
        for parameter, low, high in [
            (_RATE, 120, 230),
            (_PITCH, 25, 75),
            (_RANGE, 20, 80),
            (_WORD_GAP, -6, 4),
        ]:
            value = max(0, int(dice.integers(low, high + 1)))
            self._library.espeak_SetParameter(parameter, value, 0)
        text = sentence(words, dice).encode() + b"\0"
        self._library.espeak_Synth(text, len(text), 0, 0, 0, _CHARS_UTF8, None, None)
        if len(self._starts_s) != len(words) or not self._chunks:
            return None
        return utterance(
            np.concatenate(self._chunks) / 2**15, self._rate_hz, words, list(self._starts_s)
        )
