"""Where a worker's lines go, and that nothing stops when they cannot."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import cli, configs, exposition, speech
from support.fake_hub import FakeFile, fake_hub
from support.waiting import TIMEOUT_S, wait_until
from support.worker import KEY, Worker, worker

TEXT_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (ERROR| WARN| INFO|DEBUG|TRACE) "
    r"((session|model)\{.*?\}(:[a-z-]+)*: )?[\w:.]+: ."
)


def without_times(lines: str) -> str:
    return re.sub(r"\d\d:\d\d:\d\d\.\d{3}", "", lines)


# Python's half as a worker uses it.
SAY = """
import logging, sys, warnings
from pathlib import Path
from moshi_ctl import config, logs

def say():
    warnings.warn("an old thing", DeprecationWarning)
    logging.getLogger("somebody.else").info("%s lines", "of others")
    logging.getLogger("somebody.else").debug("canary")
    logging.getLogger("httpx").info("GET https://canary")
    logging.getLogger("moshi_ctl.part").debug("of ours")
    logging.getLogger("moshi_ctl.part").log(5, "more of ours")
    logging.getLogger("a").info("%d", "is no number")
    logging.getLogger("a").info("half a character: \\udc80")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("a").exception("that was not expected")
    logs.warn("mind this", hint="do that")

options = logs.LogOptions(level=sys.argv[2], format=sys.argv[3])
with logs.running(config.read(Path(sys.argv[1])), options):
    say()
"""


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    """The configuration tiny-random with log files of its own."""
    return configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path / "logs")))


def log_of(config: Path) -> Path:
    return config.parent / "logs" / "log.tiny-random"


def hear(started: Worker, audio: Path = speech.SPEECH) -> str:
    """Streams a recording and gives what is heard."""
    result = cli.run("transcribe", audio, "--url", started.url, "--key", KEY, cwd=audio.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout


def dropped(started: Worker) -> float:
    return exposition.samples(started)["moshi_log_lines_dropped_total"]


def test_lines_of_a_file_are_plain_and_of_one_shape(env: dict[str, str], config: Path) -> None:
    with worker(config, cwd=config.parent, env={**env, "NO_COLOR": ""}) as started:
        heard = hear(started)
        assert started.end() == 0
    assert heard.strip()
    lines = log_of(config).read_text().splitlines()
    assert all(TEXT_LINE.match(line) for line in lines), lines
    said = "\n".join(lines)
    assert "\x1b" not in said
    for expected in ("module asr gets 4 lanes on cpu", "listening on http://127.0.0.1:", "ended"):
        assert expected in said
    # The table of the plan is for the console, and its words are for files.
    assert "in all" in "".join(started.log)
    assert "module asr gets" not in "".join(started.log)


def test_json_lines_on_the_console_and_in_files(env: dict[str, str], config: Path) -> None:
    environment = {**env, "MOSHI_API_KEY": ""}
    with worker(config, "--log-format", "json", cwd=config.parent, env=environment) as started:
        for _ in range(2):
            hear(started)
        assert started.end() == 0
    for lines in (started.log, log_of(config).read_text().splitlines()):
        said: list[dict[str, Any]] = [json.loads(line) for line in lines]
        for line in said:
            assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
            assert line["level"] in {"ERROR", "WARN", "INFO"}
            assert line["target"].startswith("moshi_ctl")
        assert any(line["message"].startswith("no API key is set") for line in said)
        assert any(line["message"].startswith("module asr gets") for line in said)
        (loaded,) = [line for line in said if line["message"] == "the model is loaded"]
        assert (loaded["lanes"], loaded["device"]) == (4, "cpu")
        for session in (1, 2):
            of_it = [line for line in said if line.get("span", {}).get("id") == session]
            assert all(line["span"]["module"] == "asr" for line in of_it)
            assert {"session begins"} < {line["message"] for line in of_it}
        assert all("span" in line for line in said if "session" in line["message"])


def test_no_line_per_step(env: dict[str, str], config: Path, tmp_path: Path) -> None:
    samples = speech.speech(10.0)
    short = speech.write(tmp_path / "short.wav", samples, 24_000)
    long = speech.write(tmp_path / "long.wav", np.concatenate([samples] * 5), 24_000)

    def lines(audio: Path) -> int:
        before = log_of(config).read_text()
        hear(started, audio)
        wait_until(lambda: "session over" in log_of(config).read_text().removeprefix(before))
        return len(log_of(config).read_text().removeprefix(before).splitlines())

    with worker(config, cwd=config.parent, env=env) as started:
        wait_until(lambda: "listening" in log_of(config).read_text())
        assert lines(short) == lines(long) <= 5


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_python_s_messages_are_in_the_same_files(
    line_format: str, config: Path, tiny_dir: Path
) -> None:
    def said(level: str) -> tuple[str, str]:
        log_of(config).unlink(missing_ok=True)
        result = subprocess.run(
            [sys.executable, "-W", "default", "-c", SAY, str(config), level, line_format],
            env=cli.environment({"MOSHI_CTL_TINY_DIR": str(tiny_dir)}),
            capture_output=True,
            text=True,
            timeout=cli.TIMEOUT_S,
            check=True,
        )
        assert "canary" not in result.stdout + result.stderr
        file = log_of(config).read_text()
        # Each of the two looks at the clock for itself.
        assert without_times(file) == without_times(result.stdout)
        return file, result.stderr

    file, stderr = said("trace")
    # What cannot be put together ends nothing, and is told where Python tells it.
    assert "is no number" in stderr
    expected = [
        ("WARN", "py.warnings", "an old thing"),
        ("INFO", "somebody.else", "of others lines"),
        ("DEBUG", "moshi_ctl.part", "of ours"),
        ("TRACE", "moshi_ctl.part", "more of ours"),
        ("INFO", "a", "half a character: \\udc80"),
        ("ERROR", "a", "that was not expected"),
        ("WARN", "moshi_ctl", "mind this; do that"),
    ]
    if line_format == "json":
        found = [json.loads(line) for line in file.splitlines()]
        assert [line["target"] for line in found] == [target for _, target, _ in expected]
        for line, (level, _, message) in zip(found, expected, strict=True):
            assert line["level"] == level
            assert message in line["message"]
    else:
        for level, target, message in expected:
            assert re.search(f"{level} {target}: .*{re.escape(message)}", file)
    assert "ValueError: broken" in file
    quiet, _ = said("warn")
    assert "mind this" in quiet
    assert "of others" not in quiet
    assert "of ours" not in quiet


def test_what_ends_a_worker_is_one_line_of_its_log(env: dict[str, str], config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = cli.run(
            "worker", "--config", config, "-a", "127.0.0.1", "-p", port, cwd=config.parent, env=env
        )
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: port {port} on 127.0.0.1 is in use")
    lines = log_of(config).read_text().splitlines()
    (line,) = [line for line in lines if "ERROR" in line]
    assert error.removeprefix("error: ") in line
    assert hint.removeprefix("hint: ") in line
    assert "ERROR" not in result.stdout


def test_downloads_leave_a_console_of_json_alone(tiny_dir: Path, tmp_path: Path) -> None:
    names = ("model.safetensors", "codec.safetensors", "tokenizer.model")
    config = configs.tiny(
        tmp_path,
        ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path / "logs")),
        *((f"$MOSHI_CTL_TINY_DIR/{name}", f"hf://org/repo/{name}") for name in names),
    )
    with fake_hub() as hub:
        hub.files = {f"org/repo/{name}": FakeFile((tiny_dir / name).read_bytes()) for name in names}
        env = {**hub.environment(tmp_path / "hf"), "MOSHI_CTL_TINY_DIR": str(tmp_path)}
        with worker(config, "--log-format", "json", cwd=tmp_path, env=env) as started:
            started.end()
    assert len(hub.requests) >= len(names)
    for line in started.log:
        assert json.loads(line)["message"]


def test_files_are_rotated_and_only_some_kept(env: dict[str, str], config: Path) -> None:
    log = log_of(config)
    log.parent.mkdir()
    log.write_text("of yesterday\n")
    yesterday = time.time() - 24 * 3600
    os.utime(log, (yesterday, yesterday))
    for number in (1, 2, 3):
        log.with_name(f"log.tiny-random.{number}").write_text(f"older {number}\n")
    big = ("--log-max-size-mb", "1", "--log-max-files", "2")
    with worker(config, *big, cwd=config.parent, env=env) as started:
        started.end()
    kept = {path.name: path.read_text() for path in log.parent.iterdir()}
    assert {"log.tiny-random", "log.tiny-random.1", "log.tiny-random.2"} == set(kept)
    assert kept["log.tiny-random.1"] == "of yesterday\n"
    assert kept["log.tiny-random.2"] == "older 1\n"
    # A full one of today.
    log.write_text("x" * (2**20 - 1) + "\n")
    with worker(config, *big, cwd=config.parent, env=env) as started:
        started.end()
    assert log.with_name("log.tiny-random.1").stat().st_size == 2**20
    assert log.with_name("log.tiny-random.2").read_text() == "of yesterday\n"
    assert "listening" in log.read_text()


def test_a_folder_that_cannot_be_written_stops_nothing(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "logs"
    config = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(folder)))
    with worker(config, cwd=tmp_path, env=env) as started:
        assert hear(started).strip()
        wait_until(lambda: dropped(started) >= 5)
        # What was in the way is gone.
        (tmp_path / "file").unlink()
        time.sleep(1.1)
        assert hear(started).strip()
        assert started.end() == 0
    (warning,) = [line for line in started.log if " WARN " in line and "lines of the log" in line]
    assert f"{folder}/log.tiny-random" in warning
    note, *lines = (folder / "log.tiny-random").read_text().splitlines()
    assert re.search(r": \d+ lines are missing here", note)
    assert all(TEXT_LINE.match(line) for line in [note, *lines])
    assert "session id" not in note
    assert "session over" in "".join(lines)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits a running process")
@pytest.mark.parametrize("line_format", ["text", "json"])
def test_a_full_disk_stops_nothing(line_format: str, env: dict[str, str], config: Path) -> None:
    log = log_of(config)
    with worker(config, "--log-format", line_format, cwd=config.parent, env=env) as started:
        wait_until(lambda: "listening" in log.read_text())
        before = log.read_text()
        # In the middle of the next line.
        hard = resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE)[1]
        limit = (log.stat().st_size + 40, hard)
        resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, limit)
        heard = hear(started)
        time.sleep(1.1)
        assert hear(started) == heard
        assert heard.strip()
        wait_until(lambda: sum("session over" in line for line in started.log) == 2)
        # Two lines per session, and the warning.
        wait_until(lambda: dropped(started) == 5)
        assert log.read_text() == before
        resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        time.sleep(1.1)
        assert hear(started) == heard
        assert dropped(started) == 5
        assert started.end() == 0
    assert sum("lines of the log are lost" in line for line in started.log) == 1
    note, *later = log.read_text().removeprefix(before).splitlines()
    assert re.search(r"\b5 lines are missing here, .*File too large", note)
    assert any("session over" in line for line in later)
    for line in (note, *later):
        assert json.loads(line) if line_format == "json" else TEXT_LINE.match(line)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_console_that_cannot_be_written_stops_nothing(env: dict[str, str], config: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["worker", "--config", str(config), "--cpu", "-a", "127.0.0.1", "-p", str(port)]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [*cli.COMMAND, *arguments],
            cwd=config.parent, env=cli.environment(env), stdout=full, stderr=full, text=True,
        )  # fmt: skip

    def is_ready() -> bool:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=10):
                return True
        except urllib.error.URLError:
            return False

    try:
        wait_until(is_ready)
        assert hear(Worker(process, port)).strip()
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
    assert "session over" in log_of(config).read_text()


@pytest.mark.parametrize(
    "options",
    [
        ("--log-format", "xml"),
        ("--log-max-size-mb", "0"),
        ("--log-max-files", "-1"),
        ("--log-max-files", "1001"),
    ],
)
def test_options_that_make_no_sense(options: tuple[str, str], config: Path) -> None:
    result = cli.run("worker", "--config", config, *options, cwd=config.parent)
    assert result.returncode == 2
    assert options[0] in result.stderr
    assert not log_of(config).exists()
