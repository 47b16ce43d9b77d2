"""`moshi-ctl bench` with the tiny model: what it reports, never how fast it was."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from moshi_ctl import _native, bench, shipped
from moshi_ctl.errors import UsageError
from support import cli, configs

NUMBERS = ("step_median_ms", "step_p95_ms", "step_p99_ms", "codec_median_ms", "lm_median_ms")


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}


def measured(*arguments: str, cwd: Path, env: dict[str, str]) -> dict[str, Any]:
    result = cli.run(
        "bench", "--config", "tiny-random", "--cpu", "--json", *arguments, cwd=cwd, env=env
    )
    assert result.returncode == 0, result.stderr
    results: dict[str, Any] = json.loads(result.stdout)
    return results


@pytest.mark.parametrize("context", ["empty", "full"])
def test_json_has_every_number_of_lanes(context: str, env: dict[str, str], tmp_path: Path) -> None:
    results = measured(
        "--lanes", "4,1,2,1", "--steps", "7", "--context", context, cwd=tmp_path, env=env
    )
    assert (results["config"], results["module"]) == ("tiny-random", "asr")
    assert (results["context"], results["frame_ms"]) == (context, 80.0)
    assert (results["steps"], results["loaded_lanes"]) == (7, 4)
    assert results["random_weights"] is False
    assert results["load_s"] > 0
    assert results["resident_after_load_bytes"] > 0
    assert results["peak_resident_bytes"] >= results["resident_after_load_bytes"]
    assert results["resident_per_further_lane_bytes"] >= 0
    measurements = results["measurements"]
    assert [one["lanes"] for one in measurements] == [1, 2, 4]
    for one in measurements:
        assert all(one[number] > 0 for number in NUMBERS)
        assert one["step_median_ms"] <= one["step_p95_ms"] <= one["step_p99_ms"]
        assert one["keeps_real_time"] is (one["step_p99_ms"] <= results["frame_ms"])
        assert one["real_time_factor"] == pytest.approx(80.0 / one["step_median_ms"])
        assert one["resident_bytes"] > 0


def test_options_reach_the_engine(env: dict[str, str], tmp_path: Path) -> None:
    results = measured(
        "--lanes", "2", "--steps", "2", "--precision", "f32", "--threads", "1",
        cwd=tmp_path, env=env,
    )  # fmt: skip
    assert results["precision"] == "f32"
    assert results["threads"] == 1
    assert results["resident_per_further_lane_bytes"] is None


def test_the_table_names_what_was_measured(env: dict[str, str], tmp_path: Path) -> None:
    result = cli.run(
        "bench", "--config", "tiny-random", "--cpu", "--lanes", "1,3", "--steps", "3",
        cwd=tmp_path, env=env,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0].isdigit()] == ["1", "3"]
    for said in ("median", "p99", "codec", "x real time", "ms", "lane", "Loaded in"):
        assert said in result.stdout
    assert "measuring 3 lanes" in result.stderr


@pytest.mark.parametrize(
    ("kept", "most", "more_may_fit"),
    [
        ([True, True], 4, True),
        ([True, False], 1, False),
        ([False, False], 0, False),
    ],
)
def test_conclusions(kept: list[bool], most: int, *, more_may_fit: bool) -> None:
    measurements = [
        {"lanes": lanes, "keeps_real_time": keeps, "resident_bytes": 1_000 + 10 * lanes}
        for lanes, keeps in zip((1, 4), kept, strict=True)
    ]
    assert bench._conclusions(measurements) == {
        "most_lanes_in_real_time": most,
        "more_may_fit": more_may_fit,
        "resident_per_further_lane_bytes": 10,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lanes", "0"],
        ["--lanes", "-1"],
        ["--lanes", "1,x"],
        ["--lanes", ""],
        ["--lanes", "1,,2"],
        ["--lanes", "²"],
        ["--lanes", "1000000"],
        ["--lanes", "9" * 20],
        ["--steps", "0"],
        ["--threads", "0"],
        ["--precision", "f8"],
        ["--context", "half"],
        ["--module", "other"],
        ["--random-dir", "."],
        ["--config", "missing.toml"],
    ],
)
def test_usage_errors(arguments: list[str], env: dict[str, str], tmp_path: Path) -> None:
    result = cli.run("bench", "--config", "tiny-random", *arguments, cwd=tmp_path, env=env)
    assert result.returncode == 2, result.stderr
    assert "rror" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.strip() == ""


def test_a_missing_file(tmp_path: Path) -> None:
    env = {"MOSHI_CTL_TINY_DIR": str(tmp_path)}
    result = cli.run("bench", "--config", "tiny-random", cwd=tmp_path, env=env)
    assert result.returncode == 2
    assert "model.safetensors" in result.stderr


def test_a_damaged_file(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(4096))
    config = configs.tiny(
        tmp_path, ("$MOSHI_CTL_TINY_DIR/codec.safetensors", str(tmp_path / "noise"))
    )
    result = cli.run("bench", "--config", config, cwd=tmp_path, env=env)
    assert result.returncode == 1
    assert "noise" in result.stderr
    assert "Traceback" not in result.stderr


def test_several_modules_need_a_choice(env: dict[str, str], tmp_path: Path) -> None:
    text = shipped.path_of("tiny-random").read_text()
    head, _, section = text.partition("[modules.asr]")
    second = section.replace("modules.asr", "modules.more").replace("asr-streaming", "more")
    path = tmp_path / "two.toml"
    path.write_text(f"{head}[modules.asr]{section}\n[modules.more]{second}")
    refused = cli.run("bench", "--config", path, cwd=tmp_path, env=env)
    assert refused.returncode == 2
    assert "--module: asr, more" in refused.stderr
    options = ("--module", "more", "--lanes", "1", "--steps", "2", "--json")
    chosen = cli.run("bench", "--config", path, *options, cwd=tmp_path, env=env)
    assert json.loads(chosen.stdout)["module"] == "more"


def test_without_a_configuration_the_folder_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli.run("bench", "--random-dir", tmp_path / "file" / "x", cwd=tmp_path)
    assert result.returncode == 1
    assert "about 2.4 GB, once" in result.stderr
    assert "hint: choose another folder with --random-dir" in result.stderr


def test_a_module_without_a_configuration(tmp_path: Path) -> None:
    result = cli.run("bench", "--module", "asr", cwd=tmp_path)
    assert result.returncode == 2
    assert "add --config" in result.stderr


def test_random_weights_are_written_once(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", str(tiny_dir))
    # The real shape would take gigabytes.
    monkeypatch.setattr(bench, "_RANDOM_CONFIG", "tiny-random")
    (tmp_path / "lm.safetensors.1.partial").touch()
    options = bench.BenchOptions(
        lanes=(1,), context=bench.Context.EMPTY, steps=2, threads=None, precision=None,
        device="cpu",
        as_json=True,
    )  # fmt: skip
    bench.run_with_random_weights(tmp_path, options)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(written) == {"lm.safetensors", "codec.safetensors", "tokenizer.model"}
    bench.run_with_random_weights(tmp_path, options)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


def test_ctrl_c_ends_it_between_two_steps(env: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [*cli.COMMAND, "bench", "--config", "tiny-random", "--steps", "100000", "--lanes", "4"],
        cwd=tmp_path,
        env=cli.environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        while "measuring" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=cli.TIMEOUT_S)
    assert process.returncode not in (0, None)
    assert stdout == ""
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": "none"}, "no module `none`"),
        ({"lanes": []}, "lanes"),
        ({"lanes": [1, 0]}, "lanes"),
        ({"steps": 0}, "steps"),
        ({"precision": "f8"}, "`f8` is no precision"),
    ],
)
def test_the_extension_checks_what_it_is_given(
    change: dict[str, Any], message: str, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", str(tiny_dir))
    arguments: dict[str, Any] = {
        "config_path": shipped.path_of("tiny-random"), "module": "asr", "files": {}, "lanes": [1],
        "full_context": False, "steps": 1, "threads": None, "precision": None, "device": "cpu",
        "progress": print,
    }  # fmt: skip
    with pytest.raises(UsageError, match=message):
        _native.bench(**{**arguments, **change})


def test_an_error_of_the_progress_callback_ends_it(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", str(tiny_dir))
    with pytest.raises(ZeroDivisionError):
        _native.bench(
            shipped.path_of("tiny-random"), "asr", files={}, lanes=[1], full_context=False, steps=1,
            threads=None, precision=None, device="cpu", progress=lambda lanes: lanes // 0,
        )  # fmt: skip
