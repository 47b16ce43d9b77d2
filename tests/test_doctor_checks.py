"""The checks of `moshi-ctl doctor` one by one, and what becomes of one that breaks or hangs."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
from huggingface_hub import constants

from moshi_ctl import (
    _native,
    config,
    devices,
    doctor,
    gpu,
    hub,
    keys,
    needs,
    plan,
    ram,
    tls,
    worker,
)
from moshi_ctl.doctor import CHECKS, Check, Finding, Situation, Status, nvidia, serving, settings
from moshi_ctl.doctor import machine as of_machine
from moshi_ctl.gpu import Gpus, Problem
from moshi_ctl.ram import Ram
from support import configs
from support.doctor import NO_HUB
from support.gpus import THE_2070

NEW_DRIVER = Gpus("580.95.05", (13, 0), (THE_2070,), ())
OLD_DRIVER = Gpus("470.256.02", (11, 4), (THE_2070,), ())
NOT_LOADED = Gpus(None, None, (), (Problem("its kernel module is not loaded", "load it"),))
UNABLE = replace(NEW_DRIVER, cuda_problem=Problem("libcuda cannot be loaded", "get it"))
NO_DRIVER = Gpus(None, None, (), (Problem(gpu.NO_DRIVER, "get one"),))


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NO_HUB)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


@pytest.fixture(name="situation")
def _situation(tmp_path: Path) -> Situation:
    return Situation("127.0.0.1", 0, None, tmp_path)


def on(gpus: Gpus, monkeypatch: pytest.MonkeyPatch, *accelerators: str) -> Situation:
    """A machine with these cards and a build for these accelerators."""
    monkeypatch.setattr(devices, "read_gpus", lambda: gpus)
    monkeypatch.setattr(_native, "ACCELERATORS", accelerators)
    return Situation("127.0.0.1", 0, None, Path())


def only(findings: list[Finding]) -> tuple[str, str]:
    """Status, and message with remedy, of the one finding."""
    (finding,) = findings
    return finding.status.value, f"{finding.message} | {finding.remedy}"


@pytest.mark.parametrize(
    ("gpus", "status", "said"),
    [
        (NEW_DRIVER, "ok", "580.95.05, serves CUDA 13.0"),
        (Gpus(None, None, (THE_2070,), ()), "ok", "unknown, serves CUDA unknown"),
        (OLD_DRIVER, "warning", "a build with CUDA needs 12.0 | update the NVIDIA driver"),
        (UNABLE, "warning", "libcuda cannot be loaded | get it"),
        (NO_DRIVER, "ok", "none"),
        (NOT_LOADED, "warning", "its kernel module is not loaded | load it"),
    ],
)
def test_the_driver(gpus: Gpus, status: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, text = only(nvidia.driver(on(gpus, monkeypatch)))
    assert found == status
    assert said in text


def test_a_card_that_this_build_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(nvidia.cards(on(NEW_DRIVER, monkeypatch, "cuda")))[0] == "ok"
    # What is wrong with the driver is said of the driver.
    for gpus in (OLD_DRIVER, UNABLE):
        assert only(nvidia.cards(on(gpus, monkeypatch, "cuda")))[0] == "ok"
    old = replace(NEW_DRIVER, found=(replace(THE_2070, compute_capability=(6, 1)),))
    status, said = only(nvidia.cards(on(old, monkeypatch, "cuda")))
    assert status == "warning"
    assert "compute capability 6.1 is too old for a build with CUDA, which needs 7.5" in said


def test_an_extension_of_another_version(
    situation: Situation, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = {**_native.build_info(), "version": "0.0.0"}
    monkeypatch.setattr(_native, "build_info", lambda: info)
    status, said = only(of_machine.wheel(situation))
    assert status == "warning"
    assert "its extension is of version 0.0.0" in said
    monkeypatch.setattr(_native, "ACCELERATORS", ("cuda",))
    assert "with cuda" in only(of_machine.wheel(situation))[1]


def test_a_python_of_32_bit(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("struct.calcsize", lambda _: 4)
    assert only(of_machine.python(situation))[0] == "failure"


@pytest.mark.parametrize(
    ("used", "available", "status", "said"),
    [
        ("avx2", ["avx2", "portable"], "ok", "avx2, 1 thread a step"),
        ("avx2", ["avx512", "avx2"], "warning", "keeps this CPU from using avx512 | unset MOSHI_"),
        ("portable", ["avx2", "portable"], "warning", "unset MOSHI_INSTRUCTIONS"),
        ("portable", ["portable"], "warning", "use a CPU with AVX2"),
    ],
)
def test_instructions(
    used: str,
    available: list[str],
    status: str,
    said: str,
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = {"instructions": used, "available_instructions": available, "threads": 1}
    monkeypatch.setattr(_native, "processor", lambda _: facts)
    found, text = only(of_machine.processor(situation))
    assert found == status
    assert said in text


def test_the_memory_of_a_container(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "read", lambda: Ram(4 * 2**30, 2**30, is_limited=True))
    said = only(of_machine.memory(situation))
    assert said == ("ok", "this container has 4.00 GiB, of which 1.00 GiB can be had | None")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MOSHI_RESERVE_MB", "-1", "from 0 to"),
        ("MOSHI_RESERVE_MB", "lots", "is not a number"),
        ("MOSHI_THREADS", "0", "from 1 to"),
        ("MOSHI_THREADS", "2.5", "is not a whole number | use a number of threads from 1 to"),
        ("MOSHI_THREADS", "9" * 5000, "from 1 to"),
        ("MOSHI_PER_BATCH_ITEM_MB", "nan", "from 1 to"),
        ("MOSHI_MODEL_PARAMS_BILLIONS", "1e99", "from 0.001 to"),
        ("MOSHI_MEMORY_ESTIMATE", "maybe", "use on or off"),
        ("MOSHI_WARMUP", "cold", "use on or off"),
    ],
)
def test_absurd_numbers(
    variable: str,
    value: str,
    said: str,
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    status, text = only(settings.numbers(situation))
    assert status == "failure"
    assert text.startswith(f"{variable}: ")
    assert said in text


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EACCES, "this user may not listen on 127.0.0.1:80 | choose a port from 1024"),
        (errno.EADDRNOTAVAIL, "127.0.0.1 is not an address of this machine"),
        (errno.EADDRINUSE, "127.0.0.1:80 is taken | "),
        (errno.EAFNOSUPPORT, "choose another one with --addr or --port"),
    ],
)
def test_why_a_port_cannot_be_had(
    code: int, said: str, situation: Situation, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(socket.socket):
        def bind(self, _: object) -> NoReturn:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(settings, "_who_answers", lambda *_: None)
    monkeypatch.setattr(socket, "socket", Refusing)
    situation.port = 80
    status, text = only(settings.port(situation))
    assert status == "failure"
    assert said in text


@pytest.mark.parametrize(
    ("body", "who"),
    [
        ({"version": "1.2.3", "git_hash": "abc"}, "a moshi-ctl server 1.2.3"),
        ({"git_hash": "abc"}, "a moshi server"),
        ({"version": "\x1b[31m", "git_hash": "abc"}, "a moshi server"),
        ({"version": "1.2.3"}, None),
        ([], None),
        ("[" * 60_000, None),
    ],
)
def test_who_has_the_port(body: object, who: str | None) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(200 if self.path == "/api/build_info" else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert settings._who_answers("0.0.0.0", server.server_port) == who
        thread.join()


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_dot_env_that_others_can_read(mode: int, situation: Situation) -> None:
    path = situation.folder / ".env"
    path.write_text("OTHER=canary\n")
    path.chmod(mode)
    status, said = only(settings.dot_env(situation))
    assert status == "warning"
    assert f"(mode {mode:o}) | " in said
    assert "chmod 600" in said


def test_dot_env_that_is_no_file(situation: Situation) -> None:
    (situation.folder / ".env").mkdir()
    assert only(settings.dot_env(situation))[0] == "warning"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MOSHI_API_KYE", "did you mean MOSHI_API_KEY?"),
        ("MOSHI_APIKEY", "did you mean MOSHI_API_KEY?"),
        ("BETTER_AUTH_SECRETS", "did you mean BETTER_AUTH_SECRET?"),
        ("MOSHI_XYZZY_PLUGH_QUUX", "see .env.example"),
    ],
)
def test_a_slip_in_dot_env(name: str, meant: str, situation: Situation) -> None:
    path = situation.folder / ".env"
    path.write_text(f"{name}=canary\nBETTER_AUTH_URL=canary\nMOSHI_API_KEY=canary\n")
    path.chmod(0o600)
    status, said = only(settings.dot_env(situation))
    assert status == "warning"
    assert f"sets {name}, which moshi-ctl does not read | {meant}" in said
    assert "canary" not in said


def test_placeholders() -> None:
    for key in ("my-secret", "change-me", "public_token", "your_jwt_secret_here", "My secret!"):
        assert keys.is_known_to_everybody(key), key
    for key in ("", "canary", "my-secret-2a9c", "\udcff"):
        assert not keys.is_known_to_everybody(key), key


@pytest.mark.parametrize(
    ("free", "download", "status"),
    [
        (4 * 10**9, None, "warning"),
        (6 * 10**9, None, "ok"),
        (10**9, 2 * 10**9, "failure"),
        (10**9, 10**9, "ok"),
    ],
)
def test_disk_space(
    free: int,
    download: int | None,
    status: str,
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil._ntuple_diskusage(free, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    situation.download_bytes = download
    assert only(serving.disk(situation))[0] == status


def test_a_cache_with_a_file_in_its_way(
    situation: Situation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    status, said = only(serving.disk(situation))
    assert status == "warning"
    assert "HF_HOME" in said


@pytest.mark.parametrize("status", [200, 404, 503])
def test_what_the_hub_answers(
    status: int, situation: Situation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "ask", lambda **_: status)
    found, said = only(serving.hub_access(situation))
    assert situation.hub_answers == (status < 500)
    assert found == ("warning" if status == 503 else "ok")
    assert ("HTTP 503" in said) == (status == 503)


def breaks(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("canary")


def panics(*_: object, **__: object) -> NoReturn:
    class Panic(BaseException):
        pass

    raise Panic("canary")


# What a check asks first, so that it breaks in the middle.
ASKED: dict[str, tuple[object, str]] = {
    "Python": (platform, "python_version"),
    "wheel": (_native, "build_info"),
    "CPU": (_native, "processor"),
    "NVIDIA driver": (devices, "driver_obstacle"),
    "cards": (devices, "why_not"),
    "configuration": (config, "read"),
    "memory": (ram, "read"),
    "plan": (plan, "make"),
    "port": (worker, "ip_address"),
    "certificate": (tls, "check_files"),
    ".env": (stat, "S_ISREG"),
    "keys": (keys, "keys_from_environment"),
    "numbers": (needs, "rules_from_environment"),
    "hub": (huggingface_hub, "get_token"),
    "files": (serving, "_local_file"),
    "disk space": (shutil, "disk_usage"),
    "log directory": (tempfile, "TemporaryFile"),
}


@pytest.mark.parametrize("how", [breaks, panics])
@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_a_check_that_breaks_is_a_line(
    name: str,
    how: Callable[..., NoReturn],
    tiny_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", str(tiny_dir))
    (tmp_path / ".env").write_text("A=1\n")
    path = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path)))
    monkeypatch.setattr(gpu, "read", lambda: NEW_DRIVER)
    monkeypatch.setattr(*ASKED[name], how)
    found = list(doctor.examine(Situation("127.0.0.1", 0, str(path), tmp_path)))
    broken = [finding for finding in found if "this check itself broke" in finding.message]
    assert name in {finding.name for finding in broken}
    assert all(finding.status is Status.FAILURE for finding in broken)
    assert all("canary" not in f"{finding.message}{finding.remedy}" for finding in found)
    # Without a configuration there is nothing to say of what comes last.
    assert found[-1].name == ("disk space" if name == "configuration" else "log directory")


def test_a_check_that_hangs_is_given_up(situation: Situation) -> None:
    end = threading.Event()

    def hangs(_: Situation) -> list[Finding]:
        end.wait(30)
        return []

    def goes_on(_: Situation) -> list[Finding]:
        return [Finding("next", Status.OK, "well")]

    checks = (Check("first", hangs), Check("next", goes_on))
    first, following = doctor.examine(situation, checks, limit_s=0.05)
    end.set()
    assert (first.name, first.status) == ("first", Status.FAILURE)
    assert "given up after 0.05 s" in first.message
    assert following.message == "well"


@pytest.mark.parametrize(
    ("statuses", "overall"),
    [
        ([], "ok"),
        ([Status.OK], "ok"),
        ([Status.WARNING, Status.OK], "warning"),
        ([Status.OK, Status.FAILURE, Status.WARNING], "failure"),
    ],
)
def test_json(statuses: list[Status], overall: str) -> None:
    findings = [Finding("name", status, "message", "remedy") for status in statuses]
    said: dict[str, Any] = doctor.as_json(findings)
    assert said["status"] == overall
    assert said["checks"] == [
        {"name": "name", "status": status.value, "message": "message", "remedy": "remedy"}
        for status in statuses
    ]
