"""Ogg pages (RFC 3533) taken apart and put together again, with a right checksum or a wrong one."""

from __future__ import annotations

import struct
from dataclasses import dataclass

CONTINUED, FIRST, LAST = 1, 2, 4
"""What the flags of a page say."""

_HEAD = struct.Struct("<4sBBqIIIB")
_POLYNOMIAL = 0x04C11DB7


def _remainder(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = (value << 1) ^ (_POLYNOMIAL if value & 1 << 31 else 0)
    return value & 0xFFFFFFFF


_TABLE = [_remainder(byte) for byte in range(256)]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        payload: The bytes of its segments.
        segments: Their lengths.
        flags: `CONTINUED` (begins in a packet), `FIRST`, `LAST` (of its stream).
        granule: Position of its end, in samples at 48 kHz.
        serial: Number of its stream.
        sequence: Its own number.
        version: Of the format; there is only 0.
    """

    payload: bytes
    segments: bytes
    flags: int = 0
    granule: int = 0
    serial: int = 1
    sequence: int = 0
    version: int = 0

    def encode(self, checksum: int | None = None) -> bytes:
        """The page as bytes; its own checksum unless another is given."""
        if checksum is None:
            checksum = 0
            for byte in self.encode(0):
                checksum = (checksum << 8 & 0xFFFFFFFF) ^ _TABLE[checksum >> 24 ^ byte]
        head = _HEAD.pack(
            b"OggS",
            self.version,
            self.flags,
            self.granule,
            self.serial,
            self.sequence,
            checksum,
            len(self.segments),
        )
        return head + self.segments + self.payload


def page_of(packet: bytes, **fields: int) -> Page:
    """A page with one whole packet of less than 64 KiB."""
    segments = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    return Page(packet, segments, **fields)


def pages(stream: bytes) -> list[Page]:
    """The pages of a proper stream."""
    found, at = [], 0
    while at < len(stream):
        _, version, flags, granule, serial, sequence, _, count = _HEAD.unpack_from(stream, at)
        at += _HEAD.size
        segments = stream[at : at + count]
        at += count
        payload = stream[at : at + sum(segments)]
        at += len(payload)
        found.append(Page(payload, segments, flags, granule, serial, sequence, version))
    return found


def packets(page: Page) -> list[bytes]:
    """The packets that are over on this page; it must not continue one."""
    found, packet, at = [], b"", 0
    for length in page.segments:
        packet += page.payload[at : at + length]
        at += length
        if length < 255:
            found.append(packet)
            packet = b""
    return found
