"""`moshi-ctl doctor` as a process: on machines that are not there, with settings that are wrong."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from moshi_ctl.units import BYTES_PER_MIB
from support import cli, configs, emulated_cuda, fake_nvml, tokens
from support.doctor import GOOD_KEY, examined, settings
from support.fake_hub import FakeFile, FakeHub, fake_hub
from support.fake_nvml import Machine
from support.worker import Worker

MODEL = "$MOSHI_CTL_TINY_DIR/model.safetensors"
ON_THE_HUB = "hf://org/repo/model.safetensors"
WITHOUT_CONFIG = [
    "Python",
    "wheel",
    "CPU",
    "NVIDIA driver",
    "cards",
    "memory",
    "port",
    ".env",
    "keys",
    "numbers",
    "hub",
    "disk space",
]


@pytest.fixture(name="fake")
def _fake() -> Iterator[FakeHub]:
    with fake_hub() as started:
        yield started


@contextmanager
def listener() -> Iterator[int]:
    """A port that is taken by somebody who never says anything."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_without_a_configuration(tmp_path: Path) -> None:
    report = examined(cwd=tmp_path)
    names = [check["name"] for check in report.checks]
    assert [name for name in names if name != "card"] == WITHOUT_CONFIG
    assert (report.code, report.status) == (0, "warning"), report.text
    assert "commit" in report.only("wheel")["message"]
    assert "CPython" in report.only("Python")["message"] or sys.implementation.name != "cpython"
    assert (
        "threads" in report.only("CPU")["message"] or "1 thread " in report.only("CPU")["message"]
    )
    assert list(tmp_path.iterdir()) == []


def test_with_a_configuration(tiny_dir: Path, tmp_path: Path, fake: FakeHub) -> None:
    config = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path / "logs")))
    env = {**fake.environment(tmp_path / "home"), "MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    report = examined("--config", config, cwd=tmp_path, env=env)
    assert report.code == 0, report.text
    assert {check["status"] for check in report.named("files")} == {"ok"}
    assert len(report.named("files")) == 3
    assert report.line("hub")[0] == "ok"
    assert "asr: 4 lanes on " in report.text
    assert "nothing is to be downloaded" in report.only("disk space")["message"]
    assert report.only("log directory")["status"] == "ok"
    assert not (tmp_path / "logs").exists()


def test_lines_for_people(tmp_path: Path) -> None:
    env = {**settings(tmp_path), "MOSHI_RESERVE_MB": "lots"}
    result = cli.run("doctor", "--port", "0", cwd=tmp_path, env=env)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    *lines, last = result.stdout.splitlines()
    pattern = r"(ok      |warning |failure ) (\S.{13}\S?) +\S.*|         hint: \S.*"
    for line, following in zip(lines, [*lines[1:], last], strict=True):
        assert re.fullmatch(pattern, line), line
        if line.startswith(("warning", "failure")):
            assert following.startswith("         hint: "), line
    assert re.fullmatch(r"1 failure, \d+ warnings?", last)
    assert re.search(r"^failure  numbers +MOSHI_RESERVE_MB: 'lots'", result.stdout, re.MULTILINE)


CARD = {
    "RTX_2070": "cuda:0 NVIDIA GeForce RTX 2070, compute capability 7.5, 7.47 GiB of 8.00 GiB "
    "free, 47 °C, 23 W, held by process 1234 (/usr/lib/xorg/Xorg, 310 MiB)",
    "FULL": "0 KiB of 8.00 GiB free, 47 °C, 23 W, held by process 4321 (/usr/bin/python3, ",
    "VANISHING": "cuda:0 NVIDIA GeForce RTX 2070",
    "DRIVER_470": "cuda:0 NVIDIA GeForce RTX 2070",
}


@pytest.mark.parametrize("name", list(CARD))
def test_a_card(name: str, tmp_path: Path) -> None:
    machine: Machine = getattr(fake_nvml, name)
    report = examined(cwd=tmp_path, env=emulated_cuda.machine(tmp_path, machine))
    status, said = report.line("card")
    assert CARD[name] in said
    assert report.code == 0
    assert status == ("warning" if name == "FULL" else "ok")
    assert ("nearly full: 512 MiB are kept in reserve" in said) == (name == "FULL")
    status, said = report.line("NVIDIA driver")
    if name == "DRIVER_470":
        assert status == "warning"
        assert "the driver 470.256.02 serves CUDA 11.4, a build with CUDA needs 12.0 | " in said
        assert "update the NVIDIA driver to 525 or newer" in said
    else:
        assert (status, said[:40].split()[0]) == ("ok", f"{machine.driver},")


def test_a_driver_that_lets_nobody_compute(tmp_path: Path) -> None:
    for env, why in (
        (
            emulated_cuda.machine_with_nvml_alone(tmp_path, fake_nvml.T4),
            "libcuda, which the NVIDIA",
        ),
        (emulated_cuda.machine(tmp_path, fake_nvml.T4, started=emulated_cuda.UNKNOWN), "UNKNOWN"),
    ):
        report = examined(cwd=tmp_path, env=env)
        status, said = report.line("NVIDIA driver")
        assert (status, report.code) == ("warning", 0)
        assert why in said
        assert "driver capability `compute`" in said


def test_the_reserve_says_when_a_card_is_nearly_full(tmp_path: Path) -> None:
    env = {**emulated_cuda.machine(tmp_path, fake_nvml.RTX_2070), "MOSHI_RESERVE_MB": "8000"}
    assert "nearly full" in examined(cwd=tmp_path, env=env).only("card")["message"]


@pytest.mark.parametrize(
    ("order", "complaints"), [(None, 0), ("PCI_BUS_ID", 0), ("FASTEST_FIRST", 1)]
)
def test_several_cards(order: str | None, complaints: int, tmp_path: Path) -> None:
    env = emulated_cuda.machine(tmp_path, fake_nvml.TWO_CARDS)
    if order is not None:
        env["CUDA_DEVICE_ORDER"] = order
    report = examined(cwd=tmp_path, env=env)
    assert [check["message"].split(",")[0] for check in report.named("card")] == [
        "cuda:0 NVIDIA GeForce RTX 2070",
        "cuda:1 NVIDIA GeForce RTX 3060",
    ]
    said = [check for check in report.named("cards") if "CUDA_DEVICE_ORDER" in check["message"]]
    assert len(said) == complaints


def test_a_driver_that_is_not_loaded(tmp_path: Path) -> None:
    report = examined(cwd=tmp_path, env=emulated_cuda.machine(tmp_path, fake_nvml.NOT_LOADED))
    status, said = report.line("NVIDIA driver")
    assert status == "warning"
    assert "kernel module is not loaded" in said
    assert "modprobe" in said
    assert report.line("cards")[0] == "ok"


def test_cards_that_cuda_may_not_use_are_named(tmp_path: Path) -> None:
    env = {**emulated_cuda.machine(tmp_path, fake_nvml.RTX_2070), "CUDA_VISIBLE_DEVICES": "7"}
    status, said = examined(cwd=tmp_path, env=env).line("cards")
    assert status == "warning"
    assert "CUDA_VISIBLE_DEVICES=7 names no card" in said


def test_portable_code_is_slow(tmp_path: Path) -> None:
    report = examined(cwd=tmp_path, env={"MOSHI_INSTRUCTIONS": "portable"})
    status, said = report.line("CPU")
    assert (status, report.code) == ("warning", 0)
    assert "portable" in said
    assert "ten times slower" in said


def test_instructions_that_are_none(tmp_path: Path) -> None:
    report = examined(cwd=tmp_path, env={"MOSHI_INSTRUCTIONS": "abacus"})
    status, said = report.line("CPU")
    assert (status, report.code) == ("failure", 1)
    assert "MOSHI_INSTRUCTIONS is `abacus`" in said


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with listener() as port:
        for addr in ("127.0.0.1", "localhost", "0.0.0.0"):
            report = examined("--addr", addr, cwd=tmp_path, port=port)
            status, said = report.line("port")
            assert (status, report.code) == ("failure", 1)
            assert f":{port} is taken | " in said
            assert "--port" in said
    assert examined("-a", "127.0.0.1", cwd=tmp_path, port=port).line("port")[0] == "ok"


def test_the_server_that_has_the_port(server: Worker, tmp_path: Path) -> None:
    report = examined("-a", "127.0.0.1", cwd=tmp_path, port=server.port)
    assert "is taken: a moshi-ctl server " in report.only("port")["message"]


def dot_env(folder: Path, content: str | bytes, mode: int = 0o600) -> None:
    path = folder / ".env"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def test_dot_env_as_it_should_be(tmp_path: Path) -> None:
    dot_env(tmp_path, "MOSHI_THREADS=1\nOTHER=canary\n")
    report = examined(cwd=tmp_path)
    assert report.line(".env") == ("ok", ".env sets 2 variables | None")
    assert "MOSHI_THREADS can be used" in report.only("numbers")["message"]


def test_a_name_that_the_configuration_uses_is_no_slip(tmp_path: Path) -> None:
    configs.tiny(tmp_path, (MODEL, "$MOSHI_MODELS/model.safetensors"))
    dot_env(tmp_path, f"MOSHI_MODELS={tmp_path}\n")
    assert examined("--config", "config.toml", cwd=tmp_path).line(".env")[0] == "ok"


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"\xff\xfe\x00 canary", "failure", "not UTF-8 text"),
        ("A=canary\ncanary\n", "failure", "a name without a value"),
        ("A=canary\n\ncanary canary\n", "warning", "not NAME=value: line 3"),
        ("A=can\0ary\n", "failure", "NUL"),
        ("'canary=canary'=canary\n", "failure", "a name or a value holds what no variable can"),
    ],
)
def test_an_unusable_dot_env(content: str | bytes, status: str, said: str, tmp_path: Path) -> None:
    dot_env(tmp_path, content)
    report = examined(cwd=tmp_path)
    found, text = report.line(".env")
    assert (found, report.code) == (status, int(status == "failure"))
    assert said in text
    assert "canary" not in report.text.replace(GOOD_KEY, "")


def test_no_keys(tmp_path: Path) -> None:
    report = examined(cwd=tmp_path, env={"MOSHI_API_KEY": ""})
    status, said = report.line("keys")
    assert (status, report.code) == ("warning", 0)
    assert "0 in MOSHI_API_KEY" in said
    assert "listens on loopback only" in said


def test_keys_that_everybody_knows(tmp_path: Path) -> None:
    key = "My-Secret_Token"
    env = {"MOSHI_API_KEY": f"{GOOD_KEY},{key}", "BETTER_AUTH_SECRET": key}
    report = examined(cwd=tmp_path, env=env)
    counted, *warnings = report.named("keys")
    assert counted["message"] == "2 in MOSHI_API_KEY, BETTER_AUTH_SECRET is set"
    assert [warning["message"].split(":")[0] for warning in warnings] == [
        "key 2 of MOSHI_API_KEY",
        "BETTER_AUTH_SECRET",
    ]
    assert {warning["status"] for warning in warnings} == {"warning"}
    assert key not in report.text


def test_names_do_not_hide_what_everybody_knows(tmp_path: Path) -> None:
    env = {"MOSHI_API_KEY": f"web:{GOOD_KEY},app:change-me"}
    report = examined(cwd=tmp_path, env=env)
    assert report.named("keys")[1]["message"].startswith("key 2 of MOSHI_API_KEY: ")
    change = ("instance_name", 'authorized_ids = ["web:public_token"]\ninstance_name')
    path = configs.tiny(tmp_path, change)
    report = examined("--config", path, cwd=tmp_path, env={"MOSHI_API_KEY": ""})
    assert report.named("keys")[1]["message"].startswith("key 1 of authorized_ids: ")


def test_keys_of_a_configuration(tmp_path: Path) -> None:
    path = configs.tiny(
        tmp_path, ("instance_name", 'authorized_ids = ["public_token"]\ninstance_name')
    )
    report = examined("--config", path, cwd=tmp_path, env={"MOSHI_API_KEY": ""})
    counted, warning = report.named("keys")
    assert "1 in authorized_ids" in counted["message"]
    assert warning["message"].startswith("key 1 of authorized_ids: ")
    assert "public_token" not in report.text
    replaced = examined("--config", path, cwd=tmp_path)
    assert "1 in authorized_ids (replaced by those)" in replaced.only("keys")["message"]


def test_keys_that_are_none(tmp_path: Path) -> None:
    report = examined(cwd=tmp_path, env={"MOSHI_API_KEY": "good,canary two"})
    status, said = report.line("keys")
    assert (status, report.code) == ("failure", 1)
    assert said.startswith("key 2 of MOSHI_API_KEY holds a blank")
    assert "canary" not in report.text


def test_a_short_secret(tmp_path: Path) -> None:
    report = examined(cwd=tmp_path, env={"BETTER_AUTH_SECRET": "canary-of-31-bytes"})
    assert "shorter than 32 bytes" in report.named("keys")[1]["message"]


SECRETS = {
    "MOSHI_API_KEY": "canary-key-1,canary-key-2",
    "BETTER_AUTH_SECRET": tokens.CANARY,
    "HF_TOKEN": "hf_canary",
    "HF_ENDPOINT": "http://canary:canary@127.0.0.1:1",
    "MOSHI_CANARY": "canary",
}


@pytest.mark.parametrize("config", ["tiny-random", "stt-1b-en_fr", "broken.toml"])
@pytest.mark.parametrize("in_file", [False, True])
def test_no_secret_is_ever_shown(in_file: bool, config: str, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text('authorized_ids = ["canary", canary]\n')
    base = {name: value for name, value in settings(tmp_path).items() if name not in SECRETS}
    if in_file:
        dot_env(tmp_path, "".join(f"{name}='{value}'\n" for name, value in SECRETS.items()), 0o644)
    else:
        base |= SECRETS
    for form in ([], ["--json"]):
        result = cli.run("doctor", "--config", config, "-p", "0", *form, cwd=tmp_path, env=base)
        said = result.stdout + result.stderr
        assert "Traceback" not in said
        assert "2 in MOSHI_API_KEY" in said
        assert "canary" not in said
        assert ("MOSHI_CANARY" in said) == in_file


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("x = 1\n")
    for value, said in (
        ("bad.toml", "bad.toml:1: x: unknown key"),
        ("missing.toml", "missing.toml: no such file | give the path of a TOML file"),
    ):
        report = examined("--config", value, cwd=tmp_path)
        status, text = report.line("configuration")
        assert (status, report.code) == ("failure", 1)
        assert said in text
        others = [check["name"] for check in report.checks if check["name"] != "card"]
        assert [name for name in others if name != "configuration"] == WITHOUT_CONFIG


def test_what_does_not_fit(tmp_path: Path) -> None:
    path = configs.tiny(tmp_path)
    report = examined("--config", path, cwd=tmp_path, env={"MOSHI_RESERVE_MB": "1048576"})
    failure = next(check for check in report.named("plan") if check["status"] == "failure")
    assert "one lane needs" in failure["message"]
    assert "--reserve-mb" in failure["remedy"]
    assert report.code == 1


def test_fewer_lanes_than_wanted(tmp_path: Path) -> None:
    lane_mib = psutil.virtual_memory().available / BYTES_PER_MIB / 2.5
    env = {"MOSHI_PER_BATCH_ITEM_MB": f"{lane_mib:.0f}"}
    report = examined("--config", configs.tiny(tmp_path), cwd=tmp_path, env=env)
    warning = report.named("plan")[0]
    assert warning["status"] == "warning"
    assert re.match(r"asr: only [12] of 4 lanes fit on ", warning["message"])
    assert "batch_size" in warning["remedy"]


def test_a_model_file_that_is_another_thing(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not a model")
    path = configs.tiny(tmp_path, (MODEL, str(tmp_path / "text.safetensors")))
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    status, said = examined("--config", path, cwd=tmp_path, env=env).line("plan")
    assert status == "failure"
    assert "text.safetensors" in said


def test_model_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "codec.safetensors").mkdir()
    report = examined("--config", configs.tiny(tmp_path), cwd=tmp_path)
    assert [(check["status"], check["message"].split()[-1]) for check in report.named("files")] == [
        ("failure", "exist"),
        ("failure", "exist"),
        ("failure", "folder"),
    ]
    assert report.code == 1


def test_files_that_the_hub_has(fake: FakeHub, tiny_dir: Path, tmp_path: Path) -> None:
    path = configs.tiny(tmp_path, (MODEL, ON_THE_HUB))
    fake.files["org/repo/model.safetensors"] = FakeFile(bytes(12_345))
    env = {**fake.environment(tmp_path / "home"), "MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    report = examined("--config", path, cwd=tmp_path, env=env)
    assert report.code == 0, report.text
    assert f"{fake.endpoint} answers; HF_TOKEN is not set" in report.text
    assert f"{ON_THE_HUB} is to be downloaded (12.35 kB)" in report.text
    assert "12.35 kB to be downloaded" in report.only("disk space")["message"]
    assert [method for method, *_ in fake.requests] == ["HEAD"]
    assert not (tmp_path / "home").exists()


def test_a_file_that_the_hub_does_not_give(fake: FakeHub, tiny_dir: Path, tmp_path: Path) -> None:
    path = configs.tiny(tmp_path, (MODEL, ON_THE_HUB))
    fake.files["org/repo/model.safetensors"] = FakeFile(status=403, error_code="GatedRepo")
    env = {
        **fake.environment(tmp_path / "home"),
        "MOSHI_CTL_TINY_DIR": str(tiny_dir),
        "HF_TOKEN": "hf_canary",
    }
    report = examined("--config", path, cwd=tmp_path, env=env)
    (failure,) = [check for check in report.named("files") if check["status"] == "failure"]
    assert "access to the repository has to be granted" in failure["message"]
    assert "licence" in failure["remedy"]
    assert "a token is set" in report.only("hub")["message"]
    assert "hf_canary" not in report.text


def test_a_hub_that_is_not_there(tiny_dir: Path, tmp_path: Path) -> None:
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    status, said = examined(cwd=tmp_path, env=env).line("hub")
    assert status == "warning"
    assert "does not answer" in said
    assert "HF_ENDPOINT" in said
    path = configs.tiny(tmp_path)
    assert examined("--config", path, cwd=tmp_path, env=env).line("hub")[0] == "warning"
    path = configs.tiny(tmp_path, (MODEL, ON_THE_HUB))
    report = examined("--config", path, cwd=tmp_path, env=env)
    assert (report.line("hub")[0], report.code) == ("failure", 1)
    assert "1 file is to be downloaded" in report.only("hub")["message"]


def test_a_hub_that_never_answers(tmp_path: Path) -> None:
    with listener() as port:
        started = time.monotonic()
        report = examined(cwd=tmp_path, env={"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
        assert time.monotonic() - started < 20
    assert report.line("hub")[0] == "warning"
    assert "Timeout" in report.only("hub")["message"]


def test_offline(fake: FakeHub, tiny_dir: Path, tmp_path: Path) -> None:
    path = configs.tiny(tmp_path, (MODEL, ON_THE_HUB))
    env = {
        **fake.environment(tmp_path / "home"),
        "MOSHI_CTL_TINY_DIR": str(tiny_dir),
        "HF_HUB_OFFLINE": "1",
    }
    report = examined("--config", path, cwd=tmp_path, env=env)
    assert report.line("hub") == ("ok", "offline by HF_HUB_OFFLINE | None")
    (failure,) = [check for check in report.named("files") if check["status"] == "failure"]
    assert "was not downloaded, and HF_HUB_OFFLINE is set" in failure["message"]
    assert fake.requests == []


def test_a_folder_of_logs_with_a_file_in_its_way(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    for log_dir in (tmp_path / "file", tmp_path / "file" / "logs"):
        path = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(log_dir)))
        status, said = examined("--config", path, cwd=tmp_path, env=env).line("log directory")
        assert status == "warning"
        assert "file is not a folder | set log_dir" in said


def test_a_folder_of_logs_stays_as_it_is(tiny_dir: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    path = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(logs)))
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    report = examined("--config", path, cwd=tmp_path, env=env)
    assert report.line("log directory") == ("ok", f"{logs} | None")
    assert list(logs.iterdir()) == []


def test_names_that_no_terminal_shows(tmp_path: Path) -> None:
    name = "caf\u00e9\x1b[31m\udcff.toml"
    for encoding in ("ascii", "utf-8"):
        env = {**settings(tmp_path), "PYTHONIOENCODING": encoding}
        result = cli.run("doctor", "--config", name, "-p", "0", cwd=tmp_path, env=env)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert "\x1b" not in result.stdout
        assert "no such file" in result.stdout
