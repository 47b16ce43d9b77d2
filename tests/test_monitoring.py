"""Real workers and a real Prometheus: panels show data, alerts fire and resolve."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from moshi_ctl.client import AsrClient
from moshi_ctl.errors import ClientError, NoFreeChannelsError
from moshi_ctl.protocol import FRAME_SAMPLES, SAMPLE_RATE_HZ
from support import cli, configs, dashboards, exposition, fake_nvml, speech
from support.http import request
from support.made_up_target import MadeUpTarget, made_up_target
from support.prometheus import JOB, OTHER_JOB, Prometheus, free_port, needs, prometheus, rules
from support.worker import KEY, Worker, fail_to_warm_up, worker

LANES = 4
PATH = "/api/asr-streaming"
LOAD_S = 6.0
MANY_LANES = 32
AHEAD_S = 20.0
FILES = 3
# An alert may take its window, its waiting time and some scrapes, on a machine with other work.
ALERT_TIMEOUT_S = 40.0

# What Grafana puts into queries where all jobs, workers and modules are chosen.
EVERYTHING = {"job": JOB, "instance": dashboards.ALL, "module": dashboards.ALL}

CARD = fake_nvml.RTX_2070_CARD
FULL_CARD = fake_nvml.Machine(
    (replace(CARD, used_bytes=CARD.total_bytes - CARD.reserved_bytes - 100 * fake_nvml.MIB),)
)


@dataclass
class Site:
    """A Prometheus and what it scrapes.

    Attributes:
        server: A worker that sees a full card.
        env: Its environment.
        machine_dir: Where the card is described.
        unstarted: The port of a worker whose start fails.
        overloaded: The port for a worker that is too slow.
        made_up: A target with faults that a real worker does not have on demand.
    """

    prometheus: Prometheus
    server: Worker
    env: Mapping[str, str]
    machine_dir: Path
    tiny_dir: Path
    unstarted: int
    overloaded: int
    made_up: MadeUpTarget

    @property
    def instance(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def fires(self, alert: str, instance: str) -> None:
        self.prometheus.wait(
            f"{alert} fires", lambda: alert in self.prometheus.alerts(instance), ALERT_TIMEOUT_S
        )

    def resolves(self, alert: str, instance: str) -> None:
        self.prometheus.wait(
            f"{alert} resolves",
            lambda: alert not in self.prometheus.alerts(instance),
            ALERT_TIMEOUT_S,
        )


@pytest.fixture(scope="module")
def site(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    needs("prometheus")
    folder = tmp_path_factory.mktemp("site")
    env = {
        "MOSHI_CTL_TINY_DIR": str(tiny_dir),
        "MOSHI_API_KEY": KEY,
        **fake_nvml.machine(folder, FULL_CARD),
    }
    unstarted, overloaded = free_port(), free_port()
    with ExitStack() as stack:
        made_up = stack.enter_context(made_up_target())
        break_everything(made_up)
        server = stack.enter_context(worker("tiny-random", cwd=tiny_dir, env=env))
        ports = (server.port, made_up.port, unstarted, overloaded)
        targets = [f"127.0.0.1:{port}" for port in ports]
        watching = stack.enter_context(prometheus(folder / "prometheus", targets))
        (folder / "broken").mkdir()
        fail_to_warm_up(tiny_dir, folder / "broken", unstarted)
        yield Site(watching, server, env, folder, tiny_dir, unstarted, overloaded, made_up)


def break_everything(target: MadeUpTarget) -> None:
    """50 steps per second of which 10 % are too long, a lag that grows, a step that hangs."""
    asr = 'module="asr"'
    target.set("moshi_ready", 1)
    target.set(f"moshi_model_loop_alive{{{asr}}}", 1)
    target.set(f"moshi_step_duration_seconds_count{{{asr}}}", lambda s: 50 * s)
    target.set(f"moshi_deadline_misses_total{{{asr}}}", lambda s: 5 * s)
    target.set(f"moshi_lag_seconds{{{asr}}}", lambda s: 1 + s / 10)
    target.set(f"moshi_step_running_seconds{{{asr}}}", lambda s: s)


def mend_everything(target: MadeUpTarget) -> None:
    asr = 'module="asr"'
    # As after a restart.
    target.set(f"moshi_deadline_misses_total{{{asr}}}", 0)
    target.set(f"moshi_lag_seconds{{{asr}}}", 0)
    target.set(f"moshi_step_running_seconds{{{asr}}}", 0)


async def speak(url: str, seconds: float) -> int:
    """One live stream, as fast as it is spoken; how many events came back."""
    samples = np.resize(speech.speech(), round(seconds * SAMPLE_RATE_HZ))
    heard = 0

    async def listen(asr: AsrClient) -> None:
        nonlocal heard
        async for _ in asr:
            heard += 1

    async with AsrClient(url, key=KEY) as asr:
        listening = asyncio.create_task(listen(asr))
        for start in range(0, len(samples), FRAME_SAMPLES):
            await asr.send_audio(samples[start : start + FRAME_SAMPLES])
            await asyncio.sleep(FRAME_SAMPLES / SAMPLE_RATE_HZ)
        listening.cancel()
    return heard


def load(server: Worker) -> None:
    """Three live streams, files beside them, and requests that are refused."""
    authorized = {"kyutai-api-key": KEY}
    body = speech.SPEECH.read_bytes()

    def files() -> None:
        for _ in range(FILES):
            assert request(server.port, "POST", PATH, body, authorized).status == 200
            assert request(server.port, "POST", PATH, body).status == 401
            assert request(server.port, "POST", PATH, b"none", authorized).status >= 400

    async def all_at_once() -> None:
        streams = (speak(server.url, LOAD_S) for _ in range(LANES - 1))
        heard, *_ = await asyncio.gather(asyncio.gather(*streams), asyncio.to_thread(files))
        assert all(heard)

    asyncio.run(all_at_once())


@pytest.fixture(scope="module")
def loaded(site: Site) -> Site:
    """The site while panels have something to show: just after the load, with alerts firing."""
    site.fires("MoshiStepStuck", site.made_up.instance)
    site.fires("MoshiDeadlineMisses", site.made_up.instance)
    site.fires("MoshiGpuMemoryNearlyFull", site.instance)
    load(site.server)
    return site


def without_data(site: Site, chosen: Mapping[str, str]) -> list[str]:
    """The panels' queries that return nothing, or no number."""
    empty = []
    for query in dashboards.queries():
        expr = dashboards.substituted(query.expr, chosen)
        if query.instant:
            series = site.prometheus.query(expr)
        else:
            series = site.prometheus.query_range(expr, dashboards.RANGE_S, dashboards.STEP_S)
        if not any(one.has_numbers for one in series):
            empty.append(str(query))
    return empty


def test_every_panel_shows_data(loaded: Site) -> None:
    assert without_data(loaded, EVERYTHING) == []


def test_every_panel_shows_data_of_the_chosen_worker_and_module(loaded: Site) -> None:
    chosen = {"job": JOB, "instance": dashboards.literally(loaded.instance), "module": "asr"}
    assert without_data(loaded, chosen) == []


def test_panels_show_nothing_of_other_jobs(loaded: Site) -> None:
    assert loaded.prometheus.query(f'process_start_time_seconds{{job="{OTHER_JOB}"}}')
    for query in dashboards.queries():
        for one in loaded.prometheus.query(dashboards.substituted(query.expr, EVERYTHING)):
            assert one.labels.get("job") != OTHER_JOB, query
    (workers,) = (query for query in dashboards.queries() if query.panel == "Workers that answer")
    answering = loaded.prometheus.query(dashboards.substituted(workers.expr, EVERYTHING))
    assert [one.values for one in answering] == [[2.0]]


def test_lines_of_a_table_can_be_joined(loaded: Site) -> None:
    """Grafana's `merge` joins what has the same labels, the metric's name among them."""
    joined = [
        panel
        for path in dashboards.FILES
        for panel in dashboards.panels(dashboards.load(path.name))
        if panel["type"] == "table" and len(panel["targets"]) > 1
    ]
    assert joined
    for panel in joined:
        expressions = (target["expr"] for target in panel["targets"])
        answers = [
            loaded.prometheus.query(dashboards.substituted(expr, EVERYTHING))
            for expr in expressions
        ]
        lines = [{tuple(sorted(one.labels.items())) for one in answer} for answer in answers]
        assert all(line == lines[0] for line in lines), panel["title"]


def test_every_recorded_series_has_data(loaded: Site) -> None:
    recorded = [rule["record"] for rule in rules() if "record" in rule]
    assert recorded
    for name in recorded:
        expr = f'{name}{{instance="{loaded.instance}"}}'
        series = loaded.prometheus.query_range(expr, dashboards.RANGE_S, dashboards.STEP_S)
        assert any(one.has_numbers for one in series), name
        assert {one.labels["module"] for one in series} == {"asr"}


def test_numbers_are_those_of_the_load(loaded: Site) -> None:
    def highest(expr: str) -> float:
        series = loaded.prometheus.query_range(expr, dashboards.RANGE_S, dashboards.STEP_S)
        return max(max(one.values) for one in series)

    selector = f'{{instance="{loaded.instance}", module="asr"}}'
    assert highest(f"moshi_lanes_used{selector}") in (LANES - 1, LANES)
    assert highest(f"moshi_lanes{selector}") == LANES
    # Three live streams, and files faster than real time.
    assert highest(f"rate(moshi_frames_total{selector}[4s]) * 0.08") > LANES - 2
    total = f'moshi_sessions_total{{instance="{loaded.instance}", kind="%s"}}'
    assert highest(total % "stream") == LANES - 1
    assert highest(total % "file") == FILES
    refused = f'moshi_refusals_total{{instance="{loaded.instance}", reason="unauthorized"}}'
    assert highest(refused) == FILES


def test_variables_offer_what_there_is(loaded: Site) -> None:
    offered: dict[str, list[str]] = {}
    for variable in dashboards.load("capacity.json")["templating"]["list"]:
        if variable["type"] != "query":
            continue
        inside = variable["query"]["query"].removeprefix("label_values(").removesuffix(")")
        selector, _, label = dashboards.substituted(inside, EVERYTHING).rpartition(", ")
        offered[variable["name"]] = loaded.prometheus.label_values(label, selector)
    assert offered["job"] == [JOB]
    # The one that does not start, too.
    assert f"127.0.0.1:{loaded.unstarted}" in offered["instance"]
    assert loaded.instance in offered["instance"]
    assert "asr" in offered["module"]


def test_marks_of_alerts_are_found(loaded: Site) -> None:
    marked: dict[str, set[str]] = {}
    for annotation in dashboards.load("errors.json")["annotations"]["list"]:
        expr = dashboards.substituted(annotation["expr"], EVERYTHING)
        series = loaded.prometheus.query_range(expr, dashboards.RANGE_S, dashboards.STEP_S)
        marked[annotation["name"]] = {one.labels.get("alertname", "") for one in series}
    assert "MoshiStepStuck" in marked["Critical alerts"]
    assert "MoshiDeadlineMisses" in marked["Warnings"]


def test_lanes_that_are_all_used_raise_alarm_until_one_is_free(site: Site) -> None:
    async def hold_all_lanes() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(LANES):
                asr = await stack.enter_async_context(AsrClient(site.server.url, key=KEY))
                talking = asyncio.create_task(silence(asr))
                stack.callback(talking.cancel)
            with pytest.raises(NoFreeChannelsError):
                await AsrClient(site.server.url, key=KEY).__aenter__()
            for alert in ("MoshiNoFreeLanes", "MoshiRefusingStreams"):
                await asyncio.to_thread(site.fires, alert, site.instance)
        said = site.prometheus.alerts(site.instance)["MoshiNoFreeLanes"]["annotations"]
        assert f"All {LANES} lanes of asr on {site.instance}" in said["description"]

    asyncio.run(hold_all_lanes())
    for alert in ("MoshiNoFreeLanes", "MoshiRefusingStreams"):
        site.resolves(alert, site.instance)


async def silence(asr: AsrClient) -> None:
    while True:
        await asr.send_audio(np.zeros(FRAME_SAMPLES, dtype=np.float32))
        await asyncio.sleep(FRAME_SAMPLES / SAMPLE_RATE_HZ)


def test_a_start_that_fails_raises_alarm_until_one_succeeds(site: Site) -> None:
    instance = f"127.0.0.1:{site.unstarted}"
    site.fires("MoshiWarmupFailed", instance)
    assert "MoshiModelLoopDead" not in site.prometheus.alerts(instance)
    env = {"MOSHI_CTL_TINY_DIR": str(site.tiny_dir), "MOSHI_API_KEY": KEY}
    with worker("tiny-random", "-p", str(site.unstarted), cwd=site.tiny_dir, env=env):
        site.resolves("MoshiWarmupFailed", instance)


@pytest.mark.parametrize(
    ("alert", "says"),
    [
        ("MoshiDeadlineMisses", "10% of the steps of asr"),
        ("MoshiLagGrowing", "does not catch up"),
        ("MoshiStepStuck", "has been running for"),
    ],
)
def test_trouble_with_steps_raises_alarm(site: Site, alert: str, says: str) -> None:
    site.fires(alert, site.made_up.instance)
    fired = site.prometheus.alerts(site.made_up.instance)[alert]
    assert says in fired["annotations"]["description"]
    assert fired["labels"]["module"] == "asr"


def test_alarm_ends_with_the_trouble(site: Site) -> None:
    for alert in ("MoshiDeadlineMisses", "MoshiLagGrowing", "MoshiStepStuck"):
        site.fires(alert, site.made_up.instance)
    mend_everything(site.made_up)
    for alert in ("MoshiDeadlineMisses", "MoshiLagGrowing", "MoshiStepStuck"):
        site.resolves(alert, site.made_up.instance)


@pytest.fixture
def slow_worker(site: Site, tmp_path: Path) -> Iterator[Worker]:
    """A worker that offers more lanes than it can step: a model fifty times the tiny one, one
    thread, no vector instructions."""
    config = configs.tiny(
        tmp_path,
        ("[modules.asr]\n", "[sizing]\nreal_time = false\n\n[modules.asr]\n"),
        ("batch_size = 4", f"batch_size = {MANY_LANES}"),
        ("d_model = 128", "d_model = 768"),
        ("num_layers = 2\ndim_feedforward = 512", "num_layers = 8\ndim_feedforward = 2048"),
    )
    env = {
        "MOSHI_CTL_TINY_DIR": str(tmp_path),
        "MOSHI_API_KEY": KEY,
        "MOSHI_INSTRUCTIONS": "portable",
    }
    made = cli.run("random-checkpoint", "--config", config, cwd=tmp_path, env=env)
    assert made.returncode == 0, made.stderr
    options = ("-p", str(site.overloaded), "--precision", "f32", "--threads", "1")
    with worker(config, *options, cwd=tmp_path, env=env) as started:
        yield started


def test_a_worker_that_is_overloaded_raises_alarm_until_it_is_not(
    site: Site, slow_worker: Worker
) -> None:
    instance = f"127.0.0.1:{slow_worker.port}"
    alerts = ("MoshiDeadlineMisses", "MoshiLagGrowing", "MoshiOverloaded")

    def step_s() -> float:
        said = exposition.samples(slow_worker, module="asr")
        steps = said["moshi_step_duration_seconds_count"]
        return said["moshi_step_duration_seconds_sum"] / steps if steps else 0.0

    async def overload() -> None:
        speech_ahead = np.zeros(round(AHEAD_S * SAMPLE_RATE_HZ), dtype=np.float32)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MANY_LANES):
                try:
                    asr = await stack.enter_async_context(AsrClient(slow_worker.url, key=KEY))
                except ClientError as error:
                    if "overloaded" not in error.message:
                        raise
                    break  # it lets nobody else in already
                await asr.send_audio(speech_ahead)
                # On a slow machine fewer will do; steps must not become rare.
                if await asyncio.to_thread(step_s) > 2 * FRAME_SAMPLES / SAMPLE_RATE_HZ:
                    break
            for alert in alerts:
                await asyncio.to_thread(site.fires, alert, instance)

    assert not set(alerts) & set(site.prometheus.alerts(instance))
    asyncio.run(overload())
    for alert in alerts:
        site.resolves(alert, instance)


def test_a_full_card_raises_alarm_until_there_is_room(site: Site) -> None:
    site.fires("MoshiGpuMemoryNearlyFull", site.instance)
    fired = site.prometheus.alerts(site.instance)["MoshiGpuMemoryNearlyFull"]
    assert f"100MiB of the memory of {CARD.name}" in fired["annotations"]["description"]
    fake_nvml.become(site.machine_dir, fake_nvml.RTX_2070)
    site.resolves("MoshiGpuMemoryNearlyFull", site.instance)


def test_a_worker_that_is_gone_raises_alarm_until_it_is_back(site: Site) -> None:
    instance, port = site.instance, site.server.port
    site.server.process.kill()
    site.server.process.wait()
    site.fires("MoshiModelLoopDead", instance)
    assert "MoshiWarmupFailed" not in site.prometheus.alerts(instance)
    with worker("tiny-random", "-p", str(port), cwd=site.tiny_dir, env=site.env):
        site.resolves("MoshiModelLoopDead", instance)
        starts = f'changes(process_start_time_seconds{{instance="{instance}"}}[1m])'
        assert [one.values for one in site.prometheus.query(starts)] == [[1.0]]
