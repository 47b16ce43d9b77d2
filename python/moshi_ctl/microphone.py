"""A microphone as a stream of samples the server can take; needs the extra `mic`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
import soxr

from moshi_ctl.errors import AudioError
from moshi_ctl.protocol import FRAME_S, SAMPLE_RATE_HZ, Samples

_NO_DEVICE_HINT: Final = (
    "connect one, and let this program use it; `python -m sounddevice` lists those there are"
)


@dataclass(frozen=True)
class Microphone:
    """An input of this machine.

    Attributes:
        name: What the system calls it.
        rate_hz: The rate that it works at.
    """

    name: str
    rate_hz: float


def default() -> Microphone:
    """The microphone that the system is set to.

    Raises:
        AudioError: When there is none, or what reads it is not installed.
    """
    sounddevice = _sounddevice()
    try:
        facts = sounddevice.query_devices(kind="input")
        return Microphone(str(facts["name"]), float(facts["default_samplerate"]))
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(f"no microphone can be used: {error}", hint=_NO_DEVICE_HINT) from error


async def samples() -> AsyncGenerator[Samples, None]:
    """What the microphone hears from now on, a frame at a time, mono at `SAMPLE_RATE_HZ`.

    It ends when the microphone does.

    Raises:
        AudioError: When there is none, or it cannot be opened.
    """
    sounddevice = _sounddevice()
    microphone = default()
    # Not every driver offers another rate than its own.
    resampler = soxr.ResampleStream(microphone.rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Samples | None] = asyncio.Queue()

    # Both are called by a thread of the driver's.
    def hear(block: Samples, *_: Any) -> None:  # noqa: ANN401 - a time and flags, for C
        loop.call_soon_threadsafe(heard.put_nowait, block[:, 0].copy())

    def end() -> None:
        loop.call_soon_threadsafe(heard.put_nowait, None)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                sounddevice.InputStream(
                    samplerate=microphone.rate_hz,
                    blocksize=round(microphone.rate_hz * FRAME_S),
                    channels=1,
                    dtype="float32",
                    callback=hear,
                    finished_callback=end,
                )
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(
                f"the microphone {microphone.name!r} cannot be opened: {error}",
                hint=_NO_DEVICE_HINT,
            ) from error
        while (block := await heard.get()) is not None:
            yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise AudioError(
            "the package sounddevice, which reads microphones, is not installed",
            hint="install it: pip install 'moshi-ctl[mic]'",
        ) from error
    except OSError as error:  # the library that it is made for
        raise AudioError(
            f"the package sounddevice cannot be used: {error}",
            hint="install PortAudio; on Debian and Ubuntu: apt-get install libportaudio2",
        ) from error
    module: ModuleType = sounddevice
    return module
