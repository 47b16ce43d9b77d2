"""Streams as the filter bank hears them, made once and learnt from many times.

    python -m training.features CORPUS FOLDER

The filter bank is most of the encoder's arithmetic and is not trained, so what it makes of some
hours of streams is kept: the loudness of each band. Loudness can still be changed when it is learnt
from, so every stream is heard in other voices, through other microphones and in other noise each
time (`elsewhere`).
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
from training.model import Codec
from training.streams import FRAMES, Mixer, Stream

_SEED = 3
_CHUNK = 60
TARGETS = ("text", "pauses", "states", "phonemes")

# How far `elsewhere` moves the ends of the range of bands, and at how many places it makes them so
# much louder or quieter, with straight lines between.
_MOST_BANDS = 1.5
_PLACES, _MOST_DB = 5, 8.0
# So many bands next to each other may be missing.
_MOST_MISSING = 5
_NOISE_CHANCE, _LEAST_SNR_DB, _MOST_SNR_DB = 0.7, -2.0, 22.0
# Less than this share of the loudest moment's power is no speech, and a level below this no sound.
_LEAST_SHARE, _LEAST_LEVEL = 1e-3, 1e-3


class Streams:
    """Loudness and targets in a folder. N streams, of which the first `easy` are easy."""

    def __init__(self, folder: Path) -> None:
        description = json.loads((folder / "features.json").read_text())
        self._loudness = np.load(folder / "loudness.npy", mmap_mode="r")
        self._noises = torch.as_tensor(np.load(folder / "noises.npy"))
        self.easy: int = description["easy"]
        self._targets = {name: np.load(folder / f"{name}.npy") for name in TARGETS}

    def __len__(self) -> int:
        return len(self._loudness)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The streams of these numbers: `loudness`, B × time × bands, and their targets."""
        chosen = np.sort(indices.numpy())
        targets = {
            name: torch.as_tensor(values[chosen]).long() for name, values in self._targets.items()
        }
        return {"loudness": torch.as_tensor(self._loudness[chosen]).float(), **targets}

    def noises(self, count: int) -> Tensor:
        """As many of the noises, each from any moment on; count × time × bands."""
        length = self._noises.shape[1]
        chosen = self._noises[torch.randint(len(self._noises), (count,))]
        moments = torch.randint(length, (count,)).tolist()
        return torch.stack([n.roll(m, 0) for n, m in zip(chosen, moments, strict=True)]).float()


def elsewhere(speech: Tensor, noises: Tensor | None) -> Tensor:
    """As if other people had said it into other microphones, many of them in noise.

    All are B × time × bands. Neighbouring bands are neighbouring pitches, so moving all of them up
    or down makes a throat shorter or longer. Powers of sounds that have nothing to do with each
    other add up.
    """
    streams, _, bands = speech.shape
    heard = speech @ (_throats(streams, bands) * _gains(streams, bands) * _present(streams, bands))
    if noises is None:
        return heard
    sound = noises * _gains(streams, bands)
    snr_db = torch.empty(streams).uniform_(_LEAST_SNR_DB, _MOST_SNR_DB)
    level = _level(heard) * 10 ** (-snr_db / 20) / _level(sound)
    level *= torch.rand(streams) < _NOISE_CHANCE
    sound *= level[:, None, None]
    louder = torch.where(heard.abs() > sound.abs(), heard, sound)
    # The mean of half a wave of a low band may be less than nothing, but ELU stops at -1.
    return (torch.hypot(heard, sound) * louder.sign()).clamp(min=-1.0)


def _throats(streams: int, bands: int) -> Tensor:
    """B × band heard × band; half of the streams stay as they are."""
    ends = torch.empty(streams, 2).uniform_(-_MOST_BANDS, _MOST_BANDS)
    ends *= torch.rand(streams, 1) < 0.5
    shares = torch.linspace(0, 1, bands)
    numbers = torch.arange(bands)
    source = numbers + ends[:, :1] * (1 - shares) + ends[:, 1:] * shares
    source = source.clamp(0, bands - 1)
    return (1 - (numbers[:, None] - source[:, None]).abs()).clamp(min=0)


def _gains(streams: int, bands: int) -> Tensor:
    """B × 1 × bands; half of the streams stay as they are."""
    places_db = torch.empty(streams, 1, _PLACES).uniform_(-_MOST_DB, _MOST_DB)
    places_db *= torch.rand(streams, 1, 1) < 0.5
    curves_db = torch.nn.functional.interpolate(places_db, bands, mode="linear", align_corners=True)
    return 10 ** (curves_db / 20)


def _present(streams: int, bands: int) -> Tensor:
    """B × 1 × bands, 0 for what is missing: SpecAugment's frequency mask (arXiv:1904.08779)."""
    width = torch.randint(_MOST_MISSING + 1, (streams, 1, 1)) * (torch.rand(streams, 1, 1) < 0.3)
    first = torch.randint(bands - _MOST_MISSING, (streams, 1, 1))
    numbers = torch.arange(bands)
    return ((numbers < first) | (numbers >= first + width)).float()


def _level(loudness: Tensor) -> Tensor:
    """Of each stream where it is not silent; 1 for silence. B × time × bands → B."""
    power = loudness.square().mean(2)
    active = power > _LEAST_SHARE * power.amax(1, keepdim=True)
    level = ((power * active).sum(1) / active.sum(1).clamp(min=1)).sqrt()
    return torch.where(level < _LEAST_LEVEL, 1.0, level)


_mixer: Mixer
_codec: Codec


def _prepare(corpus: Path) -> None:
    global _mixer, _codec
    torch.set_num_threads(1)
    shape = shapes.load()
    _mixer, _codec = Mixer(corpus, shape.delay, _SEED), Codec(shape).eval()


@torch.no_grad()
def _write(file: Path, number: int, audio: np.ndarray) -> None:
    loudness = np.load(file, mmap_mode="r+")
    loudness[number] = _codec.loudness(torch.as_tensor(audio)[None])[0].half().numpy()


def _make_streams(folder: Path, numbers: range, easy: int) -> list[Stream]:
    """Writes the loudness of streams; returns them without their audio."""
    made = []
    for number in numbers:
        stream = _mixer.stream(np.random.default_rng([_SEED, number]), easy=number < easy)
        _write(folder / "loudness.npy", number, stream.audio)
        nothing = np.zeros(0, np.float32)
        made.append(Stream(nothing, *(getattr(stream, name) for name in TARGETS)))
    return made


def _make_noises(folder: Path, numbers: range) -> None:
    for number in numbers:
        sound = _mixer.noise(np.random.default_rng([_SEED, 1, number]))
        # Like speech at its usual level.
        _write(folder / "noises.npy", number, 0.05 * sound)


def main() -> None:
    """Makes them, on all cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--easy", type=int, default=2500)
    parser.add_argument("--noises", type=int, default=800)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        silence = torch.zeros(1, FRAMES * shapes.FRAME_SAMPLES)
        size = Codec(shapes.load()).loudness(silence).shape[1:]
    for name, count in [("loudness", arguments.streams), ("noises", arguments.noises)]:
        file = folder / f"{name}.npy"
        np.lib.format.open_memmap(file, "w+", np.float16, (count, *size))
    with ProcessPoolExecutor(
        os.cpu_count(), initializer=_prepare, initargs=(arguments.corpus,)
    ) as pool:
        noises = [pool.submit(_make_noises, folder, c) for c in _chunks(arguments.noises)]
        chunks = [
            pool.submit(_make_streams, folder, c, arguments.easy)
            for c in _chunks(arguments.streams)
        ]
        for done in noises:
            done.result()
        streams = [stream for chunk in chunks for stream in chunk.result()]
    for name in TARGETS:
        targets = np.stack([getattr(stream, name) for stream in streams]).astype(np.int16)
        np.save(folder / f"{name}.npy", targets)
    (folder / "features.json").write_text(json.dumps({"easy": arguments.easy}))


def _chunks(count: int) -> list[range]:
    return [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]


if __name__ == "__main__":
    main()
