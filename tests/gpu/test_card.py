"""What only a card can show: that it computes what it should, and has room for what was planned.

`make test-gpu` runs these, on the card of this machine that a worker would choose. The model is STT
1B with random weights, or that of the configuration that MOSHI_CTL_TEST_CONFIG names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moshi_ctl import devices, gpu
from moshi_ctl.devices import CUDA
from moshi_ctl.gpu import Gpu
from support import cli

ROOT = Path(__file__).resolve().parents[2]
CONFIG = os.environ.get("MOSHI_CTL_TEST_CONFIG")
SHIPPED = ROOT / "configs" / "stt-1b-en_fr.toml"
BATCH_SIZE = re.compile(r"^batch_size = .*$", re.MULTILINE)
PRECISIONS = ("f32", "f16", "q8")
LOADING_S = 600.0
TESTING_S = 3600.0
MIB = 2**20


def card_or_reason() -> Gpu | str:
    """The card with the most free memory; or why there is none."""
    machine = devices.read_machine()
    why = "; ".join(problem.message for problem in machine.gpus.problems) or "there is no card"
    usable = []
    for card in machine.gpus.found:
        obstacle = devices.why_not(
            CUDA, machine.accelerators, machine.gpus, card.compute_capability
        )
        if obstacle is None:
            usable.append(card)
        else:
            why = f"{card.name}: {obstacle.message}"
    return max(usable, key=lambda card: card.free_bytes) if usable else why


CARD = card_or_reason()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(isinstance(CARD, str), reason=f"no card that computes: {CARD}"),
]


@pytest.fixture(name="card")
def _card() -> Gpu:
    assert isinstance(CARD, Gpu)
    return CARD


def free_bytes(card: Gpu) -> int:
    return next(one.free_bytes for one in gpu.read().found if one.device == card.device)


@dataclass
class Watched:
    """What a process did, and how much of the card was free at the least while it ran."""

    results: dict[str, Any]
    least_free_bytes: int


def bench(card: Gpu, *arguments: str) -> Watched:
    """`moshi-ctl bench` over full contexts."""
    of_config = () if CONFIG is None else ("--config", CONFIG)
    least = free_bytes(card)
    over = threading.Event()

    def watch() -> None:
        nonlocal least
        while not over.wait(0.05):
            least = min(least, free_bytes(card))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = cli.run(
            "bench", "--device", card.device, "--context", "full", "--json",
            *of_config, *arguments, cwd=ROOT, env=dict(os.environ), timeout_s=LOADING_S,
        )  # fmt: skip
    finally:
        over.set()
        watcher.join()
    assert result.returncode == 0, result.stderr
    return Watched(json.loads(result.stdout), least)


def planned(card: Gpu, folder: Path, precision: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module and the device of a plan with as many lanes as fit."""
    config = folder / "config.toml"
    text, changed = BATCH_SIZE.subn('batch_size = "auto"', Path(CONFIG or SHIPPED).read_text())
    assert changed == 1
    config.write_text(text)
    result = cli.run(
        "plan", "--config", config, "--device", card.device, "--precision", precision, "--json",
        cwd=folder, env=dict(os.environ),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    (module,), (device,) = plan["modules"].values(), plan["devices"]
    return module, device


@pytest.mark.parametrize(
    "name",
    [
        "the_published_codec_with_32_codebooks_and_vad_heads",
        "conditioned",
        "context_shorter_than_the_audio",
        "sixteen_bits",
        "eight_bits",
        "bf16",
    ],
)
def test_it_computes_what_the_reference_computes(name: str, card: Gpu) -> None:
    command = [
        *("cargo", "test", "--release", "--locked", "--manifest-path", "rust/Cargo.toml"),
        *("--package", "moshi-ctl-reference", "--features", "cuda", "--test", "card"),
        *("--", "--exact", name, "--nocapture"),
    ]
    env = {**os.environ, "MOSHI_CTL_TEST_DEVICE": card.device}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TESTING_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_process_takes_what_was_planned(precision: str, card: Gpu, tmp_path: Path) -> None:
    module, device = planned(card, tmp_path, precision)
    lanes = min(8, module["lanes"])
    before = free_bytes(card)
    watched = bench(card, "--precision", precision, "--lanes", str(lanes), "--steps", "5")
    taken = before - watched.least_free_bytes
    weights = module["lm_weights_bytes"] + module["codec_weights_bytes"]
    of_model = weights + module["workspace_bytes"] + lanes * module["lane_bytes"]
    estimate = of_model + device["driver_bytes"]
    print(
        f"{precision}, {lanes} lanes: {taken / MIB:.0f} MiB taken, {estimate / MIB:.0f} planned, "
        f"the driver has {(taken - watched.results['card_bytes']) / MIB:.0f} of them"
    )
    assert abs(watched.results["card_bytes"] / of_model - 1) <= 0.05
    assert abs(estimate - taken) <= 0.05 * taken


@pytest.mark.parametrize("precision", PRECISIONS)
def test_as_many_lanes_as_are_planned_fill_the_card(
    precision: str, card: Gpu, tmp_path: Path
) -> None:
    module, device = planned(card, tmp_path, precision)
    lanes = module["lanes"]
    watched = bench(card, "--precision", precision, "--lanes", str(lanes), "--steps", "5")
    (measured,) = watched.results["measurements"]
    assert measured["lanes"] == lanes
    print(
        f"{precision}: {lanes} lanes, {watched.least_free_bytes / MIB:.0f} MiB left free, "
        f"a step of all takes {measured['step_median_ms']:.1f} ms"
    )
    if module["limit"] == "memory":
        most_free = device["reserve_bytes"] + module["lane_bytes"] + 0.05 * module["total_bytes"]
        assert 0 < watched.least_free_bytes <= most_free


@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps_of_any_number_of_lanes(precision: str, card: Gpu, tmp_path: Path) -> None:
    module, _ = planned(card, tmp_path, precision)
    wanted = [*doubling(module["lanes"]), module["lanes"]]
    numbers = ",".join(map(str, dict.fromkeys(wanted)))
    watched = bench(card, "--precision", precision, "--lanes", numbers, "--steps", "30")
    measured = watched.results["measurements"]
    assert [one["lanes"] for one in measured] == list(dict.fromkeys(wanted))
    assert all(one["step_median_ms"] > 0 for one in measured)
    print(f"{precision}: lanes, median and 99th percentile of a step in ms")
    for one in measured:
        print(f"{one['lanes']:5} {one['step_median_ms']:8.1f} {one['step_p99_ms']:8.1f}")


def doubling(most: int) -> Iterator[int]:
    """1, 2, 4 and so on below `most`."""
    lanes = 1
    while lanes < most:
        yield lanes
        lanes *= 2
