"""A worker decides before it loads anything, prints it, and does it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from moshi_ctl import ram
from support import cli, configs, emulated_cuda
from support.fake_nvml import RTX_3060
from support.worker import KEY, worker

MIB = 2**20
MEASURED = "device keeps in real time, and offers no more than that."


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


def lane_mib(fitting: float) -> str:
    """What a lane has to take for so many to fit in what is free here now."""
    return f"{ram.read().available_bytes / MIB / fitting:.0f}"


def decisions(printed: list[str]) -> list[str]:
    """The lines of a plan, without the bar and its legend: what is free moves all the time."""
    first = next(i for i, line in enumerate(printed) if line.startswith("cpu  "))
    bar = next(i for i, line in enumerate(printed) if line.startswith("["))
    table = next(i for i, line in enumerate(printed) if line.startswith(" module "))
    end = next(i for i, line in enumerate(printed) if line == MEASURED)
    assert first < bar < table < end
    return [printed[first], *printed[table : end + 1]]


def test_it_prints_what_plan_prints_before_it_loads(env: dict[str, str], tmp_path: Path) -> None:
    planned = cli.run("plan", "--config", "tiny-random", "--cpu", cwd=tmp_path, env=env)
    with worker("tiny-random", cwd=tmp_path, env=env) as started:
        printed = [line.rstrip("\n") for line in started.log]
    assert decisions(printed) == decisions(planned.stdout.splitlines())
    end = printed.index(MEASURED)
    loading = next(i for i, line in enumerate(printed) if "the model is loaded" in line)
    assert end < loading


def test_silent_prints_nothing(env: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = cli.run(
            "worker", "--config", "tiny-random", "--cpu", "--silent", "-a", "127.0.0.1", "-p", port,
            cwd=tmp_path, env=env,
        )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({"MOSHI_PER_BATCH_ITEM_MB": "1000000"}, []),
        ({"MOSHI_MODEL_PARAMS_BILLIONS": "10000"}, []),
        ({}, ["--reserve-mb", "1048576"]),
    ],
)
def test_what_does_not_fit_is_neither_downloaded_nor_loaded(
    variables: dict[str, str], arguments: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    config = configs.shipped_copy(
        tmp_path, "tiny-random", 'audio_tokenizer_file = "hf://someone/tiny/codec.safetensors"'
    )
    # Whoever asks it gets no answer.
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    result = cli.run(
        "worker", "--config", config, "--cpu", "-a", "127.0.0.1", "-p", "0", *arguments,
        cwd=tmp_path, env={**env, **nowhere, **variables},
    )  # fmt: skip
    assert result.returncode == 1
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: module asr: one lane needs ")
    assert "but cpu (" in error
    assert hint.startswith("hint: ")
    assert "0 of 4" in result.stdout  # the plan is printed, so that it can be seen why
    assert "loaded" not in result.stdout
    assert "listening" not in result.stdout


@pytest.mark.parametrize("wanted", ["4", '"auto"'])
def test_it_offers_the_lanes_that_fit(wanted: str, env: dict[str, str], tmp_path: Path) -> None:
    # Two lanes take four fifths of what is free, three would take more than there is.
    config = configs.shipped_copy(tmp_path, "tiny-random", f"batch_size = {wanted}")
    huge = {**env, "MOSHI_PER_BATCH_ITEM_MB": lane_mib(2.5), "MOSHI_RESERVE_MB": "0"}
    with worker(config, cwd=tmp_path, env=huge) as started:
        (module,) = started.modules()
        assert module["total_slots"] == "2"
        printed = "".join(started.log)
    assert ("2 of 4" in printed) == (wanted == "4")
    assert "lanes=2" in printed


def test_a_reserve_takes_lanes_away(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.shipped_copy(tmp_path, "tiny-random", "batch_size = 3")
    # As much stays free as a lane takes: with one lane that is four fifths of what is free.
    part = lane_mib(2.5)
    huge = {**env, "MOSHI_PER_BATCH_ITEM_MB": part}
    with worker(config, "--reserve-mb", part, cwd=tmp_path, env=huge) as started:
        assert started.modules()[0]["total_slots"] == "1"


def test_the_cpu_instead_of_a_card_is_warned_of_once(env: dict[str, str], tmp_path: Path) -> None:
    machine = emulated_cuda.machine_with_nvml_alone(tmp_path, RTX_3060)
    with worker("tiny-random", cwd=tmp_path, env={**env, **machine}, device=None) as started:
        (warning,) = [line for line in started.log if " WARN moshi_ctl: " in line]
        assert (
            "the models run on the CPU: NVIDIA GeForce RTX 3060 (cuda:0): libcuda, which the "
            "NVIDIA driver brings, cannot be loaded; install "
        ) in warning
        assert "device=cpu" in "".join(started.log)
        assert started.modules()[0]["total_slots"] == "4"


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda:0", "cuda:0 is asked for: libcuda, which the NVIDIA driver brings, cannot be "),
        ("cuda:1", "there is only cuda:0 (NVIDIA GeForce RTX 3060)"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(
    device: str, says: str, env: dict[str, str], tmp_path: Path
) -> None:
    machine = emulated_cuda.machine_with_nvml_alone(tmp_path, RTX_3060)
    result = cli.run(
        "worker", "--config", "tiny-random", "--device", device, "-a", "127.0.0.1", "-p", "0",
        cwd=tmp_path, env={**env, **machine},
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert says in error
    assert hint.startswith("hint: ")
