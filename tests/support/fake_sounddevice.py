"""A package `sounddevice` whose microphone plays a recording, or that has none."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from moshi_ctl.protocol import Samples
from support import speech

RATE_HZ = 44_100
NAME = "a microphone of paper"

_HEARS = """
import threading, time
import soundfile

class PortAudioError(Exception):
    pass

def query_devices(kind):
    assert kind == "input"
    return {{"name": {name!r}, "default_samplerate": {rate_hz}.0}}

class InputStream:
    def __init__(self, *, samplerate, blocksize, channels, dtype, callback, finished_callback):
        assert (samplerate, channels, dtype) == ({rate_hz}, 1, "float32")
        self._blocksize, self._hear, self._end = blocksize, callback, finished_callback
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._closed.set()
        self._thread.join()

    def _run(self):
        with soundfile.SoundFile({recording!r}) as source:
            for block in source.blocks(self._blocksize, dtype="float32", always_2d=True):
                time.sleep({pause_s})
                if self._closed.is_set():
                    break
                self._hear(block, len(block), None, None)
                # What a driver gives is its own again afterwards.
                block[:] = 0
        while {lasts} and not self._closed.wait({pause_s}):
            self._hear(block, len(block), None, None)
        self._end()
"""

_NO_DEVICE = """
class PortAudioError(Exception):
    pass

def query_devices(kind):
    raise PortAudioError("Error querying device -1")
"""

_BUSY = """
class PortAudioError(Exception):
    pass

def query_devices(kind):
    return {"name": "busy", "default_samplerate": 48000.0}

def InputStream(**_):
    raise PortAudioError("Device unavailable [PaErrorCode -9985]")
"""

_NO_LIBRARY = 'raise OSError("PortAudio library not found")'
_NOT_INSTALLED = "raise ModuleNotFoundError(\"No module named 'sounddevice'\")"

FAULTS = {
    "not installed": _NOT_INSTALLED,
    "no library": _NO_LIBRARY,
    "no device": _NO_DEVICE,
    "busy": _BUSY,
}


def faulty(folder: Path, fault: str) -> dict[str, str]:
    """The environment of a program for which it is as `FAULTS` says."""
    return _install(folder, FAULTS[fault])


def hearing(folder: Path, samples: Samples, *, lasts: bool = False) -> dict[str, str]:
    """The environment of a program whose microphone hears `samples`, twenty times as fast as they
    were spoken, and then ends, or goes on without a sound if it `lasts`."""
    recording = speech.write(folder / "heard.wav", samples, RATE_HZ)
    text = _HEARS.format(
        name=NAME, rate_hz=RATE_HZ, recording=str(recording), pause_s=0.004, lasts=lasts
    )
    return _install(folder, text)


def _install(folder: Path, text: str) -> dict[str, str]:
    packages = folder / "packages"
    packages.mkdir()
    (packages / "sounddevice.py").write_text(dedent(text))
    return {"PYTHONPATH": str(packages)}
