"""`moshi-ctl warmup`: whether a server is ready, for people and for scripts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import cli, expositions
from support.expositions import Module
from support.following import following, on_terminal
from support.plans import Command
from support.scripted_server import (
    OK,
    Reply,
    Script,
    ScriptedServer,
    closed_port,
    scripted_server,
    silent_port,
    unavailable,
)
from support.worker import KEY, Worker, fail_to_warm_up, worker

BUILD_INFO = Reply('{"build_timestamp": "2025-08-01", "git_hash": "abc", "rustc_version": "1"}')
WAIT = ("--wait", "--timeout", "20")


def in_turn(*replies: Reply) -> Script:
    """These answers one after the other, the last of them again and again."""
    left: Iterator[Reply] = iter(replies)

    def reply() -> Reply:
        return next(left, replies[-1])

    return reply


def test_a_ready_server_says_how_each_module_was_warmed_up(command: Command) -> None:
    text = expositions.server(
        Module("asr", warmup="success", warmup_s=1.24), Module("asr-en", warmup="skipped")
    )
    with scripted_server(health_ready=OK, metrics=text) as server:
        for more in ((), WAIT):
            said = command("warmup", f"{server.url}/metrics", *more)
            assert (said.code, said.err) == (0, "")
            assert said.out.splitlines() == [
                "asr: warmed up in 1.24 s",
                "asr-en: skipped (warm-up is off)",
            ]


@pytest.mark.parametrize("state", ["failure", "pending"])
def test_a_module_that_is_not_warmed_up_is_a_failure(state: str, command: Command) -> None:
    text = expositions.server(Module("asr"), Module("bad", warmup=state, warmup_s=0.25))
    with scripted_server(health_ready=OK, metrics=text) as server:
        said = command("warmup", server.url, *WAIT)
    assert said.code == 1
    told = "failed after 250 ms" if state == "failure" else "not warmed up yet"
    assert f"bad: {told}" in said.out
    assert "asr: warmed up" in said.out
    assert "ready, but not warmed up: bad" in said.error
    assert said.hint


@pytest.mark.parametrize(
    ("ready", "reason"),
    [
        (unavailable("asr: the model is loading"), "asr: the model is loading"),
        (Reply("<h1>502</h1>", status=502), "HTTP 502"),
    ],
)
def test_without_wait_it_looks_once(ready: Reply, reason: str, command: Command) -> None:
    with scripted_server(health_ready=ready, health_live=OK) as server:
        said = command("warmup", server.url)
        assert server.asked.count("/health/ready") == 1
    assert (said.code, said.out) == (1, "")
    assert f"{server.url}: not ready: {reason}" in said.error
    assert "--wait" in said.hint
    nobody = command("warmup", f"127.0.0.1:{closed_port()}")
    assert nobody.code == 1
    assert "connection refused" in nobody.error


def test_it_waits_through_everything_that_passes(command: Command) -> None:
    ready = in_turn(
        unavailable("asr: the model is loading"),
        Reply("<h1>Service Unavailable</h1>", status=503),  # a proxy's
        Reply(raw=b""),
        OK,
    )
    live = in_turn(OK, Reply("<h1>Service Unavailable</h1>", status=503))
    with scripted_server(
        health_ready=ready, health_live=live, metrics=expositions.server(Module())
    ) as server:
        said = command("warmup", server.url, *WAIT)
        assert server.asked.count("/health/ready") == 4
    assert (said.code, said.err) == (0, "")
    assert said.out == "asr: warmed up in 1.24 s\n"


def test_a_dead_server_is_not_waited_for(command: Command) -> None:
    reasons = ("asr: the model failed: out of memory", "en: the model is gone")
    with scripted_server(
        health_ready=unavailable("x"), health_live=unavailable(*reasons)
    ) as server:
        said = command("warmup", server.url, *WAIT)
        assert server.asked.count("/health/ready") == 1
    assert (said.code, said.out) == (1, "")
    assert "is dead: asr: the model failed: out of memory; en: the model is gone" in said.error
    assert said.hint


def test_a_time_out_says_what_was_seen_last(command: Command) -> None:
    with scripted_server(health_ready=unavailable("asr: still\nloading"), health_live=OK) as server:
        said = command("warmup", server.url, "--wait", "--timeout", "0.6")
    assert (said.code, said.out) == (1, "")
    assert "not ready within 0.6 s; seen last: asr: still loading" in said.error
    assert "--timeout" in said.hint
    with silent_port() as port:
        said = command("warmup", f"127.0.0.1:{port}", "--wait", "--timeout", "0.2")
    assert said.code == 1
    assert "seen last: no answer within" in said.error
    with scripted_server(health_ready=Reply(raw=b"")) as server:
        said = command("warmup", server.url, "--wait", "--timeout", "0")
    assert "not ready within 0 s; seen last: the connection broke off" in said.error


@pytest.mark.parametrize(
    "server",
    [
        {"health_ready": Reply("<html>It works!</html>")},
        {"health_ready": Reply('{"status":"fine"}')},
        {"health_ready": Reply("", status=401)},
        {"health_ready": Reply("not found", status=404)},
        {"health_ready": Reply("not found", status=404), "api_build_info": Reply("<html></html>")},
        {"health_ready": Reply(raw=b"220 mail ESMTP\r\n")},
    ],
)
def test_what_is_no_server_of_ours_is_not_waited_for(
    server: dict[str, Reply], command: Command
) -> None:
    with scripted_server(**server) as scripted:
        said = command("warmup", scripted.url, *WAIT)
    assert (said.code, said.out) == (1, "")
    assert "no server of speech models" in said.error or "does not speak HTTP" in said.error
    assert said.hint


def test_kyutais_server_is_ready_once_it_answers(command: Command) -> None:
    with scripted_server(api_build_info=BUILD_INFO, metrics=expositions.kyutai([0.04])) as server:
        said = command("warmup", server.url, *WAIT)
        as_json = command("warmup", server.url, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.out == f"{server.url}: ready; it says nothing of its warm-up\n"
    assert as_json.code == 0
    assert json.loads(as_json.out)["modules"] == {}
    assert json.loads(as_json.out)["note"] == "it says nothing of its warm-up"


def test_a_server_whose_metrics_are_broken_is_ready_all_the_same(command: Command) -> None:
    with scripted_server(health_ready=OK, metrics=Reply("", status=500)) as server:
        said = command("warmup", server.url, *WAIT)
    assert (said.code, said.err) == (0, "")
    assert f"{server.url}: ready; its metrics cannot be read: " in said.out


def document(out: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(out)
    assert list(read) == ["url", "state", "reasons", "waited_seconds", "modules", "note"]
    assert read["waited_seconds"] >= 0
    return read


def test_json(command: Command) -> None:
    text = expositions.server(Module("asr"), Module("asr-en", warmup="skipped"))
    with scripted_server(health_ready=OK, metrics=text) as server:
        said = command("warmup", server.url, *WAIT, "--json")
        assert (said.code, said.err) == (0, "")
        ready = document(said.out)
        assert (ready["url"], ready["state"]) == (server.url, "ready")
        assert (ready["reasons"], ready["note"]) == ([], None)
        assert ready["modules"] == {
            "asr": {"result": "succeeded", "runs": 1, "duration_seconds": 1.24},
            "asr-en": {"result": "skipped", "runs": 0, "duration_seconds": None},
        }
    for live, state, reason in ((OK, "not_ready", "ready?"), (unavailable("gone"), "dead", "gone")):
        with scripted_server(health_ready=unavailable("ready?"), health_live=live) as server:
            said = command("warmup", server.url, "--json")
        assert said.code == 1
        assert said.error
        seen = document(said.out)
        assert (seen["state"], seen["reasons"], seen["modules"]) == (state, [reason], {})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["ftp://host"], "'ftp://host' is not the address of a server"),
        (["host", "--timeout", "3"], "--timeout: nothing is waited for"),
        (["host", "--wait", "--timeout", "-1"], "--timeout: '-1' is out of range"),
        (["host", "--wait", "--timeout", "nan"], "--timeout: 'nan' is not a number"),
    ],
)
def test_usage_errors(arguments: list[str], error: str, command: Command) -> None:
    said = command("warmup", *arguments)
    assert (said.code, said.out) == (2, "")
    assert error in said.error
    assert said.hint


def test_a_terminal_shows_that_it_waits_and_for_what(tmp_path: Path) -> None:
    server = ScriptedServer(closed_port()).serves(
        health_ready=unavailable("asr: the model is loading"),
        health_live=OK,
        metrics=expositions.server(Module()),
    )
    with on_terminal("warmup", server.url, *WAIT, cwd=tmp_path, columns=120) as shown:
        shown.until(f"waiting for {server.url}: connection refused")
        server.start()
        try:
            shown.until("the model is loading")
            server.serves(health_ready=OK)
            shown.until("asr: warmed up in 1.24 s")
            assert shown.process.wait(30) == 0
        finally:
            server.stop()


def test_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    with (
        scripted_server(health_ready=unavailable("loading"), health_live=OK) as server,
        following("warmup", server.url, *WAIT, cwd=tmp_path) as waiting,
    ):
        while len(server.asked) < 3:
            assert waiting.process.poll() is None
            server.wait(0.05)
        code, said = waiting.interrupt()
        assert code == 130
        assert "Traceback" not in said


def test_it_may_wait_before_the_worker_listens(
    tiny_dir: Path, tmp_path: Path, command: Command
) -> None:
    port = closed_port()
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with subprocess.Popen(
        [*cli.COMMAND, "warmup", f"127.0.0.1:{port}", "--wait", "--timeout", "60"],
        cwd=tmp_path,
        env=cli.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        # It has begun to wait when this one, begun later, has already given up.
        assert command("warmup", f"127.0.0.1:{port}", "--wait", "--timeout", "1").code == 1
        assert waiting.poll() is None
        with worker("tiny-random", "--port", str(port), cwd=tmp_path, env=env):
            out, err = waiting.communicate(timeout=cli.TIMEOUT_S)
    assert (waiting.returncode, err) == (0, "")
    assert out.startswith("asr: warmed up in ")


def test_a_worker_that_warms_nothing_up_says_so(
    tiny_dir: Path, tmp_path: Path, command: Command
) -> None:
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with worker("tiny-random", "--no-warmup", cwd=tmp_path, env=env) as started:
        said = command("warmup", started.http, *WAIT)
    assert (said.code, said.out, said.err) == (0, "asr: skipped (warm-up is off)\n", "")


def test_a_real_worker(server: Worker, command: Command) -> None:
    for url in (server.http, server.url):
        said = command("warmup", url)
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith("asr: warmed up in ")


def test_a_worker_whose_warm_up_fails_is_never_ready(
    tiny_dir: Path, tmp_path: Path, command: Command
) -> None:
    port = closed_port()
    fail_to_warm_up(tiny_dir, tmp_path, port)
    said = command("warmup", f"127.0.0.1:{port}", "--wait", "--timeout", "0.5")
    assert said.code == 1
    assert "seen last: connection refused" in said.error
    assert "warmed up" in said.hint
