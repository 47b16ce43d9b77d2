"""What a server measures, by module: typed values of one scrape, and what changed since another.

Names are those of the metrics without `moshi_`, with units written as everywhere in this package.
A value is None where the server does not offer that metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from moshi_ctl.monitoring.exposition import Exposition
from moshi_ctl.monitoring.histograms import Histogram

_PREFIX: Final = "moshi_"
_KYUTAI_PREFIX: Final = "asr_"
_MODULE: Final = "module"
# Each of them is there for each module, even before anything has happened.
_NAMES_OF_MODULES: Final = ("moshi_module_info", "moshi_lanes", "warmup_skipped_total")

Counts = Mapping[str, float]
"""Counts by the value of a label."""


class WarmupResult(str, Enum):
    """How a module's warm-up went."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"


# The one that is told of where several have happened comes first.
_WARMUP_COUNTERS: Final = {
    WarmupResult.FAILED: "failure",
    WarmupResult.SUCCEEDED: "success",
    WarmupResult.SKIPPED: "skipped",
}


@dataclass(frozen=True)
class Warmup:
    """A module's warm-up.

    Attributes:
        result: How it went; a failure outweighs a success.
        runs: How many warm-ups were timed.
        duration_s: How long all of them took together.
    """

    result: WarmupResult
    runs: float
    duration_s: float | None


@dataclass(frozen=True)
class ModuleMetrics:
    """What a server measures of one module.

    Attributes:
        name: As in the configuration.
        type: `batched_asr` or `asr`.
        path: Where it is served.
        device: `cpu`, `cuda:0`.
        precision: Of the language model's matrices.
        kv_precision: Of its keys and values.
        warmup: None where the server says nothing of it.
        lanes: How many are offered.
        lanes_used: How many have a session.
        loop_alive: Whether the model still steps.
        overloaded: Whether nobody is let in because streams lag behind.
        step_running_s: How long the step in progress has been running.
        steps: Durations of steps, in seconds.
        deadline_misses: Steps that took longer than a frame lasts.
        frames: Processed, over all lanes.
        lag_s: Of the slowest lane.
        backlog_s: Of all lanes.
        words: Sent.
        word_latency: From a word's audio to its message, in seconds.
        received_bytes: Payload.
        sent_bytes: Payload.
        refusals: By reason.
        sessions: By kind.
        sessions_ended: By kind, then by how.
    """

    name: str
    type: str | None
    path: str | None
    device: str | None
    precision: str | None
    kv_precision: str | None
    warmup: Warmup | None
    lanes: float | None
    lanes_used: float | None
    loop_alive: bool | None
    overloaded: bool | None
    step_running_s: float | None
    steps: Histogram | None
    deadline_misses: float | None
    frames: float | None
    lag_s: float | None
    backlog_s: float | None
    words: float | None
    word_latency: Histogram | None
    received_bytes: float | None
    sent_bytes: float | None
    refusals: Counts
    sessions: Counts
    sessions_ended: Mapping[str, Counts]

    @property
    def deadline_miss_ratio(self) -> float | None:
        """The share of steps that took longer than a frame lasts."""
        if self.steps is None or self.deadline_misses is None or not self.steps.count:
            return None
        return self.deadline_misses / self.steps.count

    def since(self, previous: ModuleMetrics) -> ModuleMetrics:
        """With counters and histograms as what was added since `previous`."""
        return replace(
            self,
            steps=self.steps and self.steps.since(previous.steps),
            deadline_misses=increase(self.deadline_misses, previous.deadline_misses),
            frames=increase(self.frames, previous.frames),
            words=increase(self.words, previous.words),
            word_latency=self.word_latency and self.word_latency.since(previous.word_latency),
            received_bytes=increase(self.received_bytes, previous.received_bytes),
            sent_bytes=increase(self.sent_bytes, previous.sent_bytes),
            refusals=_increases(self.refusals, previous.refusals),
            sessions=_increases(self.sessions, previous.sessions),
            sessions_ended={
                kind: _increases(ends, previous.sessions_ended.get(kind, {}))
                for kind, ends in self.sessions_ended.items()
            },
        )


@dataclass(frozen=True)
class GpuMetrics:
    """What a server says of a card."""

    device: str
    name: str | None
    uuid: str | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    utilization_ratio: float | None
    power_watts: float | None
    temperature_celsius: float | None


@dataclass(frozen=True)
class ProcessMetrics:
    """What every Prometheus client says of its process."""

    cpu_s: float | None
    resident_memory_bytes: float | None
    virtual_memory_bytes: float | None
    open_fds: float | None
    max_fds: float | None
    threads: float | None
    start_time_unix_s: float | None


@dataclass(frozen=True)
class KyutaiMetrics:
    """What Kyutai's own server offers too; over all modules.

    Attributes:
        connections: WebSocket connections with a valid key.
        open_channels: Lanes in use.
        steps: Durations of steps, in seconds.
        session_steps: How many steps sessions had.
    """

    connections: float | None
    open_channels: float | None
    steps: Histogram | None
    session_steps: Histogram | None


@dataclass(frozen=True)
class ServerMetrics:
    """What a server measures.

    Attributes:
        build: `version`, `git_hash`, `rustc_version` and `target`, as far as known.
        ready: Whether `/health/ready` answers 200.
        modules: In the order of their names.
        gpus: Cards, where there are any.
        process: The server's process.
        log_messages: By level.
        log_lines_dropped: Lines that did not reach the log file.
        kyutai: What Kyutai's server offers too.
    """

    build: Mapping[str, str]
    ready: bool | None
    modules: tuple[ModuleMetrics, ...]
    gpus: tuple[GpuMetrics, ...]
    process: ProcessMetrics
    log_messages: Counts
    log_lines_dropped: float | None
    kyutai: KyutaiMetrics

    def module(self, name: str) -> ModuleMetrics | None:
        """The module of this name."""
        return next((module for module in self.modules if module.name == name), None)

    def since(self, previous: ServerMetrics) -> ServerMetrics:
        """With counters and histograms as what was added since `previous`, as Prometheus counts.

        A counter that is smaller than before was reset, and began again at 0. In a process that
        started later than the one before all of them did. What was not there before began at 0
        too: the server makes some counters when first needed.
        """
        if self.is_another_process_than(previous):
            return self
        kyutai, before = self.kyutai, previous.kyutai
        return replace(
            self,
            modules=tuple(self._modules_since(previous)),
            process=replace(
                self.process, cpu_s=increase(self.process.cpu_s, previous.process.cpu_s)
            ),
            log_messages=_increases(self.log_messages, previous.log_messages),
            log_lines_dropped=increase(self.log_lines_dropped, previous.log_lines_dropped),
            kyutai=replace(
                kyutai,
                connections=increase(kyutai.connections, before.connections),
                steps=kyutai.steps and kyutai.steps.since(before.steps),
                session_steps=kyutai.session_steps
                and kyutai.session_steps.since(before.session_steps),
            ),
        )

    def _modules_since(self, previous: ServerMetrics) -> Iterable[ModuleMetrics]:
        for module in self.modules:
            before = previous.module(module.name)
            yield module if before is None else module.since(before)

    def is_another_process_than(self, previous: ServerMetrics) -> bool:
        """Whether the server was started anew in between; False where it does not tell."""
        start, before = self.process.start_time_unix_s, previous.process.start_time_unix_s
        return None not in (start, before) and start != before


def increase(now: float | None, before: float | None) -> float | None:
    """What a counter was incremented by; one that is smaller than before began again at 0."""
    if now is None or before is None or now < before:
        return now
    return now - before


def is_from_a_known_server(exposition: Exposition) -> bool:
    """Whether these are metrics of moshi-ctl's or Kyutai's server."""
    return any(name.startswith((_PREFIX, _KYUTAI_PREFIX)) for name in exposition.samples)


def read(exposition: Exposition) -> ServerMetrics:
    """Sorts a server's metrics."""
    build = next(iter(exposition.labels("moshi_build_info")), {})
    return ServerMetrics(
        build=build,
        ready=_switch(exposition.value("moshi_ready")),
        modules=tuple(_module(exposition, name) for name in _module_names(exposition)),
        gpus=tuple(_gpus(exposition)),
        process=ProcessMetrics(
            cpu_s=exposition.value("process_cpu_seconds_total"),
            resident_memory_bytes=exposition.value("process_resident_memory_bytes"),
            virtual_memory_bytes=exposition.value("process_virtual_memory_bytes"),
            open_fds=exposition.value("process_open_fds"),
            max_fds=exposition.value("process_max_fds"),
            threads=exposition.value("process_threads"),
            start_time_unix_s=exposition.value("process_start_time_seconds"),
        ),
        log_messages=exposition.by_label("moshi_log_messages_total", "level"),
        log_lines_dropped=exposition.value("moshi_log_lines_dropped_total"),
        kyutai=KyutaiMetrics(
            connections=exposition.total("asr_connect_total"),
            open_channels=exposition.total("asr_open_channels"),
            steps=exposition.histogram("asr_model_step_duration"),
            session_steps=exposition.histogram("asr_connection_num_steps"),
        ),
    )


def _module_names(exposition: Exposition) -> list[str]:
    labels = (each for name in _NAMES_OF_MODULES for each in exposition.labels(name))
    return sorted({each[_MODULE] for each in labels if _MODULE in each})


def _module(exposition: Exposition, name: str) -> ModuleMetrics:
    def value(metric: str) -> float | None:
        return exposition.value(f"{_PREFIX}{metric}", module=name)

    info = next(
        (each for each in exposition.labels("moshi_module_info") if each.get(_MODULE) == name), {}
    )
    return ModuleMetrics(
        name=name,
        type=info.get("type"),
        path=info.get("path"),
        device=info.get("device"),
        precision=info.get("precision"),
        kv_precision=info.get("kv_precision"),
        warmup=_warmup(exposition, name),
        lanes=value("lanes"),
        lanes_used=value("lanes_used"),
        loop_alive=_switch(value("model_loop_alive")),
        overloaded=_switch(value("overloaded")),
        step_running_s=value("step_running_seconds"),
        steps=exposition.histogram("moshi_step_duration_seconds", module=name),
        deadline_misses=value("deadline_misses_total"),
        frames=value("frames_total"),
        lag_s=value("lag_seconds"),
        backlog_s=value("backlog_seconds"),
        words=value("words_total"),
        word_latency=exposition.histogram("moshi_word_latency_seconds", module=name),
        received_bytes=value("received_bytes_total"),
        sent_bytes=value("sent_bytes_total"),
        refusals=exposition.by_label("moshi_refusals_total", "reason", module=name),
        sessions=exposition.by_label("moshi_sessions_total", "kind", module=name),
        sessions_ended={
            kind: exposition.by_label("moshi_sessions_ended_total", "end", module=name, kind=kind)
            for kind in _kinds(exposition.labels("moshi_sessions_ended_total"), name)
        },
    )


def _kinds(labels: Iterable[Mapping[str, str]], module: str) -> list[str]:
    return sorted(
        {each["kind"] for each in labels if each.get(_MODULE) == module and "kind" in each}
    )


def _warmup(exposition: Exposition, name: str) -> Warmup | None:
    counts = {
        result: exposition.value(f"warmup_{counter}_total", module=name)
        for result, counter in _WARMUP_COUNTERS.items()
    }
    if all(count is None for count in counts.values()):
        return None
    result = next((result for result, count in counts.items() if count), WarmupResult.PENDING)
    durations = exposition.histogram("warmup_duration_seconds", module=name)
    return Warmup(
        result,
        durations.count if durations else 0,
        durations.sum if durations and durations.count else None,
    )


def _gpus(exposition: Exposition) -> Iterable[GpuMetrics]:
    names = [f"moshi_gpu_{what}" for what in (
        "memory_used_bytes", "memory_total_bytes", "utilization_ratio", "power_watts",
        "temperature_celsius",
    )]  # fmt: skip
    cards = {frozenset(labels.items()) for name in names for labels in exposition.labels(name)}
    for labels in sorted(map(dict, cards), key=lambda labels: labels.get("device", "")):
        used, total, utilization, power, temperature = (
            exposition.value(name, **labels) for name in names
        )
        yield GpuMetrics(
            device=labels.get("device", "?"),
            name=labels.get("name") or None,
            uuid=labels.get("uuid") or None,
            memory_used_bytes=used,
            memory_total_bytes=total,
            utilization_ratio=utilization,
            power_watts=power,
            temperature_celsius=temperature,
        )


def _switch(value: float | None) -> bool | None:
    return None if value is None else value != 0


def _increases(now: Counts, before: Counts) -> dict[str, float]:
    return {key: increase(value, before.get(key)) or 0.0 for key, value in now.items()}
