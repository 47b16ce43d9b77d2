"""Streams as the filter bank hears them, made once and learnt from many times.

    python -m training.features CORPUS FOLDER

The filter bank is most of the encoder's arithmetic and is not trained, so what it makes of some
hours of streams is kept: eight bits a number, which is finer than any decision that follows.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import shape as shapes
from training.model import LOUDNESS_FACTORS, Codec
from training.streams import FRAMES, Mixer, Stream

_SEED = 3
_CHUNK = 60
# How far `elsewhere` moves bands, and how much louder or quieter the lowest and the highest become.
_MOST_BANDS = 1
_MOST_TILT_DB = 6.0
TARGETS = ("text", "pauses", "states", "phonemes")
# The filter bank's numbers, from -1 to a little above 0, as bytes.
_LOWEST, _STEPS = -1.0, 220


def to_bytes(features: Tensor) -> Tensor:
    """Rounds what the filter bank gives."""
    return ((features - _LOWEST) * _STEPS).round().clamp(0, 255).to(torch.uint8)


def from_bytes(numbers: Tensor) -> Tensor:
    """The other way round."""
    return numbers.float() / _STEPS + _LOWEST


class Streams:
    """Features and targets in a folder. N streams, of which the first `easy` are easy."""

    def __init__(self, folder: Path) -> None:
        description = json.loads((folder / "features.json").read_text())
        size = tuple(description["size"])
        self._features = np.memmap(folder / "features.u8", np.uint8, "r", shape=size)
        self.easy: int = description["easy"]
        self._targets = {name: np.load(folder / f"{name}.npy") for name in TARGETS}

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The streams of these numbers."""
        chosen = np.sort(indices.numpy())
        targets = {
            name: torch.as_tensor(values[chosen]).long() for name, values in self._targets.items()
        }
        return {"features": from_bytes(torch.as_tensor(self._features[chosen])), **targets}


def elsewhere(features: Tensor) -> Tensor:
    """Half of the streams as if other people had said it into other microphones. B × time × C.

    Neighbouring bands are neighbouring pitches, so moving all of them up or down makes a throat
    shorter or longer. A feature is exp(-a x) - 1 for loudness x: powers of 1 + feature are gains.
    """
    streams, _, channels = features.shape
    copies = len(LOUDNESS_FACTORS)
    moved = []
    for stream in features.unflatten(2, (channels // copies, copies)):
        bands = int(torch.randint(-_MOST_BANDS, _MOST_BANDS + 1, ())) * int(torch.rand(()) < 0.5)
        moved.append(stream.roll(bands, 1))
        if bands > 0:
            moved[-1][:, :bands] = stream[:, :1]
        elif bands < 0:
            moved[-1][:, bands:] = stream[:, -1:]
    ends_db = (torch.rand(streams, 2) - 0.5) * 2 * _MOST_TILT_DB
    shares = torch.linspace(0, 1, channels // copies)
    gains_db = ends_db[:, :1] * (1 - shares) + ends_db[:, 1:] * shares
    gains = 10 ** (gains_db * (torch.rand(streams, 1) < 0.5) / 20)
    loud = (torch.stack(moved) + 1).clamp(min=1e-3)
    return (loud ** gains[:, None, :, None] - 1).flatten(2)


_mixer: Mixer
_codec: Codec


def _prepare(corpus: Path) -> None:
    global _mixer, _codec
    torch.set_num_threads(1)
    shape = shapes.load()
    _mixer, _codec = Mixer(corpus, shape.delay, _SEED), Codec(shape).eval()


@torch.no_grad()
def _make(folder: Path, size: tuple[int, ...], easy: int, first: int) -> list[Stream]:
    """Writes the features of a chunk of streams; returns the streams without their audio."""
    features = np.memmap(folder / "features.u8", np.uint8, "r+", shape=size)
    made = []
    for number in range(first, min(first + _CHUNK, size[0])):
        stream = _mixer.stream(np.random.default_rng([_SEED, number]), easy=number < easy)
        features[number] = to_bytes(_codec.filter_bank(torch.as_tensor(stream.audio)[None]))[0]
        nothing = np.zeros(0, np.float32)
        made.append(Stream(nothing, *(getattr(stream, name) for name in TARGETS)))
    return made


def main() -> None:
    """Makes them, on all cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--streams", type=int, default=6000)
    parser.add_argument("--easy", type=int, default=1500)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    codec = Codec(shapes.load())
    with torch.no_grad():
        silence = torch.zeros(1, FRAMES * shapes.FRAME_SAMPLES)
        size = (arguments.streams, *codec.filter_bank(silence).shape[1:])
    np.memmap(folder / "features.u8", np.uint8, "w+", shape=size)
    firsts = range(0, arguments.streams, _CHUNK)
    with ProcessPoolExecutor(
        os.cpu_count(), initializer=_prepare, initargs=(arguments.corpus,)
    ) as pool:
        chunks = list(
            pool.map(
                _make,
                *zip(*((folder, size, arguments.easy, first) for first in firsts), strict=True),
            )
        )
    streams = [stream for chunk in chunks for stream in chunk]
    for name in TARGETS:
        targets = np.stack([getattr(stream, name) for stream in streams]).astype(np.int16)
        np.save(folder / f"{name}.npy", targets)
    (folder / "features.json").write_text(json.dumps({"size": size, "easy": arguments.easy}))


if __name__ == "__main__":
    main()
