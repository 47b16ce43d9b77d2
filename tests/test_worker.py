"""The life of a worker process: how it starts, what keeps it from starting, how it ends."""

from __future__ import annotations

import json
import platform
import signal
import socket
from pathlib import Path

import pytest

from support import cli, configs, speech
from support.loopback import is_open
from support.refusals import refusal
from support.scripted_server import closed_port
from support.waiting import wait_until
from support.worker import KEY, Worker, starting, worker


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(number: int, env: dict[str, str], tmp_path: Path) -> None:
    with worker("tiny-random", cwd=tmp_path, env=env) as started:
        assert json.loads(started.get("/api/build_info"))["version"]
        assert json.loads(started.get("/health/ready")) == {"status": "ok"}
        assert started.end(number) == 0
        with socket.socket() as again:
            assert again.connect_ex(("127.0.0.1", started.port)) != 0
    assert "Traceback" not in "".join(started.log)


def test_without_a_key_it_does_not_leave_loopback(env: dict[str, str], tmp_path: Path) -> None:
    no_key = {**env, "MOSHI_API_KEY": " "}
    for addr in ([], ["-a", "0.0.0.0"], ["--addr", "::"]):
        error, hint = refusal(
            "--config", "tiny-random", "-p", "0", *addr, cwd=tmp_path, env=no_key, code=2
        )
        assert "no API key is set" in error
        assert "MOSHI_API_KEY" in str(hint)
        assert "--addr 127.0.0.1" in str(hint)


def test_without_a_key_loopback_is_open_with_a_warning(env: dict[str, str], tmp_path: Path) -> None:
    with worker("tiny-random", cwd=tmp_path, env={**env, "MOSHI_API_KEY": ""}) as started:
        (warning,) = [line for line in started.log if "no API key is set" in line]
        assert " WARN moshi_ctl: " in warning
        assert "MOSHI_API_KEY" in warning
        result = cli.run("transcribe", speech.SPEECH, "--url", started.url, cwd=tmp_path)
        assert result.returncode == 0, result.stderr


def test_a_port_may_be_given_and_the_console_be_silent(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path / "logs")))
    port = closed_port()
    with starting(config, "--silent", cwd=tmp_path, env=env, port=port) as started:
        wait_until(lambda: is_open(port))
        assert started.log == []
    logged = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert f"127.0.0.1:{port}" in logged


def test_which_keys_hold(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.tiny(
        tmp_path,
        (
            'instance_name = "tiny-random"',
            'instance_name = "tiny-random"\nauthorized_ids = ["in-file"]',
        ),
    )
    no_env = {name: value for name, value in env.items() if name != "MOSHI_API_KEY"}

    def accepted(url: str) -> set[str]:
        return {
            key
            for key in ("in-file", "in-env", "other", "in-dot-env")
            if cli.run(
                "transcribe", speech.SPEECH, "--url", url, "--key", key, cwd=tmp_path
            ).returncode
            == 0
        }

    with worker(config, cwd=tmp_path, env=no_env) as started:
        assert accepted(started.url) == {"in-file"}
    with worker(config, cwd=tmp_path, env={**env, "MOSHI_API_KEY": " in-env , other"}) as started:
        assert accepted(started.url) == {"in-env", "other"}
    (tmp_path / ".env").write_text("MOSHI_API_KEY=in-dot-env\n")
    with worker(config, cwd=tmp_path, env=no_env) as started:
        assert accepted(started.url) == {"in-dot-env"}
    with worker(config, cwd=tmp_path, env={**env, "MOSHI_API_KEY": "in-env"}) as started:
        assert accepted(started.url) == {"in-env"}


@pytest.mark.parametrize("addr", ["somewhere", "256.0.0.1", "127.0.0.1:80"])
def test_an_address_that_is_none(addr: str, env: dict[str, str], tmp_path: Path) -> None:
    error, hint = refusal(
        "--config", "tiny-random", "-p", "0", "--addr", addr, cwd=tmp_path, env=env, code=2
    )
    assert addr in error
    assert hint


def transcript(url: str, folder: Path) -> str:
    result = cli.run("transcribe", speech.SPEECH, "--url", url, "--key", KEY, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded(log: list[str]) -> dict[str, str]:
    """What the one line about a loaded model says."""
    (line,) = [line for line in log if "the model is loaded" in line]
    facts = line.partition("the model is loaded")[2]
    return dict(part.split("=", 1) for part in facts.split())


def test_one_line_says_how_a_model_computes(server: Worker) -> None:
    said = loaded(server.log)
    assert said.pop("instructions") in {
        "avx512-vnni", "avx-vnni", "avx512", "avx2", "neon-dotprod", "portable"
    }  # fmt: skip
    assert int(said.pop("threads")) >= 1
    assert said == {"device": "cpu", "precision": "q8", "kv_precision": "q8", "lanes": "4"}


def test_options_replace_what_the_configuration_says(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.tiny(
        tmp_path,
        ("temperature = 0.0", 'temperature = 0.0\nprecision = "bf16"\nkv_precision = "q8"'),
    )
    with worker(config, cwd=tmp_path, env={**env, "MOSHI_THREADS": "1"}) as started:
        said = loaded(started.log)
        assert [said[key] for key in ("precision", "kv_precision", "threads")] == [
            "bf16",
            "q8",
            "1",
        ]
    options = ("--precision", "F32", "--kv-precision", "auto", "--threads", "2")
    with worker(config, *options, cwd=tmp_path, env={**env, "MOSHI_THREADS": "1"}) as started:
        said = loaded(started.log)
        assert [said[key] for key in ("precision", "kv_precision", "threads")] == [
            "f32",
            "f32",
            "2",
        ]
    with worker(config, "--precision", "auto", cwd=tmp_path, env=env) as started:
        said = loaded(started.log)
        assert [said[key] for key in ("precision", "kv_precision")] == ["q8", "q8"]


def test_portable_code_hears_the_same_and_is_warned_of_once(
    server: Worker, env: dict[str, str], tmp_path: Path
) -> None:
    config = configs.tiny(tmp_path)
    text = config.read_text()
    module = text[text.index("[modules.asr]") :]
    module = module.replace("[modules.asr", "[modules.second").replace("streaming", "second")
    config.write_text(text + module)
    with worker(config, cwd=tmp_path, env={**env, "MOSHI_INSTRUCTIONS": "portable"}) as started:
        lines = [line for line in started.log if "the model is loaded" in line]
        assert len(lines) == 2
        assert all("instructions=portable" in line for line in lines)
        (warning,) = [line for line in started.log if "WARN" in line and "portable" in line]
        assert "times slower" in warning
        assert transcript(started.url, tmp_path) == transcript(server.url, tmp_path)
    assert not any("portable code" in line for line in server.log)


def test_instructions_that_are_not_there_are_refused(env: dict[str, str], tmp_path: Path) -> None:
    # No processor has both.
    for name, says in (
        ("sse9", "`sse9`, which is no instruction set"),
        ("neon-dotprod" if platform.machine() == "x86_64" else "avx2", "does not have"),
    ):
        wish = {**env, "MOSHI_INSTRUCTIONS": name}
        error, hint = refusal("--config", "tiny-random", cwd=tmp_path, env=wish, code=1)
        assert "MOSHI_INSTRUCTIONS" in error
        assert says in error
        assert "this machine has" in str(hint)
        assert "portable" in str(hint)
