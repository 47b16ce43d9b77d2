from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from moshi_ctl import gpu
from moshi_ctl.gpu import GpuProcess, Gpus
from support import fake_nvml
from support.fake_nvml import (
    FULL,
    GIB,
    GPU_IS_LOST,
    H100,
    H100_MIG_CARD,
    MIB,
    MIG,
    RTX_2070,
    RTX_2070_CARD,
    RTX_3060,
    RTX_3060_CARD,
    T4,
    TWO_CARDS,
    XORG,
    Fault,
    Machine,
    Process,
)
from support.gpus import (
    FIRST_INSTANCE,
    FIRST_MIG,
    ONE_INSTANCE,
    SECOND_MIG,
    THE_2070,
    read_one,
    visible,
)

# What is read.


def test_a_card_is_described(tmp_path: Path) -> None:
    (gpus,) = fake_nvml.read(tmp_path, RTX_2070)
    assert gpus == Gpus("570.86.15", (12, 8), (THE_2070,), ())


@pytest.mark.parametrize(
    ("machine", "name", "capability", "total_bytes"),
    [
        (T4, "Tesla T4", (7, 5), 16 * GIB),
        (RTX_3060, "NVIDIA GeForce RTX 3060", (8, 6), 12 * GIB),
        (H100, "NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB),
    ],
)
def test_other_cards(
    tmp_path: Path, machine: Machine, name: str, capability: tuple[int, int], total_bytes: int
) -> None:
    ((found,), problems) = read_one(tmp_path, machine)
    assert (found.name, found.compute_capability, found.total_bytes) == (
        name,
        capability,
        total_bytes,
    )
    assert found.free_bytes == total_bytes - machine.cards[0].reserved_bytes
    assert not problems


def test_cards_are_numbered_in_nvmls_order(tmp_path: Path) -> None:
    found, problems = read_one(tmp_path, TWO_CARDS)
    assert [(card.device, card.index, card.uuid) for card in found] == [
        ("cuda:0", 0, RTX_2070_CARD.uuid),
        ("cuda:1", 1, RTX_3060_CARD.uuid),
    ]
    assert not problems


def test_a_full_card_tells_who_fills_it(tmp_path: Path) -> None:
    ((found,), _) = read_one(tmp_path, FULL)
    assert found.free_bytes == 0
    assert [process.name for process in found.processes] == [
        "/usr/bin/python3",
        "/usr/lib/xorg/Xorg",
    ]
    assert sum(process.used_bytes or 0 for process in found.processes) == found.used_bytes


def test_a_process_is_listed_once_whatever_it_does(tmp_path: Path) -> None:
    processes = (
        Process(10, "unknown share", None),
        Process(20, "both", 300, kind="graphics"),
        Process(20, "both", 200, kind="compute"),
        Process(30, None, 100, kind="mps"),
        Process(40, "in one", None, kind="compute"),
        Process(40, "in one", 400, kind="graphics"),
    )
    machine = Machine((replace(RTX_2070_CARD, processes=processes),))
    ((found,), _) = read_one(tmp_path, machine)
    assert found.processes == (
        GpuProcess(40, "in one", 400),
        GpuProcess(20, "both", 300),
        GpuProcess(30, None, 100),
        GpuProcess(10, "unknown share", None),
    )


def test_many_processes_fit(tmp_path: Path) -> None:
    processes = tuple(Process(number, None, number) for number in range(1, 61))
    ((found,), _) = read_one(tmp_path, Machine((replace(RTX_2070_CARD, processes=processes),)))
    assert [process.pid for process in found.processes] == list(range(60, 0, -1))


def test_what_a_card_does_not_tell_is_left_open(tmp_path: Path) -> None:
    card = replace(RTX_2070_CARD, temperature_c=None, power_mw=None, processes=(), uuid="")
    ((found,), problems) = read_one(tmp_path, Machine((card,)))
    assert found == replace(THE_2070, temperature_c=None, power_w=None, processes=(), uuid=None)
    assert not problems


@pytest.mark.parametrize("bad", ["NVIDIA \udcff\udcfe", "two\rlines", "\x1b[31mred"])
def test_text_that_is_none_counts_as_not_told(tmp_path: Path, bad: str) -> None:
    card = replace(
        RTX_2070_CARD, name=bad, uuid=bad, processes=(replace(XORG, name=f"/usr/bin/{bad}"),)
    )
    (gpus,) = fake_nvml.read(tmp_path, Machine((card,), driver=bad))
    assert gpus.driver_version is None
    assert gpus.found == (
        replace(
            THE_2070, name="unknown", uuid=None, processes=(GpuProcess(1234, None, 310 * MIB),)
        ),
    )
    assert not gpus.problems


def test_each_reading_is_new_and_ends_what_it_began(tmp_path: Path) -> None:
    fuller = replace(RTX_2070_CARD, used_bytes=GIB)
    first, second = fake_nvml.read(tmp_path, RTX_2070, Machine((fuller,)))
    assert [gpus.found[0].used_bytes for gpus in (first, second)] == [316 * MIB, GIB]
    called = [function for function, _ in fake_nvml.calls(tmp_path)]
    assert called.count("nvmlInitWithFlags") == called.count("nvmlShutdown") == 2
    assert called[-1] == "nvmlShutdown"


# Which cards CUDA lets this process use.


@pytest.mark.parametrize(
    ("value", "expected", "complaint"),
    [
        ("1,0", [("cuda:0", 1), ("cuda:1", 0)], None),
        ("GPU-3060", [("cuda:0", 1)], None),
        ("", [], "CUDA_VISIBLE_DEVICES= hides all cards"),
        ("7", [], "CUDA_VISIBLE_DEVICES=7 names no card of this machine (it has 0 to 1)"),
        (
            "1,7",
            [("cuda:0", 1)],
            (
                "CUDA_VISIBLE_DEVICES=1,7: '7' names no card of this machine (it has 0 to 1); "
                "CUDA ignores it and what follows"
            ),
        ),
        (
            "0,0",
            [],
            "CUDA_VISIBLE_DEVICES=0,0 names the same twice, for which CUDA uses no card at all",
        ),
        (
            "MIG-1",
            [],
            "CUDA_VISIBLE_DEVICES=MIG-1 names no MIG instance of this machine (it has none)",
        ),
    ],
)
def test_visible_devices(
    tmp_path: Path, value: str, expected: list[tuple[str, int]], complaint: str | None
) -> None:
    found, problems = read_one(tmp_path, TWO_CARDS, visible(value))
    assert [(card.device, card.index) for card in found] == expected
    assert [problem.message for problem in problems] == ([complaint] if complaint else [])
    assert all("nvidia-smi -L" in (problem.hint or "") for problem in problems)


def test_a_card_that_was_not_chosen_is_no_problem(tmp_path: Path) -> None:
    machine = TWO_CARDS.but(Fault("nvmlDeviceGetMemoryInfo*", GPU_IS_LOST, card=0))
    found, problems = read_one(tmp_path, machine, visible("1"))
    assert [card.index for card in found] == [1]
    assert not problems


@pytest.mark.parametrize(("before", "after"), [(None, "PCI_BUS_ID"), ("FASTEST_FIRST",) * 2])
def test_cuda_is_told_the_order(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    # So that what the call sets is taken back.
    monkeypatch.setenv("CUDA_DEVICE_ORDER", before or "")
    if before is None:
        del os.environ["CUDA_DEVICE_ORDER"]
    gpu.number_cards_as_nvml_does()
    assert os.environ["CUDA_DEVICE_ORDER"] == after


# Cards in MIG mode.


def test_an_instance_is_a_device(tmp_path: Path) -> None:
    (gpus,) = fake_nvml.read(tmp_path, ONE_INSTANCE)
    assert gpus.found == (FIRST_INSTANCE,)
    assert gpus.problems == ()


def test_an_instance_tells_of_itself(tmp_path: Path) -> None:
    used_by = (Process(7, "/usr/bin/worker", GIB),)
    told = replace(FIRST_MIG, capability=(9, 1), processes=used_by)
    ((found,), _) = read_one(tmp_path, Machine((replace(H100_MIG_CARD, instances=(told,)),)))
    processes = (GpuProcess(7, "/usr/bin/worker", GIB),)
    assert found == replace(FIRST_INSTANCE, compute_capability=(9, 1), processes=processes)


@pytest.mark.parametrize("env", [{}, visible("0"), visible(H100_MIG_CARD.uuid)])
def test_only_the_first_instance_is_used(tmp_path: Path, env: dict[str, str]) -> None:
    found, problems = read_one(tmp_path, MIG, env)
    assert found == (FIRST_INSTANCE,)
    (problem,) = problems
    assert problem.message == (
        f"left out: {SECOND_MIG.uuid} of GPU 0: CUDA gives a process one MIG instance only, "
        f"here {FIRST_MIG.uuid} of GPU 0"
    )
    assert "CUDA_VISIBLE_DEVICES" in (problem.hint or "")


@pytest.mark.parametrize("value", [SECOND_MIG.uuid, f"MIG-{H100_MIG_CARD.uuid}/2/0"])
def test_another_instance_may_be_named(tmp_path: Path, value: str) -> None:
    found, problems = read_one(tmp_path, MIG, visible(value))
    assert found == (replace(FIRST_INSTANCE, uuid=SECOND_MIG.uuid),)
    assert not problems


def test_the_first_instance_named_is_used(tmp_path: Path) -> None:
    ((found,), problems) = read_one(tmp_path, MIG, visible(f"{SECOND_MIG.uuid},{FIRST_MIG.uuid}"))
    assert found.uuid == SECOND_MIG.uuid
    assert [problem.message.split(":")[1].strip() for problem in problems] == [
        f"{FIRST_MIG.uuid} of GPU 0"
    ]


def test_a_whole_card_is_not_used_beside_an_instance(tmp_path: Path) -> None:
    cards = (RTX_3060_CARD, replace(H100_MIG_CARD, instances=(FIRST_MIG,)))
    found, problems = read_one(tmp_path, Machine(cards))
    assert found == (replace(FIRST_INSTANCE, index=1),)
    assert "left out: GPU 0 (NVIDIA GeForce RTX 3060): CUDA gives" in problems[0].message
    found, problems = read_one(tmp_path, Machine(cards), visible("0"))
    assert [(card.device, card.name) for card in found] == [("cuda:0", RTX_3060_CARD.name)]
    assert not problems


def test_a_mig_card_without_instances_is_no_device(tmp_path: Path) -> None:
    cards = (replace(H100_MIG_CARD, instances=()), RTX_3060_CARD)
    found, problems = read_one(tmp_path, Machine(cards))
    assert [(card.device, card.index) for card in found] == [("cuda:0", 1)]
    (problem,) = problems
    assert problem.message == (
        "GPU 0 (NVIDIA H100 80GB HBM3): it is in MIG mode and has no instances"
    )
    assert "nvidia-smi -i 0 -mig 0" in (problem.hint or "")


def test_an_instance_that_may_not_be_used_is_passed_over(tmp_path: Path) -> None:
    # Of the card's slots, the first call is about the first one.
    function = "nvmlDeviceGetMigDeviceHandleByIndex"
    (gpus,) = fake_nvml.read(tmp_path, MIG.but(Fault(function, fake_nvml.NO_PERMISSION, after=1)))
    assert gpus.found == (FIRST_INSTANCE,)
    assert gpus.problems == ()
