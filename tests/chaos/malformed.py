"""Bytes that are almost right, or not at all; the same for the same seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import msgpack
import numpy as np

from chaos import ogg
from chaos.ogg import Page
from chaos.raw_session import encode
from chaos.raw_websocket import Frame
from moshi_ctl import protocol


def mutated(original: bytes, dice: random.Random) -> bytes:
    """Bytes with a few of them cut off, flipped, said twice, put in or written over."""
    wrong = bytearray(original)
    for _ in range(dice.randint(1, 4)):
        at, length = dice.randrange(len(wrong) + 1), dice.randint(1, 16)
        match dice.randrange(5):
            case 0:
                del wrong[at:]
            case 1 if at < len(wrong):
                wrong[at] ^= 1 << dice.randrange(8)
            case 2:
                wrong[at:at] = wrong[at : at + length]
            case 3:
                wrong[at:at] = dice.randbytes(length)
            case _:
                wrong[at : at + length] = dice.randbytes(length)
    return bytes(wrong)


def _hollow(head: bytes, kind: str, field: str) -> bytes:
    """A message whose `field` begins like something large, and then is over."""
    text = bytes(msgpack.packb({"type": kind}))
    return b"\x82" + text[1:] + bytes(msgpack.packb(field)) + head


HOLLOW: list[bytes] = [
    _hollow(head, kind, field)
    for kind, field in (("Audio", "pcm"), ("OggOpus", "data"), ("Marker", "id"), ("Audio", "more"))
    for head in (
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 items
        b"\xdd\xff\xff\xff\xff" + b"\xca\x3d\xcc\xcc\xcd" * 10,
        b"\xdf\xff\xff\xff\xff",  # a map
        b"\xc6\xff\xff\xff\xff",  # bytes
        b"\xdb\xff\xff\xff\xff",  # text
        b"\xc9\xff\xff\xff\xff\x01",  # an extension
    )
]
"""Messages that claim to hold billions of things, and hold none."""

DEEP: list[bytes] = [
    _hollow(opening * depth + b"\xc0", kind, field)
    for kind, field in (("Audio", "pcm"), ("Audio", "more"), ("Marker", "id"))
    for opening, depth in ((b"\x91", 100), (b"\x91", 1_000_000), (b"\x81\xa1x", 300_000))
]
"""Messages of arrays within arrays, or maps within maps."""

ODD: list[bytes] = [
    b"",
    b"\xc0",
    b"\xc1",
    b"\x80",
    b"\x90",
    msgpack.packb("Audio"),
    msgpack.packb(["Audio", [0.0]]),
    msgpack.packb({"type": None}),
    msgpack.packb({"type": b"Audio", "pcm": [0.0]}),
    msgpack.packb({"type": ["Audio"]}),
    msgpack.packb({1: "Audio", "pcm": [0.0]}),
    msgpack.packb({"Type": "Audio", "pcm": [0.0]}),
    b"\x82\xa4type\xa5Audio\xa4type\xa4Init",
    encode("audio", pcm=[0.0]),
    encode("Audio\0", pcm=[0.0]),
    encode("x" * 100_000),
    encode("Audio", pcm=None),
    encode("Audio", pcm=0.0),
    encode("Audio", pcm={}),
    encode("Audio", pcm=[None]),
    encode("Audio", pcm=["0.0"]),
    encode("Audio", pcm=[[0.0]]),
    encode("Audio", pcm=[True]),
    encode("Audio", pcm=b"\0\0\0\0"),
    encode("OggOpus"),
    encode("OggOpus", data=[256]),
    encode("OggOpus", data=[-1]),
    encode("OggOpus", data="OggS"),
    encode("Marker"),
    encode("Marker", id="1"),
    encode("Marker", id=1.5),
    encode("Marker", id=2**64 - 1),
    encode("Marker", id=[1]),
    msgpack.packb(msgpack.Timestamp(0)),
    b"\x81\xa4type\xa2\xff\xfe",
    protocol.encode_marker(1) + b"\xc0",
    protocol.encode_marker(1)[:-1],
]
"""Messages with the wrong things in them."""


def messages(seed: int, count: int) -> Iterator[bytes]:
    """Right messages gone wrong, and bytes that never were any."""
    dice = random.Random(seed)
    pcm = np.sin(np.arange(300, dtype=np.float32))
    right = [
        protocol.encode_audio(pcm),
        encode("Audio", pcm=pcm[:40].tolist(), more={"a": [1, None, b"x"]}),
        protocol.encode_marker(7),
        encode("Init"),
        encode("OggOpus", data=bytes(range(100))),
    ]
    for _ in range(count):
        if dice.random() < 0.2:
            yield dice.randbytes(dice.randint(0, 200))
        else:
            yield mutated(dice.choice(right), dice)


def ogg_streams(seed: int, count: int, right: bytes) -> Iterator[bytes]:
    """An Ogg Opus stream gone wrong in its bytes, its pages or its packets.

    Args:
        seed: Of the dice.
        count: How many there are.
        right: A proper stream.
    """
    dice = random.Random(seed)
    head, *rest = ogg.pages(right)
    for _ in range(count):
        match dice.randrange(5):
            case 0:
                yield mutated(right, dice)
            case 1:
                yield _joined(_wrong_page(page, dice) for page in [head, *rest])
            case 2:
                yield _joined([head, rest[0], *_wrong_packets(rest[1:], dice)])
            case 3:
                yield _joined(dice.sample([head, *rest], 1 + len(rest)))
            case _:
                yield _joined([_wrong_head(head, dice), *rest])


def _joined(pages: Iterable[Page]) -> bytes:
    return b"".join(page.encode() for page in pages)


def _wrong_page(page: Page, dice: random.Random) -> Page:
    match dice.randrange(8):
        case 0:
            return replace(page, flags=dice.randrange(256))
        case 1:
            return replace(page, granule=dice.choice([-1, 0, 1, 2**62, -(2**63), 2**63 - 1]))
        case 2:
            return replace(page, serial=dice.randrange(2**32))
        case 3:
            return replace(page, segments=dice.randbytes(len(page.segments)))
        case 4:
            return replace(page, payload=mutated(page.payload, dice))
        case 5:
            return replace(page, segments=page.segments + b"\xff" * (255 - len(page.segments)))
        case _:
            return page


def _wrong_packets(pages: Sequence[Page], dice: random.Random) -> list[Page]:
    """Packets gone wrong, each in a proper page of its own."""
    right = [packet for page in pages for packet in ogg.packets(page)]
    return [
        ogg.page_of(
            _wrong_packet(packet, dice),
            serial=pages[0].serial,
            flags=ogg.LAST if dice.random() < 0.1 else 0,
        )
        for packet in right[:20]
    ]


def _wrong_packet(packet: bytes, dice: random.Random) -> bytes:
    """An Opus packet (RFC 6716) gone wrong; every third is left right."""
    match dice.randrange(7):
        case 0:
            return b""
        case 1:
            return dice.randbytes(dice.randint(1, 1500))
        case 2:
            # Another configuration, frame size or number of frames.
            return bytes([dice.randrange(256)]) + packet[1:]
        case 3:
            # Any number of frames, with any padding.
            return bytes([packet[0] | 3, dice.randrange(256)]) + packet[1:]
        case 4:
            return mutated(packet, dice)
        case _:
            return packet


def _wrong_head(head: Page, dice: random.Random) -> Page:
    """An identification header (RFC 7845, section 5.1) with another version, channel, gain, ..."""
    packet = bytearray(head.payload)
    at = dice.randrange(8, len(packet))
    packet[at] = dice.randrange(256)
    if dice.random() < 0.3:
        packet[16:18] = struct.pack("<h", dice.choice([-(2**15), 2**15 - 1]))
    packet = packet[: dice.choice([len(packet), len(packet), dice.randrange(len(packet) + 1)])]
    return ogg.page_of(bytes(packet), flags=head.flags, serial=head.serial)


def frames(seed: int, count: int) -> Iterator[bytes]:
    """WebSocket frames of every kind, length and order, some of them cut off or flipped."""
    dice = random.Random(seed)
    for _ in range(count):
        stream = b""
        for _ in range(dice.randint(1, 6)):
            payload = dice.choice(
                [
                    b"",
                    protocol.encode_marker(1),
                    protocol.encode_audio(np.zeros(200, dtype=np.float32)),
                    dice.randbytes(dice.randint(0, 300)),
                ]
            )
            stream += Frame(
                payload,
                dice.choice([0, 1, 2, 2, 2, 8, 9, 10, dice.randrange(16)]),
                fin=dice.random() < 0.7,
                rsv=dice.randrange(8) if dice.random() < 0.1 else 0,
                mask=dice.randbytes(4) if dice.random() < 0.9 else None,
                claimed_bytes=dice.choice([0, 125, 1 << 40, (1 << 64) - 1])
                if dice.random() < 0.1
                else None,
                length_bits=64,
            ).encode()
        yield mutated(stream, dice) if dice.random() < 0.5 else stream
