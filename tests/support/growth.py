"""Whether a process grows with what it has done: readings of it, and a judgement of their slope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

WARM_UP_SHARE = 0.25
"""The part of all readings, from the first on, that is not judged: caches and pools fill up."""

# Of all slopes between two readings, this share is below the one that counts. The median would call
# a single step in the middle a slope; this one takes three steps or more.
_QUANTILE = 0.25


@dataclass(frozen=True)
class Reading:
    """A process after it has done so much.

    Attributes:
        done: Sessions that are over, or seconds of audio.
        resident_bytes: Memory.
        descriptors: Open files and sockets.
        threads: Threads.
    """

    done: float
    resident_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int, done: float) -> Reading:
        process = psutil.Process(pid)
        with process.oneshot():
            resident_bytes = process.memory_info().rss
            return cls(done, resident_bytes, process.num_fds(), process.num_threads())


@dataclass(frozen=True)
class Growth:
    """By how much a process grows with every unit of what it does.

    Attributes:
        resident_bytes: Memory.
        descriptors: Open files and sockets.
        threads: Threads.
    """

    resident_bytes: float
    descriptors: float
    threads: float

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> Growth:
        """Judges readings, the first quarter of which is warm-up."""
        done = [reading.done for reading in readings]
        return cls(
            slope(done, [reading.resident_bytes for reading in readings]),
            slope(done, [reading.descriptors for reading in readings]),
            slope(done, [reading.threads for reading in readings]),
        )


def slope(done: Sequence[float], values: Sequence[float]) -> float:
    """How fast values rise, after warm-up: three of four pairs of them rise faster.

    Theil and Sen take the median of the pairs' slopes, which outliers do not move. Their lower
    quartile is not moved by a step either: what is allocated once is no leak, wherever it happens.

    Raises:
        ValueError: When fewer than eight values are left after the warm-up.
    """
    x, y = np.asarray(done, dtype=float), np.asarray(values, dtype=float)
    judged = x >= x[0] + WARM_UP_SHARE * (x[-1] - x[0]) if len(x) else np.zeros(0, dtype=bool)
    x, y = x[judged], y[judged]
    if len(x) < 8:
        raise ValueError(f"{len(x)} readings after the warm-up say nothing; take more")
    first, second = np.triu_indices(len(x), k=1)
    return float(np.quantile((y[second] - y[first]) / (x[second] - x[first]), _QUANTILE))
