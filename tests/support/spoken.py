"""Recordings of words that the embedded model gets right, with what is said when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from moshi_ctl import audio
from moshi_ctl.protocol import Samples

ASSETS = Path(__file__).parents[2] / "assets"
NAMES = ("digits", "commands")


@dataclass(frozen=True)
class Spoken:
    """A recording.

    Attributes:
        path: Its file, 16 kHz FLAC.
        words: What is said.
        starts_s: When each word begins, and
        ends_s: when it ends, by the synthesizer that said it.
    """

    path: Path
    words: tuple[str, ...]
    starts_s: tuple[float, ...]
    ends_s: tuple[float, ...]

    def samples(self) -> Samples:
        """24 kHz mono."""
        return np.concatenate(list(audio.blocks(self.path)))


@cache
def spoken(name: str) -> Spoken:
    """One of `NAMES`."""
    words = json.loads((ASSETS / f"{name}.json").read_text())
    return Spoken(
        ASSETS / f"{name}.flac",
        tuple(word["text"] for word in words),
        tuple(word["start_s"] for word in words),
        tuple(word["end_s"] for word in words),
    )
