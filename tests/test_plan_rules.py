"""The rules of a plan, on cards and machines that are simulated: what is said decides, and how."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from moshi_ctl import _native
from support import cli, configs, safetensors
from support.plans import CARD, DRIVER_MIB, MIB, Command

PRECISIONS = ("f32", "f16", "bf16", "q8")
USAGE_ERROR = 2


def card(free_mb: float, capability: str = "8.6") -> tuple[str, ...]:
    return ("--free-mb", str(free_mb), "--compute-capability", capability)


# Precisions.


@pytest.mark.parametrize(
    ("capability", "precision"),
    [("5.0", "f32"), ("7.0", "f32"), ("7.5", "f32"), ("8.0", "bf16"), ("8.6", "bf16"),
     ("8.9", "bf16"), ("9.0", "bf16"), ("12.0", "bf16")],
)  # fmt: skip
def test_the_card_decides_the_precision(capability: str, precision: str, command: Command) -> None:
    module = command.plan("stt-1b-en_fr", *card(20000, capability)).module
    assert (module["precision"], module["kv_precision"]) == (precision, precision)
    assert capability in module["precision_reason"]


@pytest.mark.parametrize("capability", ["7.5", "8.6"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_more_memory_is_never_fewer_lanes(
    capability: str, precision: str, command: Command
) -> None:
    if (capability, precision) == ("7.5", "bf16"):
        said = command.plan("stt-1b-en_fr", *card(20000, capability), "--precision", precision)
        assert said.code == USAGE_ERROR
        return
    lanes = []
    for free_mb in (1500, 3000, 3001, 4600, 6000, 7500, 12000, 24000):
        said = command.plan("stt-1b-en_fr", *card(free_mb, capability), "--precision", precision)
        module = said.module
        (device,) = said.plan["devices"]
        assert (said.code, device["total_bytes"]) == (int(not module["lanes"]), free_mb * MIB)
        assert module["precision_reason"] == "asked for"
        if module["lanes"]:
            spare = device["budget_bytes"] - module["total_bytes"]
            assert spare >= 0
            assert spare < module["lane_bytes"] or module["lanes"] == 64
        lanes.append(module["lanes"])
    assert all(less <= more for less, more in pairwise(lanes)), lanes
    assert (lanes[0], lanes[-1]) == (0, 64)


def test_smaller_precisions_are_smaller(command: Command) -> None:
    weights, a_lane = {}, {}
    for precision in PRECISIONS:
        module = command.plan("stt-1b-en_fr", *card(20000), "--precision", precision).module
        weights[precision] = module["lm_weights_bytes"]
        a_lane[precision] = module["lane_bytes"]
    # Published weights are bf16 numbers, and as f32 ones they are no longer.
    assert weights["q8"] < weights["bf16"] == weights["f16"] == weights["f32"]
    assert a_lane["q8"] < a_lane["f16"] == a_lane["bf16"] < a_lane["f32"]


@pytest.mark.parametrize("how", ["flag", "key", "dtype_override", "kv flag", "kv key"])
def test_bf16_is_refused_where_the_card_has_none(
    how: str, command: Command, tmp_path: Path
) -> None:
    lines = {
        "key": ['precision = "bf16"'],
        "dtype_override": ['dtype_override = "bf16"'],
        "kv key": ['kv_precision = "bf16"'],
    }.get(how, [])
    arguments = {"flag": ["--precision", "bf16"], "kv flag": ["--kv-precision", "bf16"]}
    config = configs.shipped_copy(tmp_path, "stt-1b-en_fr", *lines)
    said = command.plan(config, *card(20000, "7.5"), *arguments.get(how, []))
    assert (said.code, said.out) == (USAGE_ERROR, "")
    assert "module asr" in said.error
    assert "bf16" in said.error
    assert "7.5" in said.error
    assert "f16" in said.hint


@pytest.mark.parametrize(
    ("lines", "arguments", "expected"),
    [
        ([], [], ("bf16", "bf16")),
        (['precision = "f16"'], [], ("f16", "f16")),
        (['dtype_override = "f16"'], [], ("f16", "f16")),
        (['dtype_override = "f16"'], ["--precision", "f32"], ("f32", "f32")),
        (['precision = "f16"'], ["--precision", "F32"], ("f32", "f32")),
        (['precision = "f16"'], ["--precision", "auto"], ("bf16", "bf16")),
        (['kv_precision = "f32"'], [], ("bf16", "f32")),
        (['kv_precision = "f32"'], ["--kv-precision", "f16"], ("bf16", "f16")),
        (['kv_precision = "f32"'], ["--kv-precision", "auto"], ("bf16", "bf16")),
        ([], ["--precision", "q8"], ("q8", "q8")),
        ([], ["--precision", "q8", "--kv-precision", "f16"], ("q8", "f16")),
        ([], ["--precision", "q8", "--kv-precision", "f32"], ("q8", "f32")),
    ],
)
def test_who_decides_the_precision(
    lines: list[str],
    arguments: list[str],
    expected: tuple[str, str],
    command: Command,
    tmp_path: Path,
) -> None:
    config = configs.shipped_copy(tmp_path, "stt-1b-en_fr", *lines)
    module = command.plan(config, *card(20000), *arguments).module
    assert (module["precision"], module["kv_precision"]) == expected


def test_smaller_keys_and_values_are_more_lanes(command: Command) -> None:
    on_cpu = ("stt-1b-en_fr-cpu", "--cpu", "--free-mb", "4000")
    for facts in (on_cpu, ("stt-1b-en_fr", *card(6000))):
        lanes = {
            kv: command.plan(*facts, "--kv-precision", kv).lanes for kv in ("f32", "f16", "q8")
        }
        assert 0 < lanes["f32"] < lanes["f16"] < lanes["q8"]


# Lanes.


@pytest.mark.parametrize(
    ("batch_size", "free_mb", "lanes", "limit"),
    [
        ("8", 80000, 8, "batch_size"),
        ("64", 80000, 64, "batch_size"),
        ("1", 80000, 1, "batch_size"),
        ('"auto"', 1000000, _native.MAX_LANES, "program"),
    ],
)
def test_batch_size_is_never_raised(
    batch_size: str, free_mb: int, lanes: int, limit: str, command: Command, tmp_path: Path
) -> None:
    config = configs.shipped_copy(tmp_path, "stt-1b-en_fr", f"batch_size = {batch_size}")
    module = command.plan(config, *card(free_mb)).module
    assert (module["lanes"], module["limit"]) == (lanes, limit)
    assert module["wanted_lanes"] == (batch_size.strip('"') if "auto" in batch_size else lanes)


@pytest.mark.parametrize("free_mb", [4000, 8000, 40000])
def test_auto_is_what_fits(free_mb: int, command: Command, tmp_path: Path) -> None:
    config = configs.shipped_copy(tmp_path, "stt-1b-en_fr", 'batch_size = "auto"')
    said = command.plan(config, *card(free_mb))
    module = said.module
    fixed = module["total_bytes"] - module["lanes"] * module["lane_bytes"]
    budget = (free_mb - 512 - DRIVER_MIB) * MIB
    assert module["lanes"] == (budget - fixed) // module["lane_bytes"]
    assert module["limit"] == "memory"
    assert module["most_lanes_by_precision"]["bf16"] == module["lanes"]


def test_a_card_is_simulated_for_each_that_is_named(command: Command, tmp_path: Path) -> None:
    config = configs.two_modules(
        tmp_path, "stt-1b-en_fr", ('device = "cuda:0"',), ('device = "cuda:1"',)
    )
    plan = command.plan(config, *CARD).plan
    assert [device["device"] for device in plan["devices"]] == ["cuda:0", "cuda:1"]
    alone = command.plan("stt-1b-en_fr", *CARD).lanes
    assert [module["lanes"] for module in plan["modules"].values()] == [alone, alone]


# What stays free.


def test_who_decides_what_stays_free(command: Command, tmp_path: Path) -> None:
    plain = configs.shipped_copy(tmp_path, "stt-1b-en_fr")
    (tmp_path / "with").mkdir()
    section = "[sizing]\nreserve_mb = 1000\n"
    with_key = configs.shipped_copy(tmp_path / "with", "stt-1b-en_fr", section=section)

    def reserved(config: Path, *arguments: str) -> int:
        (device,) = command.plan(config, *CARD, *arguments).plan["devices"]
        kept = device["reserve_bytes"] + device["driver_bytes"]
        assert device["budget_bytes"] == device["free_bytes"] - kept
        return int(device["reserve_bytes"])

    assert reserved(plain) == 512 * MIB
    assert reserved(with_key) == 1000 * MIB
    assert reserved(with_key, "--reserve-mb", "0") == 0
    command.set(MOSHI_RESERVE_MB="0")
    assert reserved(plain) == reserved(with_key) == 0
    command.set(MOSHI_RESERVE_MB="250.5")
    assert reserved(plain) == reserved(with_key) == int(250.5 * MIB)
    assert reserved(with_key, "--reserve-mb", "300") == 300 * MIB


def test_what_stays_free_is_not_lanes(command: Command) -> None:
    lanes = [
        command.plan("stt-1b-en_fr", *CARD, "--reserve-mb", str(mib)).lanes
        for mib in (0, 512, 1024, 2048)
    ]
    assert lanes == sorted(lanes, reverse=True)
    assert lanes[0] > lanes[-1] > 0


def test_a_reserve_of_everything_leaves_nothing(command: Command) -> None:
    said = command.plan("stt-1b-en_fr", *CARD, "--reserve-mb", "1048576")
    assert (said.code, said.lanes) == (1, 0)
    assert said.plan["devices"][0]["budget_bytes"] == 0
    assert "1024.00 GiB are to stay free" in said.error
    assert "--reserve-mb" in said.hint


# Rules of thumb.


def by_hand(free_mib: float, params: float, bytes_each: float, lane_mib: float) -> int:
    weights_mib = params * 1e9 * bytes_each / MIB
    return math.floor((free_mib - 512 - weights_mib) / lane_mib)


@pytest.mark.parametrize(
    ("variables", "facts", "lanes"),
    [
        # 4,000,000,000 bytes are 3814.7 MiB; 7500 - 512 - 3814.7 = 3173.3 = 7.9 * 400.
        ({"MOSHI_MODEL_PARAMS_BILLIONS": "1"}, CARD, 7),
        # 7.0 billion parameters where nobody says another number, 14,000,000,000 bytes in bf16:
        # 24000 - 512 - 13351.4 = 10136.6 = 25.3 * 400.
        ({}, card(24000), 25),
        ({"MOSHI_PER_BATCH_ITEM_MB": "1000"}, card(24000), 10),
        ({"MOSHI_MODEL_PARAMS_BILLIONS": "0.5", "MOSHI_PER_BATCH_ITEM_MB": "2000"}, CARD, 2),
    ],
)
@pytest.mark.parametrize("switch", ["off", "OFF", "0", "false", "no", "key"])
def test_rules_of_thumb(
    switch: str,
    variables: dict[str, str],
    facts: tuple[str, ...],
    lanes: int,
    command: Command,
    tmp_path: Path,
) -> None:
    section = "[sizing]\nestimate = false\n" if switch == "key" else ""
    config = configs.shipped_copy(tmp_path, "stt-1b-en_fr", section=section)
    command.set(**variables, **({} if section else {"MOSHI_MEMORY_ESTIMATE": switch}))
    module = command.plan(config, *facts).module
    assert module["lanes"] == lanes
    assert (module["codec_weights_bytes"], module["workspace_bytes"]) == (0, 0)
    assert module["sizes"].startswith("by rules of thumb (the estimate is off)")
    assumed = "7 billion parameters assumed" in module["sizes"]
    assert assumed == ("MOSHI_MODEL_PARAMS_BILLIONS" not in variables)
    for name, value in variables.items():
        assert f"{name} = {value}" in module["sizes"]


@pytest.mark.parametrize(
    ("precision", "bytes_each"), [("f32", 4), ("f16", 2), ("bf16", 2), ("q8", 34 / 32)]
)
def test_rules_of_thumb_know_precisions(
    precision: str, bytes_each: float, command: Command
) -> None:
    command.set(MOSHI_MEMORY_ESTIMATE="off", MOSHI_MODEL_PARAMS_BILLIONS="2")
    module = command.plan("stt-1b-en_fr", *card(20000), "--precision", precision).module
    assert module["lm_weights_bytes"] == int(2e9 * bytes_each)
    assert module["lanes"] == by_hand(20000, 2, bytes_each, 400)
    for name, each in (("f32", 4), ("q8", 34 / 32)):
        assert module["most_lanes_by_precision"][name] == by_hand(20000, 2, each, 400)


def test_the_environment_switches_the_estimate_on_again(command: Command, tmp_path: Path) -> None:
    config = configs.shipped_copy(tmp_path, "stt-1b-en_fr", section="[sizing]\nestimate = false\n")
    assert command.plan(config, *card(24000)).lanes == 25
    command.set(MOSHI_MEMORY_ESTIMATE="on")
    assert command.plan(config, *card(24000)).module["sizes"].startswith("computed from")


def test_a_rule_may_replace_a_part_of_the_computation(command: Command) -> None:
    computed = command.plan("stt-1b-en_fr", *CARD).module
    command.set(MOSHI_PER_BATCH_ITEM_MB="400")
    module = command.plan("stt-1b-en_fr", *CARD).module
    assert module["lane_bytes"] == 400 * MIB
    for part in ("lm_weights", "codec_weights", "workspace"):
        assert module[f"{part}_bytes"] == computed[f"{part}_bytes"]
    assert module["sizes"].startswith("computed from the model's shape")
    assert module["sizes"].endswith(", MOSHI_PER_BATCH_ITEM_MB = 400")
    fixed = computed["total_bytes"] - computed["lanes"] * computed["lane_bytes"]
    assert module["lanes"] == ((7500 - 512 - DRIVER_MIB) * MIB - fixed) // (400 * MIB)


def test_parameters_may_be_said(command: Command) -> None:
    computed = command.plan("stt-1b-en_fr", *CARD).module
    command.set(MOSHI_MODEL_PARAMS_BILLIONS="1.2")
    module = command.plan("stt-1b-en_fr", *CARD).module
    assert module["lm_weights_bytes"] == 4_800_000_000
    assert module["codec_weights_bytes"] == computed["codec_weights_bytes"]
    assert module["lane_bytes"] == computed["lane_bytes"]
    assert module["lanes"] < computed["lanes"]
    assert "MOSHI_MODEL_PARAMS_BILLIONS = 1.2" in module["sizes"]


# Files.


@pytest.fixture(name="files")
def _files(tiny_dir: Path, tmp_path: Path, command: Command) -> Path:
    """A folder with the tiny model's files, which its configuration names."""
    folder = tmp_path / "files"
    shutil.copytree(tiny_dir, folder, ignore=shutil.ignore_patterns("logs"))
    command.set(MOSHI_CTL_TINY_DIR=str(folder))
    return folder


def test_a_file_that_is_here_is_read(files: Path, command: Command) -> None:
    assert command.plan("tiny-random", *CARD).module["sizes"] == "computed from the file's header"
    command.set(MOSHI_MEMORY_ESTIMATE="off")
    module = command.plan("tiny-random", *CARD).module
    tensors, _ = safetensors.header(files / "model.safetensors")
    parameters = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
    assert module["lm_weights_bytes"] == 4 * parameters
    assert module["lane_bytes"] == 400 * MIB
    assert "assumed" not in module["sizes"]
    command.set(MOSHI_MODEL_PARAMS_BILLIONS="0.25")
    assert command.plan("tiny-random", *CARD).module["lm_weights_bytes"] == 1_000_000_000


def test_a_file_that_is_not_here_is_taken_as_its_shape_says(files: Path, command: Command) -> None:
    with_file = command.plan("tiny-random", *CARD).module
    (files / "model.safetensors").unlink()
    said = command.plan("tiny-random", *CARD)
    assert (said.code, said.err) == (0, "")
    assert said.module["sizes"] == "computed from the model's shape (its file is not here)"
    assert said.module["lm_weights_bytes"] == with_file["lm_weights_bytes"]
    # Nor do the files that the plan needs nothing of.
    (files / "codec.safetensors").unlink()
    assert command.plan("tiny-random", *CARD).code == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "another model's", "a folder"])
def test_a_damaged_file_is_named(damage: str, files: Path, command: Command) -> None:
    path = files / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
        # It is no file, so it is not here; a worker says so.
        assert "its file is not here" in command.plan("tiny-random", *CARD).module["sizes"]
        return
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[:1000],
            "noise": bytes((7 * i + 3) % 256 for i in range(4096)),
            "another model's": (files / "codec.safetensors").read_bytes(),
        }[damage]
    )
    said = command.plan("tiny-random", *CARD)
    assert (said.code, said.out) == (1, "")
    assert str(path) in said.error


def test_a_file_that_was_downloaded_is_here(tiny_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123")
    (repository / "snapshots/0123").mkdir(parents=True)
    shutil.copy(tiny_dir / "model.safetensors", repository / "snapshots/0123")
    config = configs.shipped_copy(
        tmp_path, "tiny-random", 'lm_model_file = "hf://someone/tiny/model.safetensors"'
    )
    result = cli.run(
        "plan", "--config", config, *CARD,
        cwd=tmp_path, env={"HF_HOME": str(tmp_path), "MOSHI_CTL_TINY_DIR": "/nowhere"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "sizes: computed from the file's header" in result.stdout
