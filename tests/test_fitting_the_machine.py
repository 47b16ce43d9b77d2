"""Workers that offer fewer lanes than they were asked for: no memory for more, or no time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moshi_ctl import _native, config
from support import cli, configs, speech
from support.worker import KEY, worker

# Rings of this many frames are large beside everything else a small model has.
CONTEXT = 30_000
LANES = 64


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


def tiny(folder: Path, lanes: int | str, *more: tuple[str, str]) -> Path:
    return configs.tiny(folder, ("batch_size = 4", f"batch_size = {lanes}"), *more)


def slots(log: list[str]) -> int:
    """How many lanes were loaded, by the log."""
    found = re.search(r"the model is loaded .*lanes=(\d+)", "".join(log))
    assert found is not None, log
    return int(found[1])


def needs(path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> int:
    """Bytes of a lane."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    module = next(iter(config.read(path).modules))
    entry = _native.memory_needs(
        path,
        module,
        files={},
        device="cpu",
        compute_capability=None,
        precision=None,
        kv_precision=None,
    )["by_precision"]["q8"]
    return int(entry["lane_bytes"])


def address_space(pid: int) -> int:
    """The most that a process had of it, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmPeak:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def test_without_memory_for_all_lanes_it_starts_with_fewer(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_rings = ("context = 100", f"context = {CONTEXT}")
    no_measuring = ("[modules.asr]", "[sizing]\nreal_time = false\n[modules.asr]")
    one = tiny(tmp_path, 1, long_rings, no_measuring)
    lane_bytes = needs(one, monkeypatch, env)
    with worker(one, cwd=tmp_path, env=env) as started:
        with_one = address_space(started.process.pid)
    many = tiny(tmp_path, LANES, long_rings, no_measuring)
    limit = with_one + int(0.4 * LANES) * lane_bytes
    with worker(many, cwd=tmp_path, env=env, address_space_bytes=limit) as started:
        said = "".join(started.log)
        assert "out of memory: " in said
        assert f"with {LANES} lanes: trying again with {LANES // 2}" in said
        offered = int(started.modules()[0]["total_slots"])
        assert offered == slots(started.log)
        assert 1 <= offered <= LANES // 2
        # And they work.
        result = cli.run(
            "transcribe", speech.SPEECH, "--url", started.url, "--key", KEY,
            cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr


def test_without_memory_for_one_lane_it_gives_up_plainly(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tiny(tmp_path, 2)
    with worker(one, cwd=tmp_path, env=env) as started:
        enough = address_space(started.process.pid)
    huge = tiny(tmp_path, 2, ("context = 100", "context = 1000000"))
    assert needs(huge, monkeypatch, env) > enough // 4
    result = cli.run(
        "worker", "--config", huge, "-a", "127.0.0.1", "-p", "0", "--cpu",
        cwd=tmp_path, env=env, address_space_bytes=enough + needs(huge, monkeypatch, env) // 3,
    )  # fmt: skip
    assert result.returncode == 1
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "module asr: out of memory: " in error
    assert "Not even one lane fits" in result.stderr
    assert "Traceback" not in result.stderr
    assert "listening" not in result.stdout


def test_lanes_beyond_real_time_are_not_offered(env: dict[str, str], tmp_path: Path) -> None:
    slow = {**env, "MOSHI_INSTRUCTIONS": "portable", "MOSHI_THREADS": "1"}
    lanes = 512
    with worker(tiny(tmp_path, lanes), cwd=tmp_path, env=slow) as started:
        offered = int(started.modules()[0]["total_slots"])
        assert 1 <= offered < lanes
        assert f"{offered} lanes are offered instead of {lanes}: a step of" in "".join(started.log)
    with worker(tiny(tmp_path, '"auto"'), cwd=tmp_path, env=slow) as started:
        assert 1 <= int(started.modules()[0]["total_slots"]) < lanes
        warnings = [line for line in started.log if "WARN" in line and "offered" in line]
        assert not warnings


@pytest.mark.parametrize("section", ["[sizing]\nreal_time = false", "[warmup]\nenabled = false"])
def test_measuring_can_be_switched_off(section: str, env: dict[str, str], tmp_path: Path) -> None:
    slow = {**env, "MOSHI_INSTRUCTIONS": "portable", "MOSHI_THREADS": "1"}
    lanes = _native.MAX_LANES
    path = tiny(tmp_path, lanes, ("[modules.asr]", f"{section}\n[modules.asr]"))
    with worker(path, cwd=tmp_path, env=slow) as started:
        assert started.modules()[0]["total_slots"] == str(lanes)
