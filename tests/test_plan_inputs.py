"""Values that make no sense: each is refused, by the name of who said it, with what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import cli, configs
from support.plans import CARD, Command

USAGE_ERROR = 2
NO_NUMBERS = ["nan", "NaN", "-nan", "many", "4,5", "0x10", "1 000", "--", "5MB", "½"]
OUT_OF_RANGE = ["inf", "-inf", "-1", "-0.001", "1e400", "99999999999999999999", "2e6"]

RANGES = {
    "MOSHI_RESERVE_MB": "use a number of MiB from 0 to 1048576",
    "MOSHI_PER_BATCH_ITEM_MB": "use a number of MiB from 1 to 1000000",
    "MOSHI_MODEL_PARAMS_BILLIONS": "use a number of billions from 0.001 to 10000",
    "--reserve-mb": "use a number of MiB from 0 to 1048576",
    "--free-mb": "use a number of MiB from 1 to 1048576",
}
VARIABLES = [name for name in RANGES if name.startswith("MOSHI_")]
OPTIONS = [name for name in RANGES if name.startswith("--")]


@pytest.mark.parametrize("value", NO_NUMBERS + OUT_OF_RANGE)
@pytest.mark.parametrize("name", VARIABLES)
def test_variables(name: str, value: str, command: Command) -> None:
    command.set(**{name: value})
    said = command("plan", "--config", "stt-1b-en_fr")
    what = "is not a number" if value in NO_NUMBERS else "is out of range"
    assert (said.code, said.out) == (USAGE_ERROR, "")
    assert said.error == f"error: {name}: {value!r} {what}"
    assert said.hint == f"hint: {RANGES[name]}"


@pytest.mark.parametrize("value", ["", *NO_NUMBERS, *OUT_OF_RANGE])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, value: str, command: Command) -> None:
    others = CARD[2:] if name == "--free-mb" else ()
    said = command("plan", "--config", "stt-1b-en_fr", *others, f"{name}={value}")
    what = "is out of range" if value in OUT_OF_RANGE else "is not a number"
    assert (said.code, said.out) == (USAGE_ERROR, "")
    assert said.error == f"error: {name}: {value!r} {what}"
    assert said.hint == f"hint: {RANGES[name]}"


@pytest.mark.parametrize(
    ("name", "value"), [("MOSHI_PER_BATCH_ITEM_MB", "0.9"), ("MOSHI_MODEL_PARAMS_BILLIONS", "0")]
)
def test_less_than_anything_could_take(name: str, value: str, command: Command) -> None:
    command.set(**{name: value})
    said = command("plan", "--config", "stt-1b-en_fr")
    assert said.code == USAGE_ERROR
    assert said.error == f"error: {name}: {value!r} is out of range"


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["", "   "])
def test_blank_is_not_set(name: str, value: str, command: Command) -> None:
    expected = command.plan("stt-1b-en_fr", *CARD).module
    command.set(**{name: value})
    assert command.plan("stt-1b-en_fr", *CARD).module == expected


@pytest.mark.parametrize("value", ["maybe", "2", "-1", "nan", "onn", "off!"])
def test_a_switch_that_is_neither_on_nor_off(value: str, command: Command) -> None:
    command.set(MOSHI_MEMORY_ESTIMATE=value)
    said = command("plan", "--config", "stt-1b-en_fr")
    assert said.code == USAGE_ERROR
    assert said.error == f"error: MOSHI_MEMORY_ESTIMATE: {value!r} is neither on nor off"
    assert said.hint == "hint: use on or off"


@pytest.mark.parametrize("command_name", ["fit", "worker"])
def test_the_other_commands_refuse_it_too(command_name: str, tmp_path: Path) -> None:
    more = ["--out", "fitted.toml"] if command_name == "fit" else ["-a", "127.0.0.1"]
    result = cli.run(
        command_name, "--config", "stt-1b-en_fr", "--cpu", *more,
        cwd=tmp_path, env={"MOSHI_RESERVE_MB": "nan", "MOSHI_CTL_TINY_DIR": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == USAGE_ERROR
    assert "error: MOSHI_RESERVE_MB: 'nan' is not a number" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "value",
    ["", "nan", "inf", "-7.5", "7", "75", "7.5.1", "4.9", "100.0", "7,5", "7.55", "\u0667.\u0665"],
)
def test_a_compute_capability_that_is_none(value: str, command: Command) -> None:
    said = command(
        "plan", "--config", "stt-1b-en_fr", "--free-mb", "7500", f"--compute-capability={value}"
    )
    assert said.code == USAGE_ERROR
    assert said.error == f"error: --compute-capability: {value!r} is not a compute capability"
    assert "from 5.0 to 99.9, such as 7.5" in said.hint


@pytest.mark.parametrize(
    "value",
    ["", "gpu", "cuda:", "cuda:-1", "cuda:1000", "cuda:x", "CUDA:0", "cpu:0", "cuda:\u0660"],
)
def test_a_device_that_is_none(value: str, command: Command) -> None:
    said = command("plan", "--config", "stt-1b-en_fr", f"--device={value}")
    assert said.code == USAGE_ERROR
    assert "--device" in said.plain_err
    assert f"{value!r} is not a device: use auto, cpu, cuda, cuda:N or metal" in said.plain_err


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--cpu", "--device", "cuda:0"], "--cpu contradicts --device cuda:0", "leave out one"),
        (["--cpu", "--device", "auto"], "--cpu contradicts --device auto", "leave out one"),
        (["--compute-capability", "7.5"], "--compute-capability stands for a card", "--free-mb"),
        (["--free-mb", "7500"], "--free-mb stands for a card", "--compute-capability"),
        (
            ["--free-mb", "7500", "--device", "cuda:0"],
            "--free-mb stands for a card",
            "--compute-capability",
        ),
        ([*CARD, "--cpu"], "cpu is asked for, but a cuda device is simulated", "--device auto"),
        (
            [*CARD, "--device", "metal"],
            "metal is asked for, but a cuda device is simulated",
            "--device auto",
        ),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], error: str, hint: str, command: Command
) -> None:
    said = command("plan", "--config", "stt-1b-en_fr", *arguments)
    assert (said.code, said.out) == (USAGE_ERROR, "")
    assert error in said.error
    assert hint in said.hint


def test_a_card_that_is_simulated_for_a_configuration_of_the_cpu(command: Command) -> None:
    said = command.plan("stt-1b-en_fr-cpu", *CARD)
    assert said.code == USAGE_ERROR
    assert "cpu is asked for" in said.error
    # What the hint says works.
    assert "add --device auto" in said.hint
    assert command.plan("stt-1b-en_fr-cpu", *CARD, "--device", "auto").module["device"] == "cuda:0"
    assert "leave out --compute-capability and add --device cpu" in said.hint
    assert command.plan("stt-1b-en_fr-cpu", *CARD[:2], "--device", "cpu").code == 0


LONG = 300 * "x"


def test_paths_that_are_too_long_are_not_there(command: Command, tmp_path: Path) -> None:
    said = command("plan", "--config", LONG)
    assert said.code == USAGE_ERROR
    assert "no such file" in said.error
    config = configs.shipped_copy(tmp_path, "stt-1b-en_fr", f'lm_model_file = "/nowhere/{LONG}"')
    assert "the model's shape" in command.plan(config, *CARD).module["sizes"]
    said = command("validate", config)
    assert said.code == 0
    assert f"/nowhere/{LONG} does not exist" in said.err
