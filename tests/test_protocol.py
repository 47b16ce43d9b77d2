from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from moshi_ctl import protocol
from moshi_ctl.protocol import EndWord, Failure, Marker, Ready, Step, Word


def test_the_units() -> None:
    assert protocol.SAMPLE_RATE_HZ == 24_000
    assert protocol.FRAME_SAMPLES == 1_920
    assert protocol.FRAME_RATE_HZ == 12.5


def test_audio_travels_as_32_bit_floats() -> None:
    samples = np.array([0.0, 0.1, -1.0], dtype=np.float32)
    data = protocol.encode_audio(samples)
    message = msgpack.unpackb(data)
    assert message["type"] == "Audio"
    np.testing.assert_array_equal(np.array(message["pcm"], dtype=np.float32), samples)
    # 0xca is MessagePack's float 32.
    assert data.count(b"\xca") == 3


def test_a_marker() -> None:
    assert msgpack.unpackb(protocol.encode_marker(7)) == {"type": "Marker", "id": 7}


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"type": "Ready"}, Ready()),
        ({"type": "Word", "text": "hé", "start_time": 1.5}, Word("hé", 1.5)),
        ({"type": "Word", "text": "a", "start_time": 1, "more": 0}, Word("a", 1.0)),
        ({"type": "EndWord", "stop_time": 2.25}, EndWord(2.25)),
        ({"type": "Step", "step_idx": 3, "prs": [0.5], "buffered_pcm": 9}, Step(3, (0.5,), 9)),
        ({"type": "Step", "step_idx": 3}, Step(3)),
        ({"type": "Marker", "id": -1}, Marker(-1)),
        ({"type": "Error", "message": "no"}, Failure("no")),
        ({"type": "Later invention"}, None),
    ],
)
def test_server_messages(message: dict[str, Any], event: protocol.Event | None) -> None:
    assert protocol.decode(msgpack.packb(message)) == event


@pytest.mark.parametrize(
    "data",
    [
        "text",
        b"",
        b"\xc1",
        b"{}",
        msgpack.packb([1]),
        msgpack.packb({"type": "Word"}),
        msgpack.packb({"type": "Step", "step_idx": "x"}),
        msgpack.packb({"kind": "Word"}),
    ],
)
def test_what_is_no_message(data: bytes | str) -> None:
    with pytest.raises(protocol.MalformedMessageError):
        protocol.decode(data)
