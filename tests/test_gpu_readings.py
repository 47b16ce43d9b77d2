"""What is read of cards while a worker serves, on machines that change meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from moshi_ctl import gpu_readings, nvml
from moshi_ctl.gpu import Gpus, Problem
from support import fake_nvml
from support.fake_nvml import (
    ANY_CARD,
    DRIVER_470,
    FULL,
    GIB,
    GPU_IS_LOST,
    H100_MIG_CARD,
    LOST,
    MIB,
    MIG,
    NO_CARD,
    RTX_2070,
    RTX_2070_CARD,
    RTX_3060_CARD,
    TWO_CARDS,
    Card,
    Fault,
    Machine,
)
from support.gpus import (
    FIRST_INSTANCE,
    FIRST_MIG,
    ONE_INSTANCE,
    SECOND_MIG,
    THE_2070,
    THE_2070_READ,
    THE_INSTANCE_READ,
    visible,
)

# NVML's codes of errors, one that it may get, and one that is none.
CODES = (
    *sorted(
        {
            code
            for name, code in vars(pynvml).items()
            if name.startswith("NVML_ERROR_") and isinstance(code, int)
        }
    ),
    31,
    12345,
)


def with_card(**changes: Any) -> Machine:
    return Machine((replace(RTX_2070_CARD, **changes),))


def devices(readings: list[gpu_readings.Reading]) -> list[str]:
    return [reading["device"] for reading in readings]


def called(folder: Path) -> list[str]:
    """What the reader called, in order: what comes after the search for cards at the start."""
    functions = [function for function, _ in fake_nvml.calls(folder)]
    return functions[functions.index("nvmlShutdown") + 1 :]


# What is read.


def test_a_card_is_read(tmp_path: Path) -> None:
    assert fake_nvml.readings(tmp_path, RTX_2070) == [[THE_2070_READ]]


def test_each_reading_is_new(tmp_path: Path) -> None:
    busy = with_card(
        used_bytes=2 * GIB, utilization_percent=100, power_mw=185_000, temperature_c=81
    )
    idle = with_card(used_bytes=0, utilization_percent=0, power_mw=0, temperature_c=0)
    first, second, third = fake_nvml.readings(tmp_path, RTX_2070, busy, idle)
    assert first == [THE_2070_READ]
    assert second == [
        {
            **THE_2070_READ,
            "memory_used_bytes": 2 * GIB + 223 * MIB,
            "utilization_ratio": 1.0,
            "power_watts": 185.0,
            "temperature_celsius": 81,
        }
    ]
    assert third == [
        {
            **THE_2070_READ,
            "memory_used_bytes": 223 * MIB,
            "utilization_ratio": 0.0,
            "power_watts": 0.0,
            "temperature_celsius": 0,
        }
    ]


def test_a_full_card_is_read_as_full(tmp_path: Path) -> None:
    ((reading,),) = fake_nvml.readings(tmp_path, FULL)
    assert reading["memory_used_bytes"] == reading["memory_total_bytes"] == 8 * GIB


def test_used_memory_is_all_that_is_taken_with_any_driver(tmp_path: Path) -> None:
    assert fake_nvml.readings(tmp_path, DRIVER_470) == [[THE_2070_READ]]


def test_cards_are_read_in_cudas_order(tmp_path: Path) -> None:
    read = fake_nvml.readings(tmp_path, TWO_CARDS, TWO_CARDS, env=visible("1,0"))
    expected = [("cuda:0", RTX_3060_CARD.uuid), ("cuda:1", RTX_2070_CARD.uuid)]
    assert [[(one["device"], one["uuid"]) for one in reading] for reading in read] == [expected] * 2


def test_cards_that_were_not_chosen_are_left_alone(tmp_path: Path) -> None:
    ((reading,),) = fake_nvml.readings(tmp_path, TWO_CARDS, env=visible("1"))
    assert (reading["device"], reading["name"]) == ("cuda:0", RTX_3060_CARD.name)
    started = [function for function, _ in fake_nvml.calls(tmp_path)].index("nvmlShutdown")
    cards = {card for _, card in fake_nvml.calls(tmp_path)[started + 1 :]}
    assert cards == {1, ANY_CARD}


@pytest.mark.parametrize("value", ["", "7"])
def test_hidden_cards_are_not_read(tmp_path: Path, value: str) -> None:
    (gpus,) = fake_nvml.read(tmp_path, TWO_CARDS, env=visible(value))
    assert gpus.problems
    assert gpu_readings.reader(gpus) is None


@pytest.mark.parametrize("machine", [NO_CARD, fake_nvml.NOT_LOADED, LOST])
def test_without_a_card_there_is_nothing_to_read(tmp_path: Path, machine: Machine) -> None:
    (gpus,) = fake_nvml.read(tmp_path, machine)
    assert gpu_readings.reader(gpus) is None


def test_without_a_driver_there_is_nothing_to_read() -> None:
    assert gpu_readings.reader(Gpus(None, None, (), (Problem("no driver", None),))) is None


@pytest.mark.parametrize(
    ("untold", "lacking"),
    [
        ({"utilization_percent": None}, {"utilization_ratio": None}),
        ({"power_mw": None}, {"power_watts": None}),
        ({"temperature_c": None}, {"temperature_celsius": None}),
        # More than all of the time is no share of it.
        ({"utilization_percent": 255}, {"utilization_ratio": None}),
        ({"name": ""}, {"name": "unknown"}),
        ({"uuid": ""}, {"uuid": ""}),
    ],
)
def test_what_a_card_does_not_tell_is_left_open(
    tmp_path: Path, untold: dict[str, Any], lacking: dict[str, Any]
) -> None:
    expected = [{**THE_2070_READ, **lacking}]
    machine = with_card(**untold)
    assert fake_nvml.readings(tmp_path, machine, machine) == [expected] * 2


# What it costs.


def test_one_session_with_nvml_serves_all_readings(tmp_path: Path) -> None:
    read = fake_nvml.readings(tmp_path, *[RTX_2070] * 200)
    assert read == [[THE_2070_READ]] * 200
    functions = called(tmp_path)
    assert functions.count("nvmlInitWithFlags") == 1
    assert functions.count("nvmlDeviceGetHandleByIndex_v2") == 1
    assert functions.count("nvmlDeviceGetMemoryInfo_v2") == 200
    # Names, processes and the like are not asked for again and again.
    assert len(functions) <= 4 + 5 * 200


def test_no_session_is_open_before_the_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that nothing inherits one that the process starts before it serves.
    asked: list[str] = []
    monkeypatch.setattr(nvml, "ask", lambda function, *_: asked.append(function))
    assert gpu_readings.reader(Gpus(None, None, (THE_2070,), ())) is not None
    assert asked == []


def test_threads_share_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(function: str, *_: object) -> object:
        asked.append(function)
        time.sleep(0.001)  # gives the others a chance to come between
        if function == "nvmlDeviceGetMemoryInfo":
            return SimpleNamespace(total=3, free=1)
        return THE_2070.uuid if function == "nvmlDeviceGetUUID" else None

    monkeypatch.setattr(nvml, "ask", ask)
    read = gpu_readings.reader(Gpus(None, None, (THE_2070,), ()))
    assert read is not None
    with ThreadPoolExecutor(4) as threads:
        readings = [threads.submit(read) for _ in range(8)]
    assert [[one["memory_used_bytes"] for one in each.result()] for each in readings] == [[2]] * 8
    assert asked.count("nvmlInit") == 1
    assert "nvmlShutdown" not in asked


def test_a_card_that_stays_away_leaks_no_sessions(tmp_path: Path) -> None:
    read = fake_nvml.readings(tmp_path, RTX_2070, *[LOST] * 100)
    assert read == [[THE_2070_READ], *[[]] * 100]
    functions = called(tmp_path)
    # The first loss ends the first session; each reading after it tries another one.
    assert functions.count("nvmlInitWithFlags") == functions.count("nvmlShutdown") == 100
    sessions = [name for name in functions if name in ("nvmlInitWithFlags", "nvmlShutdown")]
    assert sessions == ["nvmlInitWithFlags", "nvmlShutdown"] * 100


def test_a_driver_that_does_not_start_again_is_only_asked_to(tmp_path: Path) -> None:
    gone = LOST.but(Fault("nvmlInitWithFlags", fake_nvml.DRIVER_NOT_LOADED))
    read = fake_nvml.readings(tmp_path, RTX_2070, *[gone] * 10)
    assert read == [[THE_2070_READ], *[[]] * 10]
    assert called(tmp_path)[-9:] == ["nvmlInitWithFlags"] * 9
    assert called(tmp_path).count("nvmlShutdown") == 1


# Cards that come and go.


def test_a_card_that_vanishes_is_left_out_until_it_is_back(tmp_path: Path) -> None:
    read = fake_nvml.readings(tmp_path, RTX_2070, LOST, LOST, RTX_2070, RTX_2070)
    assert read == [[THE_2070_READ], [], [], [THE_2070_READ], [THE_2070_READ]]


def test_a_card_may_be_away_at_the_first_reading(tmp_path: Path) -> None:
    # The search for cards at the start goes by number, and finds it.
    machine = RTX_2070.but(
        Fault("nvmlDeviceGetHandleByIndex_v2", GPU_IS_LOST, after=1),
        Fault("nvmlDeviceGetHandleByUUID", GPU_IS_LOST),
    )
    assert fake_nvml.readings(tmp_path, machine, RTX_2070) == [[], [THE_2070_READ]]


def test_a_card_that_vanishes_does_not_take_the_others_along(tmp_path: Path) -> None:
    # As NVML does it, a search by UUID fails as well.
    lost = TWO_CARDS.but(
        Fault("nvmlDevice*", GPU_IS_LOST, card=0),
        Fault("nvmlDeviceGetHandleByUUID", GPU_IS_LOST),
    )
    read = fake_nvml.readings(tmp_path, TWO_CARDS, lost, lost, lost, TWO_CARDS)
    both = ["cuda:0", "cuda:1"]
    assert [devices(one) for one in read] == [both, *[["cuda:1"]] * 3, both]


def test_a_card_is_found_again_where_it_has_another_number(tmp_path: Path) -> None:
    # Two cards of a kind, as is usual: one falls off the bus, and the driver counts the other one.
    other = replace(RTX_2070_CARD, uuid=RTX_3060_CARD.uuid, used_bytes=GIB)
    two = Machine((RTX_2070_CARD, other))
    gone = LOST, Machine((other,))
    _, _, alone, again = fake_nvml.readings(tmp_path, two, *gone, two)
    ((device, uuid, used),) = [
        (one["device"], one["uuid"], one["memory_used_bytes"]) for one in alone
    ]
    assert (device, uuid, used) == ("cuda:1", other.uuid, GIB + 223 * MIB)
    assert devices(again) == ["cuda:0", "cuda:1"]


def test_another_card_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    instead = Machine((RTX_3060_CARD,))
    assert fake_nvml.readings(tmp_path, RTX_2070, LOST, instead, RTX_2070) == [
        [THE_2070_READ],
        [],
        [],
        [THE_2070_READ],
    ]


def test_a_driver_that_is_updated_underneath(tmp_path: Path) -> None:
    unloaded = RTX_2070.but(Fault("nvmlDevice*", fake_nvml.UNKNOWN))
    updated = unloaded.but(Fault("nvmlInitWithFlags", fake_nvml.VERSION_MISMATCH))
    read = fake_nvml.readings(tmp_path, RTX_2070, unloaded, updated, updated, RTX_2070)
    assert read == [[THE_2070_READ], [], [], [], [THE_2070_READ]]


# Instances of cards in MIG mode.


def test_an_instance_tells_its_own_memory_and_nothing_else(tmp_path: Path) -> None:
    machine = Machine((replace(H100_MIG_CARD, utilization_percent=50, instances=(FIRST_MIG,)),))
    assert fake_nvml.readings(tmp_path, machine) == [[THE_INSTANCE_READ]]


def test_another_instance_may_be_chosen(tmp_path: Path) -> None:
    read = fake_nvml.readings(tmp_path, MIG, MIG, env=visible(str(SECOND_MIG.uuid)))
    assert read == [[{**THE_INSTANCE_READ, "uuid": SECOND_MIG.uuid}]] * 2


def test_an_instance_that_is_removed_is_left_out_until_it_is_back(tmp_path: Path) -> None:
    lost = ONE_INSTANCE.but(Fault("nvmlDeviceGetMemoryInfo*", fake_nvml.INVALID_ARGUMENT))
    none = Machine((replace(H100_MIG_CARD, instances=()),))
    read = fake_nvml.readings(tmp_path, ONE_INSTANCE, lost, none, ONE_INSTANCE)
    assert read == [[THE_INSTANCE_READ], [], [], [THE_INSTANCE_READ]]


def test_an_instance_in_its_slot_is_not_taken_for_it(tmp_path: Path) -> None:
    lost = ONE_INSTANCE.but(Fault("nvmlDeviceGetMemoryInfo*", fake_nvml.INVALID_ARGUMENT))
    instead = Machine((replace(H100_MIG_CARD, instances=(SECOND_MIG,)),))
    assert fake_nvml.readings(tmp_path, ONE_INSTANCE, lost, instead)[2] == []


def test_an_instance_without_a_name_cannot_be_found_again() -> None:
    # Whatever is in its slot then may be another one.
    nameless = Gpus(None, None, (replace(FIRST_INSTANCE, uuid=None),), ())
    assert gpu_readings.reader(nameless) is None
    both = replace(nameless, found=(*nameless.found, THE_2070))
    assert gpu_readings.reader(both) is not None


# Whatever NVML answers, a reading is a list.


def each_fault(
    folder: Path, machine: Machine, functions: Iterable[str], *also: Fault
) -> list[tuple[str, int, list[gpu_readings.Reading], list[gpu_readings.Reading]]]:
    """What is read while a function fails, and when it works again, for each code."""
    faults = [(function, code) for function in functions for code in CODES]
    machines = [machine]
    for function, code in faults:
        machines += [machine.but(Fault(function, code), *also), machine]
    _, *read = fake_nvml.readings(folder, *machines)
    return [
        (*fault, during, after)
        for fault, during, after in zip(faults, read[::2], read[1::2], strict=True)
    ]


LACKS: dict[str, dict[str, Any]] = {
    "nvmlDeviceGetUtilizationRates": {"utilization_ratio": None},
    "nvmlDeviceGetPowerUsage": {"power_watts": None},
    "nvmlDeviceGetTemperature*": {"temperature_celsius": None},
    "nvmlDeviceGetTemperatureV": {},
    "nvmlDeviceGetMemoryInfo_v2": {},
}


def test_any_error_about_one_value_leaves_it_open(tmp_path: Path) -> None:
    for function, code, during, after in each_fault(tmp_path, RTX_2070, LACKS):
        assert during == [{**THE_2070_READ, **LACKS[function]}], (function, code)
        assert after == [THE_2070_READ], (function, code)
    assert called(tmp_path).count("nvmlInitWithFlags") == 1


def test_any_error_about_a_card_leaves_it_out(tmp_path: Path) -> None:
    functions = ("nvmlDeviceGetMemoryInfo*", "nvmlDevice*")
    for function, code, during, after in each_fault(tmp_path, RTX_2070, functions):
        assert (during, after) == ([], [THE_2070_READ]), (function, code)


def test_any_error_about_an_instance_leaves_it_out(tmp_path: Path) -> None:
    functions = ("nvmlDeviceGetMemoryInfo*", "nvmlDevice*")
    for function, code, during, after in each_fault(tmp_path, ONE_INSTANCE, functions):
        assert (during, after) == ([], [THE_INSTANCE_READ]), (function, code)


@pytest.mark.parametrize(
    "function",
    [
        "nvmlInitWithFlags",
        "nvmlDeviceGetHandle*",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetUUID",
        "nvmlShutdown",
        "nvml*",
    ],
)
def test_any_error_on_the_way_back(tmp_path: Path, function: str) -> None:
    machines = [RTX_2070]
    for code in CODES:
        machines += [LOST, RTX_2070.but(Fault(function, code)), RTX_2070, RTX_2070]
    first, *read = fake_nvml.readings(tmp_path, *machines)
    assert first == [THE_2070_READ]
    for number, code in enumerate(CODES):
        lost, during, after, later = read[4 * number : 4 * number + 4]
        assert lost == [], code
        assert during in ([], [THE_2070_READ]), code
        assert after == later == [THE_2070_READ], code


def test_functions_that_the_driver_lacks(tmp_path: Path) -> None:
    lacking = frozenset(
        {
            "nvmlDeviceGetUtilizationRates",
            "nvmlDeviceGetPowerUsage",
            "nvmlDeviceGetTemperature",
            "nvmlDeviceGetTemperatureV",
            "nvmlDeviceGetHandleByUUID",
            "nvmlShutdown",
        }
    )
    machine, lost = (replace(one, missing=lacking) for one in (RTX_2070, LOST))
    bare = [
        {
            **THE_2070_READ,
            "utilization_ratio": None,
            "power_watts": None,
            "temperature_celsius": None,
        }
    ]
    assert fake_nvml.readings(tmp_path, machine, lost, machine) == [bare, [], bare]


def test_every_reading_has_the_same_parts(tmp_path: Path) -> None:
    silent = Card("", "", (7, 5), GIB, temperature_c=None, power_mw=None, utilization_percent=None)
    ((told,),) = fake_nvml.readings(tmp_path, RTX_2070)
    ((untold,),) = fake_nvml.readings(tmp_path, Machine((silent,)))
    ((instance,),) = fake_nvml.readings(tmp_path, ONE_INSTANCE)
    assert list(told) == list(untold) == list(instance) == list(THE_2070_READ)
