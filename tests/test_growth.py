"""The judgement of a process's growth, with series that are made up."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from support.growth import Growth, Reading, slope

SESSIONS = 10_000
READINGS = 100
MB = 1_000_000.0
MOST_BYTES = 512.0
"""What the judgement has to tell apart here, for each session."""

DONE = np.linspace(0, SESSIONS, READINGS)
Series = NDArray[np.float64]


def noise(seed: int, size_bytes: float = 0.2 * MB) -> Series:
    return np.random.default_rng(seed).normal(0, size_bytes, READINGS)


def judged(series: Series) -> float:
    return slope(DONE.tolist(), (80 * MB + series).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_growth(seed: int) -> None:
    assert abs(judged(noise(seed, MB))) < MOST_BYTES


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bytes_per_session", [2 * MOST_BYTES, 100 * MOST_BYTES])
def test_a_leak_is_found_in_noise(seed: int, bytes_per_session: float) -> None:
    measured = judged(bytes_per_session * DONE + noise(seed))
    assert MOST_BYTES < measured <= 1.2 * bytes_per_session


def test_without_noise_a_leak_is_measured_exactly() -> None:
    assert judged(1_000.0 * DONE) == pytest.approx(1_000.0)
    assert judged(-1_000.0 * DONE) == pytest.approx(-1_000.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at", [0.3, 0.5, 0.625, 0.7, 0.95])
def test_a_single_step_is_no_growth_wherever_it_is(seed: int, at: float) -> None:
    step = np.where(at * SESSIONS <= DONE, 30 * MB, 0.0)
    assert judged(step + noise(seed)) < MOST_BYTES


def test_a_leak_that_comes_in_steps_is_one() -> None:
    """An allocator takes memory from the system in large pieces."""
    leaked = 2 * MOST_BYTES * DONE
    assert judged(np.floor(leaked / MB) * MB) > MOST_BYTES


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_growth_while_warming_up_is_none(share: float) -> None:
    filling = 60 * MB * (1 - np.exp(-DONE / (share * SESSIONS)))
    assert judged(filling + noise(1)) < MOST_BYTES


def test_a_leak_behind_a_warm_up_is_found() -> None:
    filling = 60 * MB * (1 - np.exp(-DONE / (0.05 * SESSIONS)))
    assert judged(filling + 2 * MOST_BYTES * DONE + noise(1)) > MOST_BYTES


def test_outliers_are_no_growth() -> None:
    """A reading in the middle of something large."""
    peaks = np.zeros(READINGS)
    peaks[[30, 50, 80, 98, 99]] = 500 * MB
    assert judged(peaks + noise(1)) < MOST_BYTES


def test_memory_that_is_given_back_is_no_growth() -> None:
    sawtooth = 20 * MB * ((DONE % 2_500) / 2_500)
    assert judged(sawtooth + noise(1)) < MOST_BYTES


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_readings_are_no_judgement(count: int) -> None:
    with pytest.raises(ValueError, match="readings after the warm-up"):
        slope(list(range(count)), [1.0] * count)


def test_each_of_the_three_is_judged() -> None:
    steady = [Reading(done, 80_000_000, 20, 8) for done in range(20)]
    assert Growth.of(steady) == Growth(0, 0, 0)
    growing = [Reading(n, 80_000_000 + 5 * n, 20 + 2 * n, 8 + n) for n in range(20)]
    growth = Growth.of(growing)
    measured = (growth.resident_bytes, growth.descriptors, growth.threads)
    assert measured == pytest.approx((5, 2, 1))


def test_a_process_is_read_as_it_is() -> None:
    """Held bytes, files and threads of another process show in its reading."""
    script = """if True:
        import sys, threading
        print(flush=True)
        sys.stdin.readline()
        held = bytearray(b"x" * 50_000_000), [open("/dev/null") for _ in range(7)]
        waits = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(3)]
        for thread in waits: thread.start()
        print(flush=True)
        sys.stdin.readline()"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = Reading.of(process.pid, 0)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        after = Reading.of(process.pid, 1)
        process.communicate("\n")
    assert after.resident_bytes - before.resident_bytes > 45_000_000
    assert after.descriptors - before.descriptors == 7
    assert after.threads - before.threads == 3
