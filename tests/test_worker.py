"""The life of a worker process: how it starts, what keeps it from starting, how it ends."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import socket
import urllib.error
from pathlib import Path

import pytest

from support import cli, configs, speech
from support.worker import KEY, Worker, worker

CONFIG_ERROR = 2


@pytest.fixture(name="env")
def _env(demo_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_DEMO_DIR": str(demo_dir), "MOSHI_API_KEY": KEY}


def refusal(
    *arguments: str | Path, cwd: Path, env: dict[str, str], code: int
) -> tuple[str, str | None]:
    """The message and hint of a worker that does not start."""
    result = cli.run("worker", *arguments, cwd=cwd, env=env)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert "listening on" not in result.stdout + result.stderr
    lines = result.stderr.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    hint = next((line for line in lines[at:] if line.startswith("hint: ")), None)
    return lines[at], hint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(number: int, env: dict[str, str], tmp_path: Path) -> None:
    with worker("demo", cwd=tmp_path, env=env) as started:
        assert json.loads(started.get("/api/build_info"))["version"]
        assert json.loads(started.get("/health/ready")) == {"status": "ok"}
        assert started.end(number) == 0
        with socket.socket() as again:
            assert again.connect_ex(("127.0.0.1", started.port)) != 0
    assert "Traceback" not in "".join(started.log)


def test_a_taken_port(env: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        error, hint = refusal(
            "--config", "demo", "-a", "127.0.0.1", "-p", port, cwd=tmp_path, env=env, code=1
        )
    assert port in error
    assert hint


def test_without_a_key_it_does_not_leave_loopback(env: dict[str, str], tmp_path: Path) -> None:
    no_key = {**env, "MOSHI_API_KEY": " "}
    for addr in ([], ["-a", "0.0.0.0"], ["--addr", "::"]):
        error, hint = refusal("--config", "demo", *addr, cwd=tmp_path, env=no_key, code=2)
        assert "no API key is set" in error
        assert "MOSHI_API_KEY" in str(hint)
        assert "--addr 127.0.0.1" in str(hint)


def test_without_a_key_loopback_is_open_with_a_warning(env: dict[str, str], tmp_path: Path) -> None:
    with worker("demo", cwd=tmp_path, env={**env, "MOSHI_API_KEY": ""}) as started:
        (warning,) = [line for line in started.log if "no API key is set" in line]
        assert " WARN moshi_ctl: " in warning
        assert "MOSHI_API_KEY" in warning
        result = cli.run("transcribe", speech.SPEECH, "--url", started.url, cwd=tmp_path)
        assert result.returncode == 0, result.stderr


def test_a_port_may_be_given_and_the_console_be_silent(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.demo(tmp_path, ("$MOSHI_CTL_DEMO_DIR/logs", str(tmp_path / "logs")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(AssertionError, match=r"not listening: \[\]"),
        worker(config, "--port", str(port), "--silent", cwd=tmp_path, env=env, start_timeout_s=3),
    ):
        pass
    logged = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert f"127.0.0.1:{port}" in logged


def test_which_keys_hold(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.demo(
        tmp_path, ('instance_name = "demo"', 'instance_name = "demo"\nauthorized_ids = ["in-file"]')
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


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_no_key_is_ever_logged(line_format: str, env: dict[str, str], tmp_path: Path) -> None:
    config = configs.demo(tmp_path, ("$MOSHI_CTL_DEMO_DIR/logs", str(tmp_path / "logs")))
    env = {**env, "MOSHI_API_KEY": "canary-one,canary-two"}
    options = ("--log", "trace", "--log-format", line_format)
    with worker(config, *options, cwd=tmp_path, env=env) as started:
        for key in ("canary-one", "canary-three"):
            url = f"{started.url}?auth_id={key}"
            cli.run("transcribe", speech.SPEECH, "--url", url, "--key", key, cwd=tmp_path)
        with pytest.raises(urllib.error.HTTPError):
            started.get("/api/asr-streaming?auth_id=canary-four")
        started.end()
    logged = "".join(path.read_text() for path in (tmp_path / "logs").rglob("*") if path.is_file())
    assert logged
    assert "canary" not in logged + "".join(started.log)


@pytest.mark.parametrize("key", ["model.safetensors", "codec.safetensors", "tokenizer.model"])
def test_a_missing_file(key: str, tmp_path: Path, env: dict[str, str]) -> None:
    config = configs.demo(tmp_path, (f"$MOSHI_CTL_DEMO_DIR/{key}", f"/nowhere/{key}"))
    error, hint = refusal("--config", config, cwd=tmp_path, env=env, code=CONFIG_ERROR)
    assert f"{config}:" in error
    assert f"/nowhere/{key}" in error
    assert hint


@pytest.mark.parametrize("name", ["model.safetensors", "codec.safetensors", "tokenizer.model"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "other"])
def test_a_damaged_file(
    name: str, damage: str, demo_dir: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    for path in demo_dir.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "noise": bytes((7 * i + 3) % 256 for i in range(4096)),
            # A good file in the wrong place.
            "other": (
                demo_dir
                / ("codec.safetensors" if name != "codec.safetensors" else "tokenizer.model")
            ).read_bytes(),
        }[damage]
    )
    env = {**env, "MOSHI_CTL_DEMO_DIR": str(tmp_path)}
    error, _ = refusal("--config", "demo", cwd=tmp_path, env=env, code=1)
    assert name in error


def test_a_file_of_another_shape_names_the_tensor(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.demo(tmp_path, ("text_out_vocab_size = 512", "text_out_vocab_size = 511"))
    error, _ = refusal("--config", config, cwd=tmp_path, env=env, code=1)
    assert "text_linear.weight" in error
    assert "511" in error
    assert "512" in error


@pytest.mark.parametrize("addr", ["somewhere", "256.0.0.1", "127.0.0.1:80"])
def test_an_address_that_is_none(addr: str, env: dict[str, str], tmp_path: Path) -> None:
    error, hint = refusal("--config", "demo", "--addr", addr, cwd=tmp_path, env=env, code=2)
    assert addr in error
    assert hint


def test_a_wrong_configuration_never_opens_the_port(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.demo(tmp_path, ("batch_size = 4", "batch_sice = 4"))
    error, hint = refusal("--config", config, cwd=tmp_path, env=env, code=CONFIG_ERROR)
    line = config.read_text().splitlines().index("batch_sice = 4") + 1
    assert f"{config}:{line}: modules.asr.batch_sice: unknown key" in error
    assert hint == "hint: did you mean `batch_size`?"


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
    config = configs.demo(
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
    config = configs.demo(tmp_path)
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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        error, hint = refusal(
            "--config", "demo", "-a", "127.0.0.1", "-p", str(port), cwd=tmp_path, env=wish, code=1
        )
        assert "MOSHI_INSTRUCTIONS" in error
        assert says in error
        assert "this machine has" in str(hint)
        assert "portable" in str(hint)
