"""Safetensors files as numbers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """What a file says of its tensors, by name, and the bytes behind that."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + size])
    entries.pop("__metadata__", None)
    return entries, data[8 + size :]


def read(path: Path) -> dict[str, Numbers]:
    """The tensors of a file of F32 and BF16."""
    entries, data = header(path)
    tensors = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            halves = np.frombuffer(data[start:end], "<u2").astype(np.uint32)
            numbers = (halves << 16).view(np.float32)
        else:
            assert entry["dtype"] == "F32"
            numbers = np.frombuffer(data[start:end], "<f4")
        tensors[name] = numbers.reshape(entry["shape"])
    return tensors


def write(path: Path, tensors: Mapping[str, Numbers]) -> None:
    """Writes tensors in F32."""
    entries, offset = {}, 0
    for name, numbers in tensors.items():
        end = offset + 4 * numbers.size
        shape = list(numbers.shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    written = json.dumps(entries).encode()
    data = b"".join(numbers.astype("<f4").tobytes() for numbers in tensors.values())
    path.write_bytes(struct.pack("<Q", len(written)) + written + data)


def fill_with_largest(source: Path, target: Path) -> None:
    """Copies a file in BF16 with nothing but the largest number in it: sums are not finite."""
    content = source.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    numbers = (len(content) - start) // 2
    target.write_bytes(content[:start] + b"\x7f\x7f" * numbers)
