"""Audio files as a stream of samples the server can take, whatever their format and rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from moshi_ctl.errors import AudioError
from moshi_ctl.protocol import FRAME_SAMPLES, SAMPLE_RATE_HZ, Samples

_BLOCK_S = 1.0
_READ_BY_LIBSNDFILE = "WAV, MP3, FLAC, Ogg Vorbis and Ogg Opus can be read"


@dataclass(frozen=True)
class AudioFile:
    """An audio file that could be opened.

    Attributes:
        path: Where it is.
        duration_s: Its length as its header tells.
    """

    path: Path
    duration_s: float


def probe(path: Path) -> AudioFile:
    """Looks at the header of an audio file.

    Raises:
        AudioError: When it cannot be read as audio.
    """
    with _open(path) as source:
        return AudioFile(path, source.frames / source.samplerate)


def blocks(path: Path) -> Iterator[Samples]:
    """The file's audio, mono at `SAMPLE_RATE_HZ`, about a second at a time.

    Raises:
        AudioError: When it cannot be read as audio.
    """
    with _open(path) as source:
        rate_hz = source.samplerate
        resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        block_frames = max(1, int(rate_hz * _BLOCK_S))
        while True:
            block = _read(source, path, block_frames)
            is_last = len(block) < block_frames
            mono = block.mean(axis=1, dtype=np.float32)
            resampled = (
                mono if rate_hz == SAMPLE_RATE_HZ else resampler.resample_chunk(mono, last=is_last)
            )
            if len(resampled):
                yield resampled
            if is_last:
                return


async def in_background(blocks: Iterable[Samples]) -> AsyncGenerator[Samples, None]:
    """Blocks, each computed in a thread, so that nothing else waits for it."""
    rest = iter(blocks)
    while (block := await asyncio.to_thread(next, rest, None)) is not None:
        yield block


async def paced(blocks: Iterable[Samples]) -> AsyncGenerator[Samples, None]:
    """Audio as a microphone would give it: a frame at a time, each when it has been spoken."""
    start_s = time.monotonic()
    spoken_samples = 0
    async with aclosing(in_background(blocks)) as source:
        async for block in source:
            for begin in range(0, len(block), FRAME_SAMPLES):
                frame = block[begin : begin + FRAME_SAMPLES]
                spoken_samples += len(frame)
                due_s = start_s + spoken_samples / SAMPLE_RATE_HZ
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                yield frame


def _open(path: Path) -> soundfile.SoundFile:
    if not path.exists():
        raise AudioError(f"{path}: no such file", hint="check the path")
    if not path.is_file():
        raise AudioError(f"{path}: not a file", hint="name the audio files one by one")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(
            f"{path}: not readable as audio: {error}", hint=_READ_BY_LIBSNDFILE
        ) from error


def _read(source: soundfile.SoundFile, path: Path, frames: int) -> Samples:
    try:
        block: Samples = source.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: damaged after {source.tell() / source.samplerate:.1f} s: {error}",
            hint="convert it anew from its source",
        ) from error
    return block
