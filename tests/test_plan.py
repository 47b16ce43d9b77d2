"""What `moshi-ctl plan` decides on machines with NVIDIA cards, and what it says of it.

Plans ask no card to compute: where none can, they are made all the same, with a warning.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moshi_ctl import _native, shipped
from moshi_ctl.devices import Machine as Here
from moshi_ctl.gpu import Gpu, GpuProcess, Gpus
from support import cli, configs, emulated_cuda, fake_nvml
from support.fake_nvml import (
    DRIVER_470,
    FULL,
    H100,
    MIG,
    NO_CARD,
    NOT_LOADED,
    RTX_2070,
    RTX_3060,
    T4,
    TWO_CARDS,
    VANISHING,
    Machine,
)
from support.gpus import THE_2070
from support.plans import DRIVER_MIB, GIB, MIB, PLAIN_MACHINE, Command, Said, on_cards

STT_1B = ("--config", "stt-1b-en_fr", "--json")
ON_THE_CARD = (*STT_1B, "--device", "cuda:0")

THE_3060 = replace(
    THE_2070,
    device="cuda:1",
    index=1,
    name="NVIDIA GeForce RTX 3060",
    compute_capability=(8, 6),
    total_bytes=12 * GIB,
    free_bytes=12 * GIB - 236 * MIB,
    processes=(),
)


def a_cuda_build(*cards: Gpu) -> Here:
    return Here(PLAIN_MACHINE.ram, Gpus("580.65.06", (13, 0), cards, ()), ("cuda",))


# A card that is named.


@pytest.mark.parametrize(
    ("machine", "precision", "lanes"),
    [
        (RTX_2070, "f32", range(18, 30)),
        (T4, "f32", range(60, 65)),
        (RTX_3060, "bf16", range(64, 65)),
        (H100, "bf16", range(64, 65)),
        (MIG, "bf16", range(64, 65)),
        # It was there when it was read.
        (VANISHING, "f32", range(18, 30)),
    ],
    ids=["RTX 2070", "T4", "RTX 3060", "H100", "MIG", "VANISHING"],
)
def test_cards(machine: Machine, precision: str, lanes: range, tmp_path: Path) -> None:
    said = on_cards(tmp_path, machine, *ON_THE_CARD)
    assert said.code == 0, said.err
    module = said.module
    assert (module["device"], module["device_reason"]) == ("cuda:0", "asked for")
    assert (module["precision"], module["kv_precision"]) == (precision, precision)
    assert module["lanes"] in lanes
    assert module["limit"] == ("batch_size" if module["lanes"] == 64 else "memory")
    assert (module["most_lanes_by_precision"]["bf16"] is None) == (precision == "f32")
    (device,) = said.plan["devices"]
    card = machine.cards[0]
    facts = card.instances[0] if card.instances else card
    assert device["title"] == facts.name
    assert device["total_bytes"] == facts.total_bytes
    assert not device["simulated"]
    assert module["total_bytes"] <= device["budget_bytes"]
    assert device["driver_bytes"] == DRIVER_MIB * MIB
    assert device["budget_bytes"] == device["free_bytes"] - (512 + DRIVER_MIB) * MIB


def test_a_card_that_computes_is_not_warned_of(tmp_path: Path) -> None:
    said = on_cards(tmp_path, RTX_2070, *ON_THE_CARD)
    assert (said.plan["warnings"], said.err) == ([], "")


def test_the_warning_says_what_keeps_this_build_from_a_card(command: Command) -> None:
    command.on(replace(a_cuda_build(THE_2070), accelerators=()))
    (warning,) = command.plan("stt-1b-en_fr", "--device", "cuda:0").plan["warnings"]
    assert warning["message"] == "cuda:0: this build of moshi-ctl has no support for cuda"
    assert "Linux on x86-64" in warning["hint"]


def test_nvml_without_cuda_is_said_at_once(tmp_path: Path) -> None:
    env = emulated_cuda.machine_with_nvml_alone(tmp_path, RTX_2070)
    said = on_cards(tmp_path, RTX_2070, *ON_THE_CARD, env=env)
    assert said.code == 0
    (warning,) = said.plan["warnings"]
    assert warning["message"] == (
        "cuda:0: libcuda, which the NVIDIA driver brings, cannot be loaded"
    )
    assert "driver capability `compute`" in warning["hint"]


def test_an_old_driver_is_said_at_once(tmp_path: Path) -> None:
    said = on_cards(tmp_path, DRIVER_470, *ON_THE_CARD)
    assert said.code == 0
    assert said.plan["driver_version"] == "470.256.02"
    assert said.plan["cuda_version"] == "11.4"
    (warning,) = said.plan["warnings"]
    assert "470.256.02 serves CUDA 11.4, a build with CUDA needs 12.0" in warning["message"]
    assert "update the NVIDIA driver to 525 or newer" in warning["hint"]


def test_a_full_card_is_refused_with_who_fills_it(tmp_path: Path) -> None:
    said = on_cards(tmp_path, FULL, *ON_THE_CARD)
    assert said.code == 1
    assert not said.plan["fits"]
    assert said.lanes == 0
    shortfall = said.plan["devices"][0]["shortfall"]
    assert said.error == f"error: {shortfall['message']}"
    assert said.hint == f"hint: {shortfall['hint']}"
    module = said.module
    needed = sum(
        module[f"{part}_bytes"] for part in ("lm_weights", "codec_weights", "workspace", "lane")
    )
    needed += DRIVER_MIB * MIB
    assert f"module asr: one lane needs {needed / GIB:.2f} GiB" in said.error
    assert "cuda:0 (NVIDIA GeForce RTX 2070) has 0 KiB free, and 512 MiB are to stay free" in (
        said.error
    )
    assert "process 4321 (/usr/bin/python3) holds 7.48 GiB" in said.hint
    assert "process 1234 (/usr/lib/xorg/Xorg) holds 310 MiB" in said.hint
    assert f"free {(needed + 512 * MIB) / GIB:.2f} GiB more" in said.hint
    assert "--device cpu" in said.hint
    assert "--precision" not in said.hint  # none of them fits
    (card,) = said.plan["gpus"]
    assert [process["pid"] for process in card["processes"]] == [4321, 1234]
    assert (card["compute_capability"], card["index"], card["is_mig"]) == ("7.5", 0, False)
    assert card["uuid"].startswith("GPU-")
    assert card["temperature_c"] > 0
    assert card["power_w"] > 0


def test_no_traceback_and_no_table_are_in_the_way_of_a_refusal(tmp_path: Path) -> None:
    said = on_cards(tmp_path, FULL, "--config", "stt-1b-en_fr", "--device", "cuda:0")
    assert said.code == 1
    assert "0 of 64" in said.out
    assert said.error.startswith("error: module asr: one lane needs")


@pytest.mark.parametrize(
    ("machine", "name", "says"),
    [
        (NOT_LOADED, "cuda:0", "its kernel module is not loaded"),
        (NO_CARD, "cuda:0", "no NVIDIA card: driver 570.86.15 finds none"),
        (RTX_2070, "cuda:5", "there is only cuda:0 (NVIDIA GeForce RTX 2070)"),
        (RTX_2070, "cuda:1", "there is only cuda:0 (NVIDIA GeForce RTX 2070)"),
    ],
    ids=["not loaded", "no card", "cuda:5", "cuda:1"],
)
def test_a_card_that_is_not_there(machine: Machine, name: str, says: str, tmp_path: Path) -> None:
    said = on_cards(tmp_path, machine, *STT_1B, "--device", name)
    assert (said.code, said.out) == (2, "")
    assert said.error.startswith(f"error: {name} is asked for, but ")
    assert says in said.error
    assert "--free-mb" in said.hint


def test_visible_devices_choose_the_card(tmp_path: Path) -> None:
    env = {"CUDA_VISIBLE_DEVICES": "1"}
    said = on_cards(tmp_path, TWO_CARDS, *ON_THE_CARD, env=env)
    assert said.plan["devices"][0]["title"] == "NVIDIA GeForce RTX 3060"
    said = on_cards(tmp_path, TWO_CARDS, *STT_1B, "--device", "cuda:1", env=env)
    assert said.code == 2
    assert "there is only cuda:0 (NVIDIA GeForce RTX 3060)" in said.error


# Several modules.


def test_each_module_on_its_card(tmp_path: Path) -> None:
    config = configs.two_modules(
        tmp_path, "stt-1b-en_fr", ('device = "cuda:0"',), ('device = "cuda:1"',)
    )
    said = on_cards(tmp_path, TWO_CARDS, "--config", config, "--json")
    assert said.code == 0, said.err
    plan = said.plan
    assert [device["device"] for device in plan["devices"]] == ["cuda:0", "cuda:1"]
    first, second = plan["modules"]["asr"], plan["modules"]["asr2"]
    assert (first["device"], first["precision"]) == ("cuda:0", "f32")
    assert (second["device"], second["precision"], second["lanes"]) == ("cuda:1", "bf16", 64)
    # Each has its card for itself.
    assert first["lanes"] == on_cards(tmp_path, RTX_2070, *ON_THE_CARD).lanes
    assert plan["warnings"] == []


def test_two_modules_share_a_card(tmp_path: Path) -> None:
    config = configs.two_modules(
        tmp_path, "stt-1b-en_fr", ("batch_size = 64",), ("batch_size = 32",)
    )
    said = on_cards(tmp_path, T4, "--config", config, "--json", "--device", "cuda:0")
    assert said.code == 0, said.err
    (device,) = said.plan["devices"]
    first, second = said.plan["modules"]["asr"], said.plan["modules"]["asr2"]
    together = first["total_bytes"] + second["total_bytes"]
    assert together <= device["budget_bytes"] < together + first["lane_bytes"]
    assert 1 <= second["lanes"] < first["lanes"] < 64
    assert abs(first["lanes"] / 64 - second["lanes"] / 32) <= 1 / 32
    assert said.plan["warnings"] == []


def test_two_modules_that_do_not_fit_together_are_both_named(command: Command) -> None:
    config = configs.two_modules(Path.cwd(), "stt-1b-en_fr", (), ())
    said = command.plan(config, "--free-mb", "5000", "--compute-capability", "7.5")
    assert said.code == 1
    assert "modules asr, asr2: one lane each needs" in said.error
    # What is proposed fits, for all of them at once.
    assert "use --precision q8 (asr " in said.hint
    proposed = command.plan(
        config, "--free-mb", "5000", "--compute-capability", "7.5", "--precision", "q8"
    ).plan
    lanes = ", ".join(f"{name} {one['lanes']} lanes" for name, one in proposed["modules"].items())
    assert f"q8 ({lanes})" in said.hint


# A card that is not named.


def only_warning(said: Said) -> tuple[str, str]:
    """The message and the hint of the only warning, which comes on standard error."""
    message, hint = said.err.splitlines()
    assert message.startswith("warning: ")
    assert hint.startswith("hint: ")
    return message, hint


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (RTX_3060, "NVIDIA GeForce RTX 3060 (cuda:0): the NVIDIA driver failed starting: CUDA_"),
        (TWO_CARDS, "RTX 2070 (cuda:0), NVIDIA GeForce RTX 3060 (cuda:1): the NVIDIA driver"),
        (DRIVER_470, "the driver 470.256.02 serves CUDA 11.4, a build with CUDA needs 12.0"),
        (NOT_LOADED, "its kernel module is not loaded; load it with `modprobe nvidia`"),
        (NO_CARD, "no NVIDIA card: driver 570.86.15 finds none"),
    ],
    ids=["one card", "two cards", "driver 470", "not loaded", "no card"],
)
def test_the_cpu_instead_of_a_card_is_said_loudly(
    machine: Machine, why: str, tmp_path: Path
) -> None:
    env = emulated_cuda.machine(tmp_path, machine, started=emulated_cuda.UNKNOWN)
    said = on_cards(tmp_path, machine, "--config", "stt-1b-en_fr", "--precision", "q8", env=env)
    assert said.code == 0, said.err
    message, hint = only_warning(said)
    assert message.startswith("warning: the models run on the CPU: ")
    assert why in message
    assert "expect a few streams" in hint
    assert "--device cpu" in hint
    assert "device: cpu (there is no card to use)" in said.out


@pytest.mark.parametrize("choice", [["--cpu"], ["--device", "cpu"]])
def test_who_asks_for_the_cpu_is_not_warned(choice: list[str], tmp_path: Path) -> None:
    said = on_cards(tmp_path, RTX_3060, "--config", "stt-1b-en_fr", *choice)
    assert (said.code, said.err) == (0, "")
    assert "device: cpu (asked for)" in said.out


def test_a_configuration_may_ask_for_the_cpu(tmp_path: Path) -> None:
    said = on_cards(tmp_path, RTX_3060, "--config", "stt-1b-en_fr-cpu", "--json")
    assert (said.code, said.err, said.plan["warnings"]) == (0, "", [])
    # And --device auto asks for what there is all the same.
    said = on_cards(tmp_path, RTX_3060, "--config", "stt-1b-en_fr-cpu", "--device", "auto")
    assert "device: cuda:0 (the only card)" in said.out


def test_a_build_with_cuda_takes_the_card_with_the_most_free_memory(command: Command) -> None:
    command.on(a_cuda_build(THE_2070, THE_3060))
    said = command.plan("stt-1b-en_fr")
    assert (said.module["device"], said.err) == ("cuda:1", "")
    assert said.module["device_reason"] == "the card with the most free memory"
    command.on(a_cuda_build(THE_2070, replace(THE_3060, free_bytes=GIB)))
    assert command.plan("stt-1b-en_fr").module["device"] == "cuda:0"
    command.on(a_cuda_build(THE_2070))
    said = command.plan("stt-1b-en_fr")
    assert (said.module["device"], said.module["device_reason"]) == ("cuda:0", "the only card")
    assert said.plan["warnings"] == []


def test_a_build_with_cuda_says_what_is_wrong_with_the_driver(command: Command) -> None:
    gpus = Gpus("470.256.02", (11, 4), (THE_2070,), ())
    command.on(Here(PLAIN_MACHINE.ram, gpus, ("cuda",)))
    said = command("plan", "--config", "stt-1b-en_fr")
    message, _ = only_warning(said)
    assert "the driver 470.256.02 serves CUDA 11.4, a build with CUDA needs 12.0" in message
    assert "no support" not in message
    said = command.plan("stt-1b-en_fr", "--device", "cuda")
    assert said.module["device"] == "cuda:0"
    (warning,) = said.plan["warnings"]
    assert warning["hint"] == "update the NVIDIA driver to 525 or newer"


def test_a_precision_that_would_fit_is_named_and_fits(command: Command) -> None:
    nearly_full = replace(
        THE_2070,
        free_bytes=2900 * MIB,
        processes=(
            GpuProcess(1, "unknown share", None),
            *(GpuProcess(pid, None, 100 * MIB) for pid in range(11, 17)),
        ),
    )
    command.on(a_cuda_build(nearly_full))
    said = command.plan("stt-1b-en_fr")
    assert said.code == 1
    assert "use --precision q8 (" in said.hint
    assert "bf16" not in said.hint  # the card has none
    assert said.hint.count("(unknown) holds 100 MiB") == 3
    fitting = command.plan("stt-1b-en_fr", "--precision", "q8")
    assert fitting.code == 0
    assert f"q8 ({fitting.lanes} lanes)" in said.hint


def test_less_in_reserve_is_proposed_where_it_helps(command: Command) -> None:
    card = ("--free-mb", "3000", "--compute-capability", "7.5")
    said = command.plan("stt-1b-en_fr", *card, "--precision", "f32")
    assert said.code == 1
    _, _, rest = said.hint.partition("--reserve-mb ")
    assert 0 <= int(rest.split(";")[0]) < 512
    less = command.plan(
        "stt-1b-en_fr", *card, "--precision", "f32", "--reserve-mb", rest.split(";")[0]
    )
    assert (less.code, less.lanes) == (0, 1)
    said = command.plan("stt-1b-en_fr", "--free-mb", "2500", *card[2:], "--precision", "f32")
    assert "--reserve-mb" not in said.hint


# What people see.


@pytest.mark.parametrize("name", shipped.names())
@pytest.mark.parametrize(
    "facts",
    [
        ("--free-mb", "15500", "--compute-capability", "7.5", "--device", "auto"),
        ("--free-mb", "7000", "--cpu", "--kv-precision", "f16"),
    ],
)
def test_everything_is_said_in_eighty_columns(
    name: str, facts: tuple[str, ...], command: Command
) -> None:
    command.set(MOSHI_CTL_TINY_DIR="/tiny", COLUMNS="80")
    said = command("plan", "--config", name, *facts)
    module = command.plan(name, *facts).module
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert "…" not in said.out
    assert not [line for line in lines if len(line.rstrip()) > 80]
    bar = next(line for line in lines if line.startswith("["))
    assert len(bar.partition("]")[0]) == 61
    assert "░" in bar
    # Which are too small to be seen.
    assert all(mark in bar for mark in "█▓") or name in ("demo", "tiny-random")
    for part in ("weights", "lanes", "reserve 512 MiB", "left"):
        assert part in said.out
    row = next(line for line in lines if line.startswith(" asr "))
    assert f" {module['lanes']} " in row
    if module["lanes"] != module["wanted_lanes"] != "auto":
        assert f"{module['lanes']} of {module['wanted_lanes']}" in row
    assert f"device: {module['device']} (simulated)" in said.out
    assert f"precision: {module['precision']} ({module['precision_reason']})" in said.out
    assert f"sizes: {module['sizes']}" in said.out
    for precision, lanes in module["most_lanes_by_precision"].items():
        plus = "+" if lanes == _native.MAX_LANES else ""
        most = f"{precision} is not possible" if lanes is None else f"{lanes}{plus} in {precision}"
        assert most in said.out
    assert "a worker measures how many lanes the" in said.out


def test_a_long_name_is_not_cut_either(command: Command) -> None:
    path = Path("long.toml")
    name = "a-module-" + "with-a-long-name-" * 4
    text = shipped.path_of("stt-1b-en_fr").read_text()
    path.write_text(text.replace("[modules.asr", f"[modules.{name}"))
    said = command("plan", "--config", path, "--cpu", "--free-mb", "9000")
    assert "…" not in said.out
    row = next(line for line in said.out.splitlines() if line.startswith(f" {name} "))
    assert row.rstrip().endswith("GiB")


def test_an_output_without_blocks_gets_letters(tmp_path: Path) -> None:
    result = cli.run(
        "plan", "--config", "stt-1b-en_fr", "--cpu",
        cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "# weights" in result.stdout
    assert "+ lanes" in result.stdout


def test_sizes_are_in_the_units_of_the_options(command: Command) -> None:
    said = command("plan", "--config", "stt-1b-en_fr", "--cpu", "--free-mb", "8192")
    assert "] 8.00 GiB" in said.out
    assert "░ reserve 512 MiB" in said.out


def test_json_holds_the_warnings_and_standard_error_is_empty(tmp_path: Path) -> None:
    env = emulated_cuda.machine_with_nvml_alone(tmp_path, RTX_3060)
    said = on_cards(tmp_path, RTX_3060, *STT_1B, env=env)
    assert said.err == ""
    (warning,) = said.plan["warnings"]
    assert warning["message"].startswith("the models run on the CPU: ")
    assert fake_nvml.calls(tmp_path)
