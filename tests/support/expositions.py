"""What `/metrics` answers, made up: a server that has done something, and others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

START_UNIX_S = 1_790_000_000
STEP_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.065, 0.07, 0.075, 0.08, 0.085,
    0.09, 0.1, 0.12, 0.16, 0.24, 0.5, 1, 2.5,
)  # fmt: skip
LATENCY_BOUNDS_S = (
    0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10,
)  # fmt: skip
REASONS = (
    "unauthorized", "full", "overloaded", "too_many", "busy", "unavailable", "bad_request",
    "too_large", "broken_off", "timeout", "bad_audio",
)  # fmt: skip


def line(name: str, value: float | str, /, **labels: str) -> str:
    said = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"{name}{{{said}}} {value}\n" if said else f"{name} {value}\n"


def histogram(name: str, bounds: Sequence[float], values: Sequence[float], /, **labels: str) -> str:
    """The histogram of these values, as a Prometheus client counts them."""
    lines = [f"# TYPE {name} histogram\n"]
    for bound in (*bounds, math.inf):
        at_most = sum(value <= bound for value in values)
        le = "+Inf" if math.isinf(bound) else f"{bound:g}"
        lines.append(line(f"{name}_bucket", at_most, **labels, le=le))
    lines.append(line(f"{name}_sum", math.fsum(values), **labels))
    lines.append(line(f"{name}_count", len(values), **labels))
    return "".join(lines)


@dataclass
class Module:
    """A module's state; None leaves a metric out."""

    name: str = "asr"
    device: str = "cuda:0"
    precision: str = "bf16"
    kv_precision: str = "bf16"
    path: str = "/api/asr-streaming"
    lanes: int = 64
    lanes_used: int = 12
    alive: int = 1
    overloaded: int = 0
    step_running_s: float = 0.0
    steps_s: Sequence[float] = ()
    frames: int = 0
    words: int = 0
    latencies_s: Sequence[float] = ()
    lag_s: float = 0.0
    backlog_s: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0
    refusals: Mapping[str, int] = field(default_factory=dict)
    sessions: Mapping[str, int] = field(default_factory=dict)
    ended: Mapping[tuple[str, str], int] = field(default_factory=dict)
    warmup: str | None = "success"
    warmup_s: float = 1.24

    def text(self) -> str:
        module = {"module": self.name}
        parts = [
            line("moshi_module_info", 1, **module, type="batched_asr", path=self.path,
                 device=self.device, precision=self.precision, kv_precision=self.kv_precision,
                 lanes=str(self.lanes)),
            line("moshi_lanes", self.lanes, **module),
            line("moshi_lanes_used", self.lanes_used, **module),
            line("moshi_model_loop_alive", self.alive, **module),
            line("moshi_overloaded", self.overloaded, **module),
            line("moshi_step_running_seconds", self.step_running_s, **module),
            histogram("moshi_step_duration_seconds", STEP_BOUNDS_S, self.steps_s, **module),
            line("moshi_deadline_misses_total", sum(s > 0.08 for s in self.steps_s), **module),
            line("moshi_frames_total", self.frames, **module),
            line("moshi_lag_seconds", self.lag_s, **module),
            line("moshi_backlog_seconds", self.backlog_s, **module),
            line("moshi_words_total", self.words, **module),
            histogram("moshi_word_latency_seconds", LATENCY_BOUNDS_S, self.latencies_s, **module),
            line("moshi_received_bytes_total", self.received_bytes, **module),
            line("moshi_sent_bytes_total", self.sent_bytes, **module),
        ]  # fmt: skip
        for reason in REASONS:
            count = self.refusals.get(reason, 0)
            parts.append(line("moshi_refusals_total", count, **module, reason=reason))
        for kind in ("stream", "file"):
            count = self.sessions.get(kind, 0)
            parts.append(line("moshi_sessions_total", count, **module, kind=kind))
        for (kind, end), count in self.ended.items():
            parts.append(line("moshi_sessions_ended_total", count, **module, kind=kind, end=end))
        if self.warmup is not None:
            parts += [
                line(f"warmup_{result}_total", int(result == self.warmup), **module)
                for result in ("success", "failure", "skipped")
            ]
            runs = [self.warmup_s] if self.warmup in ("success", "failure") else []
            parts.append(histogram("warmup_duration_seconds", (1, 5, 30), runs, **module))
        return "".join(parts)


GPU = {"device": "cuda:0", "name": "NVIDIA L4", "uuid": "GPU-0a1b"}


def gpu(**labels: str) -> str:
    card = {**GPU, **labels}
    return (
        line("moshi_gpu_memory_used_bytes", 6 * 2**30, **card)
        + line("moshi_gpu_memory_total_bytes", 24 * 2**30, **card)
        + line("moshi_gpu_utilization_ratio", 0.43, **card)
        + line("moshi_gpu_power_watts", 68.4, **card)
        + line("moshi_gpu_temperature_celsius", 61, **card)
    )


def server(*modules: Module, start_unix_s: float = START_UNIX_S, cpu_s: float = 4321.0,
           errors: int = 0, lines_dropped: int = 0, ready: int = 1) -> str:  # fmt: skip
    """All that a server of ours says, without a card."""
    return "".join(
        (
            "# HELP moshi_build_info 1; the labels say what was built.\n",
            line("moshi_build_info", 1, version="0.2.0", git_hash="25fb8a160e55b6b5dc53",
                 rustc_version="1.95.0", target="x86_64-unknown-linux-gnu"),
            line("moshi_ready", ready),
            line("moshi_connections", 12),
            line("moshi_connections_dropped_total", 3, reason="timeout"),
            line("moshi_key_sessions_open", 12, key="web"),
            line("moshi_key_sessions_total", 40, key="web"),
            *(module.text() for module in modules),
            line("moshi_log_messages_total", errors, level="error"),
            line("moshi_log_messages_total", 12, level="info"),
            line("moshi_log_lines_dropped_total", lines_dropped),
            "# TYPE process_cpu_seconds_total counter\n",
            line("process_cpu_seconds_total", cpu_s),
            line("process_resident_memory_bytes", 2 * 2**30),
            line("process_virtual_memory_bytes", 8 * 2**30),
            line("process_open_fds", 34),
            line("process_max_fds", 1024),
            line("process_threads", 12),
            line("process_start_time_seconds", start_unix_s),
            kyutai([step_s for module in modules for step_s in module.steps_s]),
        )
    )  # fmt: skip


def kyutai(steps_s: Sequence[float], *, connections: int = 7, open_channels: int = 3) -> str:
    """All that Kyutai's server says of speech to text."""
    return (
        "# TYPE asr_connect counter\n"
        + line("asr_connect", connections, handler="all")
        + "# TYPE asr_open_channels gauge\n"
        + line("asr_open_channels", open_channels, handler="all")
        + histogram("asr_model_step_duration",
                    (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08), steps_s)
        + histogram("asr_connection_num_steps", (2, 25, 125, 250, 500), [125, 375])
    )  # fmt: skip
