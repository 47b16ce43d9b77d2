"""Traces of a worker, sent to a collector on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from websockets.asyncio.client import connect

from support import cli, configs, http, speech
from support.collector import Collector, collector
from support.worker import KEY, Worker, worker

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


@pytest.fixture(name="sink")
def _sink() -> Iterator[Collector]:
    with collector() as started:
        yield started


def hear(started: Worker, cwd: Path) -> str:
    result = cli.run("transcribe", speech.SPEECH, "--url", started.url, "--key", KEY, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def stream(started: Worker, headers: dict[str, str], key: str = KEY) -> None:
    """Begins a session and leaves."""

    async def session() -> None:
        asked = {"kyutai-api-key": key, **headers}
        async with connect(started.url, additional_headers=asked, proxy=None) as connection:
            ready = await asyncio.wait_for(connection.recv(), timeout=30)
            assert msgpack.unpackb(ready)["type"] == "Ready"

    asyncio.run(session())


def test_spans_of_a_session_and_of_the_start(
    sink: Collector, env: dict[str, str], tmp_path: Path
) -> None:
    env = {**env, "OTEL_EXPORTER_OTLP_HEADERS": "x-of-the-collector=canary-header"}
    with worker("tiny-random", "--otlp-endpoint", sink.endpoint, cwd=tmp_path, env=env) as started:
        stream(started, {"traceparent": TRACEPARENT})
        stream(started, {})
        stream(started, {"traceparent": "00-this-is-none-01"})
        headers = {"kyutai-api-key": KEY, "traceparent": TRACEPARENT}
        body = speech.SPEECH.read_bytes()
        answer = http.request(started.port, "POST", "/api/asr-streaming", body, headers)
        assert answer.status == 200
        assert started.end() == 0
    assert all(path == "/v1/traces" for path, _, _ in sink.requests)
    for _, sent, _ in sink.requests:
        assert sent["content-type"] == "application/x-protobuf"
        assert sent["x-of-the-collector"] == "canary-header"

    sessions = sink.named("session")
    kinds = ["stream", "stream", "stream", "file"]
    assert [span.attributes["kind"] for span in sessions] == kinds
    followed, *others, file = sessions
    for span in (followed, file):
        assert (span.trace, span.parent) == (TRACE, PARENT)
    for span in others:
        assert span.parent == ""
        assert span.trace not in ("", TRACE)
    for number, span in enumerate(sessions, start=1):
        assert span.attributes["module"] == "asr"
        assert int(span.attributes["id"]) == number
        assert any("over" in name or "transcribed" in name for name in span.events)

    (model,) = sink.named("model")
    assert model.attributes["module"] == "asr"
    (load,) = sink.named("load")
    (warm_up,) = sink.named("warm-up")
    assert load.events["the model is loaded"]["device"] == "cpu"
    assert (load.parent, warm_up.parent) == (model.id, model.id)
    for span in sink.spans:
        assert span.resource["service.name"] == "moshi-ctl"
        assert span.resource["service.instance.id"] == "tiny-random"
        assert span.resource["service.version"]


def test_the_variable_and_the_service_s_name(
    sink: Collector, env: dict[str, str], tmp_path: Path
) -> None:
    env = {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": f"{sink.endpoint}/", "OTEL_SERVICE_NAME": "ours"}
    with worker("tiny-random", cwd=tmp_path, env=env) as started:
        assert started.end() == 0
    assert {span.resource["service.name"] for span in sink.spans} == {"ours"}


def test_no_key_is_in_a_trace(sink: Collector, env: dict[str, str], tmp_path: Path) -> None:
    config = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path / "logs")))
    env = {
        **env,
        "MOSHI_API_KEY": "canary-one,canary-two",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=canary-three",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    options = ("--log", "trace", "--otlp-endpoint", sink.endpoint)
    with worker(config, *options, cwd=tmp_path, env=env) as started:
        stream(started, {"traceparent": TRACEPARENT}, key="canary-one")
        for key in ("canary-two", "canary-four"):
            url = f"{started.url}?auth_id={key}"
            cli.run("transcribe", speech.SPEECH, "--url", url, "--key", key, cwd=tmp_path)
            path = f"/api/asr-streaming?auth_id={key}"
            http.request(started.port, "POST", path, b"no audio", {"traceparent": TRACEPARENT})
        started.end()
    assert sink.named("session")
    assert not any(b"canary" in body for _, _, body in sink.requests)
    logged = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "canary" not in logged + "".join(started.log)


@pytest.mark.parametrize("trouble", ["gone", "slow", "refusing"])
def test_a_collector_in_trouble_harms_nothing(
    trouble: str, sink: Collector, env: dict[str, str], tmp_path: Path
) -> None:
    if trouble == "gone":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            sink.endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    elif trouble == "slow":
        sink.delay_s = 60.0
    else:
        sink.status = 503
    env = {**env, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with worker("tiny-random", "--otlp-endpoint", sink.endpoint, cwd=tmp_path, env=env) as started:
        heard = [hear(started, tmp_path) for _ in range(3)]
        # It waits two seconds at most for the last batch; a minute would be too long for this.
        assert started.end() == 0
    assert heard[0].strip()
    assert len(set(heard)) == 1
    warnings = [line for line in started.log if "traces are lost" in line]
    assert len(warnings) == (trouble != "slow")


def test_nothing_is_sent_unless_asked_for(
    sink: Collector, env: dict[str, str], tmp_path: Path
) -> None:
    with worker("tiny-random", cwd=tmp_path, env=env) as started:
        stream(started, {"traceparent": TRACEPARENT})
        assert started.end() == 0
    assert not sink.requests
    assert not any("traces" in line for line in started.log)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("https://127.0.0.1:4318", "https://, which is not supported"),
        ("127.0.0.1:4318", "does not begin with http://"),
        ("http://user:canary@127.0.0.1:4318", "holds more than host, port and path"),
    ],
)
def test_an_address_that_cannot_be_used(
    endpoint: str, says: str, env: dict[str, str], tmp_path: Path
) -> None:
    for arguments, variables in (
        (["--otlp-endpoint", endpoint], {}),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}),
    ):
        result = cli.run(
            "worker", "--config", "tiny-random", "-a", "127.0.0.1", "-p", "0", *arguments,
            cwd=tmp_path, env={**env, **variables},
        )  # fmt: skip
        assert (result.returncode, result.stdout) == (2, "")
        error, hint = result.stderr.splitlines()
        assert says in error
        assert "OpenTelemetry" in error
        assert hint.startswith("hint: ")
        assert "canary" not in result.stderr
