"""The command line as a process: output, hints and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

import moshi_ctl
from moshi_ctl import _native, shipped
from support import cli, speech

USAGE_ERROR = 2


def test_version(tmp_path: Path) -> None:
    result = cli.run("--version", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"moshi-ctl {moshi_ctl.__version__}\n")


def test_help_names_every_command(tmp_path: Path) -> None:
    result = cli.run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for command in (
        "worker",
        "validate",
        "configs",
        "transcribe",
        "metrics",
        "warmup",
        "random-checkpoint",
        "quantize",
        "bench",
    ):
        assert command in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["worker"],
        ["worker", "--config", "tiny-random", "--log", "loud"],
        ["worker", "--config", "tiny-random", "--port", "65536"],
        ["worker", "--config", "tiny-random", "--bogus"],
        ["worker", "--config", "tiny-random", "--threads", "0"],
        ["worker", "--config", "tiny-random", "--threads", str(_native.MAX_THREADS + 1)],
        ["worker", "--config", "tiny-random", "--threads", "two"],
        ["worker", "--config", "tiny-random", "--precision", "q4"],
        ["worker", "--config", "tiny-random", "--kv-precision", "int8"],
        ["validate"],
        ["transcribe"],
        ["transcribe", "a.wav", "--format", "doc"],
        ["configs", "no-such-config"],
        ["random-checkpoint", "--config", "tiny-random", "--precision", "q8"],
        ["quantize"],
        ["quantize", "a.safetensors"],
    ],
)
def test_usage_errors(arguments: list[str], tmp_path: Path) -> None:
    result = cli.run(*arguments, cwd=tmp_path)
    assert result.returncode == USAGE_ERROR
    assert "Traceback" not in result.stderr
    assert "rror" in result.stderr


@pytest.mark.parametrize("option", ["--precision", "--kv-precision"])
def test_a_precision_that_is_none_is_refused_with_the_list(option: str, tmp_path: Path) -> None:
    result = cli.run("worker", "--config", "tiny-random", option, "q4", cwd=tmp_path)
    assert result.returncode == USAGE_ERROR
    for name in ("q4", "auto", "f32", "f16", "bf16", "q8"):
        assert f"'{name}'" in result.stderr


@pytest.mark.parametrize(
    ("wish", "limit"), [(0, 1), (_native.MAX_THREADS + 1, _native.MAX_THREADS)]
)
def test_threads_from_the_environment_are_checked_too(
    wish: int, limit: int, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"MOSHI_THREADS={wish}\n")
    result = cli.run("worker", "--config", "tiny-random", cwd=tmp_path)
    assert result.returncode == USAGE_ERROR
    # In a box, whose lines break anywhere.
    said = " ".join(line.strip("│ ") for line in result.stderr.splitlines())
    assert "MOSHI_THREADS" in said
    assert f"equal to {limit}" in said


def test_random_files_in_q8_are_refused_with_a_way_to_have_them(tmp_path: Path) -> None:
    result = cli.run(
        "random-checkpoint",
        "--config",
        "tiny-random",
        "--precision",
        "q8",
        cwd=tmp_path,
        env={"MOSHI_CTL_TINY_DIR": str(tmp_path)},
    )
    assert result.returncode == USAGE_ERROR
    assert "q8" in result.stderr
    assert "hint: write bf16, then make it q8 with `moshi-ctl quantize`" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_configs_are_listed_and_printed(tmp_path: Path) -> None:
    listed = cli.run("configs", cwd=tmp_path)
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == shipped.names()
    printed = cli.run("configs", "stt-1b-en_fr", cwd=tmp_path)
    assert printed.returncode == 0
    assert printed.stdout == shipped.path_of("stt-1b-en_fr").read_text()


def test_validate_checks_every_file_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("x = 1\n")
    result = cli.run("validate", "bad.toml", "stt-1b-en_fr", "missing.toml", cwd=tmp_path)
    assert result.returncode == USAGE_ERROR
    assert "stt-1b-en_fr: ok (asr at /api/asr-streaming)" in result.stdout
    assert "error: bad.toml:1: x: unknown key" in result.stderr
    assert "error: missing.toml: no such file" in result.stderr
    assert result.stderr.count("hint: ") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.wav"], "missing.wav: no such file"),
        (["config.txt"], "config.txt: not readable as audio"),
        (["speech.wav", "--url", "ws://127.0.0.1:1"], "nothing listens there"),
        (["speech.wav", "--url", "speech"], "'speech' is not the address of a server"),
    ],
)
def test_transcribe_says_what_is_wrong(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.txt").write_text("text")
    (tmp_path / "speech.wav").symlink_to(speech.SPEECH)
    result = cli.run("transcribe", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.strip() == ""
