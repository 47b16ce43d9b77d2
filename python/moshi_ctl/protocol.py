"""The messages of a speech-to-text session, as MessagePack maps with a `type`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from moshi_ctl import _native

SAMPLE_RATE_HZ: Final = _native.SAMPLE_RATE_HZ
"""Samples per second of the audio a server takes."""

FRAME_SAMPLES: Final = _native.FRAME_SAMPLES
"""Samples in one frame, the unit in which a model advances."""

FRAME_RATE_HZ: Final = SAMPLE_RATE_HZ / FRAME_SAMPLES
"""Frames per second."""

FRAME_S: Final = FRAME_SAMPLES / SAMPLE_RATE_HZ
"""What a frame lasts, and so what a step may take."""

Samples = npt.NDArray[np.float32]
"""Mono audio at `SAMPLE_RATE_HZ`, within ±1."""


@dataclass(frozen=True)
class Ready:
    """The session has a place; audio may come."""


@dataclass(frozen=True)
class Word:
    """A word. Times are in seconds of the audio sent; the end is not known at first."""

    text: str
    start_time: float
    stop_time: float | None = None


@dataclass(frozen=True)
class EndWord:
    """The last word ended, in seconds of the audio sent."""

    stop_time: float


@dataclass(frozen=True)
class Step:
    """The model took one frame of this session.

    Attributes:
        step_idx: How many it has taken.
        prs: One probability per semantic VAD head.
        buffered_pcm: Samples that wait for their turn.
    """

    step_idx: int
    prs: tuple[float, ...] = ()
    buffered_pcm: int = 0


@dataclass(frozen=True)
class Marker:
    """Everything sent before the marker with this id has been transcribed."""

    id: int


@dataclass(frozen=True)
class Failure:
    """The server ends the session, and why."""

    message: str


Event = Ready | Word | EndWord | Step | Marker | Failure


class MalformedMessageError(ValueError):
    """Bytes that are no message of this protocol."""


def encode_audio(samples: Samples) -> bytes:
    """An `Audio` message; the samples travel as 32-bit floats."""
    packer = msgpack.Packer(use_single_float=True)
    return bytes(packer.pack({"type": "Audio", "pcm": samples.tolist()}))


def encode_marker(marker_id: int) -> bytes:
    """A `Marker` message."""
    return bytes(msgpack.packb({"type": "Marker", "id": marker_id}))


def decode(data: bytes | str) -> Event | None:
    """The event in a server's message, or None for a type this client does not know.

    Raises:
        MalformedMessageError: When the message is no map of the expected form.
    """
    if isinstance(data, str):
        raise MalformedMessageError(f"a text message where MessagePack was expected: {data[:80]!r}")
    try:
        message = msgpack.unpackb(data)
        return _event(message)
    except (ValueError, KeyError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessageError(f"not a message of this protocol: {data[:80]!r}") from error


def _event(message: dict[str, Any]) -> Event | None:
    match message["type"]:
        case "Ready":
            return Ready()
        case "Word":
            return Word(str(message["text"]), float(message["start_time"]))
        case "EndWord":
            return EndWord(float(message["stop_time"]))
        case "Step":
            return Step(
                int(message["step_idx"]),
                tuple(float(probability) for probability in message.get("prs", ())),
                int(message.get("buffered_pcm", 0)),
            )
        case "Marker":
            return Marker(int(message["id"]))
        case "Error":
            return Failure(str(message["message"]))
        case _:
            return None
