"""RHVoice's voices of the CMU ARCTIC recordings: three Americans and an Indian.

No package brings its library for Linux: `training/README.md` says how to build it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.speech import Samples, Utterance, word_by_word

_VOICES = ("bdl", "clb", "slt", "ksp")
_RATE_HZ = 24_000

_SetRate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
_PlaySpeech = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_uint, ctypes.c_void_p
)


# Of RHVoice.h; what is not set is not used.
class _Parameters(ctypes.Structure):
    _fields_ = [
        ("data_path", ctypes.c_char_p),
        ("config_path", ctypes.c_char_p),
        ("resource_paths", ctypes.POINTER(ctypes.c_char_p)),
        ("set_sample_rate", _SetRate),
        ("play_speech", _PlaySpeech),
        ("other_callbacks", ctypes.c_void_p * 7),
        ("options", ctypes.c_uint),
    ]


class _Speech(ctypes.Structure):
    _fields_ = [
        ("voice_profile", ctypes.c_char_p),
        ("absolute_rate_pitch_volume", ctypes.c_double * 3),
        ("relative_rate", ctypes.c_double),
        ("relative_pitch", ctypes.c_double),
        ("relative_volume", ctypes.c_double),
        ("punctuation_mode", ctypes.c_int),
        ("punctuation_list", ctypes.c_char_p),
        ("capitals_mode", ctypes.c_int),
        ("flags", ctypes.c_int),
    ]


class RHVoice:
    """Statistical synthesis (HTS). Words are spoken one at a time and put together.

    It tells when words begin, but only to a tenth of a second.
    """

    name = "rhvoice"

    def __init__(self) -> None:
        library = os.environ.get("RHVOICELIBPATH") or ctypes.util.find_library("RHVoice")
        if library is None:
            raise OSError("there is no libRHVoice.so: see training/README.md")
        self._library = ctypes.CDLL(library)
        self._chunks: list[Samples] = []
        data = os.environ.get("RHVOICEDATAPATH", "/usr/local/share/RHVoice")
        missing = [voice for voice in _VOICES if not (Path(data) / "voices" / voice).is_dir()]
        if missing:
            raise OSError(f"{data} has no voice {', '.join(missing)}: see training/README.md")
        # Kept, for the library calls them later.
        self._parameters = _Parameters(
            data_path=data.encode(),
            config_path=data.encode(),
            set_sample_rate=_SetRate(lambda rate_hz, _: int(rate_hz == _RATE_HZ)),
            play_speech=_PlaySpeech(self._play),
        )
        new_engine = self._library.RHVoice_new_tts_engine
        new_engine.restype = ctypes.c_void_p
        self._engine = ctypes.c_void_p(new_engine(ctypes.byref(self._parameters)))
        if not self._engine:
            raise OSError(f"RHVoice finds no voices in {data}")
        self._library.RHVoice_new_message.restype = ctypes.c_void_p

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance:
        """See `training.speech.Synthesizer`."""
        throat = dice.uniform(0.88, 1.14)
        speech = _Speech(
            voice_profile=str(dice.choice(_VOICES)).encode(),
            relative_rate=dice.uniform(0.7, 1.4) / throat,
            relative_pitch=np.exp(dice.uniform(-0.3, 0.3)),
            relative_volume=1.0,
        )
        return word_by_word(words, lambda text: self._say(text, speech), _RATE_HZ * throat, dice)

    def _say(self, text: str, speech: _Speech) -> Samples:
        self._chunks.clear()
        encoded = text.encode()
        message = ctypes.c_void_p(
            self._library.RHVoice_new_message(
                self._engine, encoded, len(encoded), 0, ctypes.byref(speech), None
            )
        )
        done = bool(message) and self._library.RHVoice_speak(message)
        self._library.RHVoice_delete_message(message)
        if not done or not self._chunks:
            raise OSError(f"RHVoice did not say {text!r}")
        return np.concatenate(self._chunks)

    def _play(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: object) -> int:
        chunk = np.ctypeslib.as_array(samples, (count,))
        self._chunks.append(chunk.astype(np.float32) / 2**15)
        return 1
