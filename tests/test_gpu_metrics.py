"""What a worker's `/metrics` says of cards, on machines that change while it serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from moshi_ctl.gpu_readings import Reading
from support import fake_nvml
from support.exposition import samples
from support.fake_nvml import (
    GIB,
    LOST,
    MIB,
    NO_CARD,
    RTX_2070,
    RTX_2070_CARD,
    RTX_3060_CARD,
    TWO_CARDS,
    Machine,
)
from support.gpus import ONE_INSTANCE, THE_2070_READ, THE_INSTANCE_READ
from support.worker import KEY, Worker, worker

# A reading is a few seconds old at most.
_PAUSE_S = 0.25
_TRIES = 120

GAUGES = {
    "moshi_gpu_memory_used_bytes": "memory_used_bytes",
    "moshi_gpu_memory_total_bytes": "memory_total_bytes",
    "moshi_gpu_utilization_ratio": "utilization_ratio",
    "moshi_gpu_power_watts": "power_watts",
    "moshi_gpu_temperature_celsius": "temperature_celsius",
}


def gauges(reading: Reading) -> dict[str, float]:
    """What `/metrics` is to say of it."""
    return {name: reading[key] for name, key in GAUGES.items() if reading[key] is not None}


def wait_for(server: Worker, expected: dict[str, float], **labels: str) -> dict[str, float]:
    """What `/metrics` says of cards, once that is what is expected or it is late for that."""
    for _ in range(_TRIES):
        found = {
            name: value
            for name, value in samples(server, **labels).items()
            if name.startswith("moshi_gpu_")
        }
        if found == expected:
            break
        time.sleep(_PAUSE_S)
    return found


@contextmanager
def serving(tiny_dir: Path, folder: Path, machine: Machine, **variables: str) -> Iterator[Worker]:
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with worker(
        "tiny-random", cwd=folder, env={**env, **fake_nvml.machine(folder, machine), **variables}
    ) as server:
        yield server


def labels(reading: Reading) -> dict[str, str]:
    return {name: reading[name] for name in ("device", "name", "uuid")}


def test_a_worker_tells_what_its_cards_do_now(tiny_dir: Path, tmp_path: Path) -> None:
    with serving(tiny_dir, tmp_path, RTX_2070) as server:
        expected = gauges(THE_2070_READ)
        assert wait_for(server, expected, **labels(THE_2070_READ)) == expected
        fake_nvml.become(tmp_path, LOST)
        assert wait_for(server, {}) == {}
        busy = replace(RTX_2070_CARD, used_bytes=2 * GIB, utilization_percent=90)
        fake_nvml.become(tmp_path, Machine((busy,)))
        expected |= {
            "moshi_gpu_memory_used_bytes": 2 * GIB + 223 * MIB,
            "moshi_gpu_utilization_ratio": 0.9,
        }
        assert wait_for(server, expected, **labels(THE_2070_READ)) == expected
        assert server.end() == 0


def test_a_worker_tells_only_what_the_driver_tells(tiny_dir: Path, tmp_path: Path) -> None:
    with serving(tiny_dir, tmp_path, ONE_INSTANCE) as server:
        expected = gauges(THE_INSTANCE_READ)
        assert set(expected) == {"moshi_gpu_memory_used_bytes", "moshi_gpu_memory_total_bytes"}
        assert wait_for(server, expected, **labels(THE_INSTANCE_READ)) == expected
        assert wait_for(server, expected) == expected


def test_a_worker_tells_of_each_card_that_cuda_lets_it_use(tiny_dir: Path, tmp_path: Path) -> None:
    with serving(tiny_dir, tmp_path, TWO_CARDS, CUDA_VISIBLE_DEVICES="1,0") as server:
        expected = gauges(THE_2070_READ)
        assert wait_for(server, expected, device="cuda:1", uuid=RTX_2070_CARD.uuid) == expected
        other = samples(server, device="cuda:0", uuid=RTX_3060_CARD.uuid)
        assert other["moshi_gpu_memory_used_bytes"] == 236 * MIB


def test_a_worker_without_a_card_tells_of_none(tiny_dir: Path, tmp_path: Path) -> None:
    with serving(tiny_dir, tmp_path, NO_CARD) as server:
        assert "moshi_gpu_" not in server.get("/metrics")
