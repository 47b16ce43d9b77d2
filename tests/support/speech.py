"""Audio to test with."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from moshi_ctl import audio
from moshi_ctl.protocol import SAMPLE_RATE_HZ, Samples

SPEECH = Path(__file__).parents[2] / "assets" / "speech.wav"


@cache
def speech(seconds: float = 3.0) -> Samples:
    """The beginning of the bundled recording, 24 kHz mono."""
    samples = np.concatenate(list(audio.blocks(SPEECH)))
    return samples[: round(seconds * SAMPLE_RATE_HZ)]


def write(path: Path, samples: Samples, rate_hz: int, channels: int = 1, subtype: str = "") -> Path:
    """Writes `samples` (24 kHz mono) as a file of another rate and with more channels."""
    resampled = soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz)
    data = np.repeat(resampled[:, None], channels, axis=1)
    soundfile.write(path, data, rate_hz, subtype=subtype or None)
    return path
