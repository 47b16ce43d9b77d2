"""Metrics as JSON: every key is always there, and what the server does not offer is null.

Keys are the metrics' names without `moshi_`, with their units; labels become nested objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from moshi_ctl.monitoring.histograms import Histogram
from moshi_ctl.monitoring.scrapes import Outage, Scrape
from moshi_ctl.monitoring.server_metrics import Counts, GpuMetrics, ModuleMetrics, Warmup

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
"""What is estimated of each histogram; see `Histogram.quantile`."""

Json = dict[str, Any]


def of_scrape(scrape: Scrape) -> Json:
    """What a server said; `interval` is what was added since the previous scrape, if any."""
    metrics = scrape.metrics
    process, kyutai = metrics.process, metrics.kyutai
    return {
        "url": scrape.url,
        "time_unix_seconds": round(scrape.time_unix_s, 3),
        "error": None,
        "ready": metrics.ready,
        "build_info": {
            key: metrics.build.get(key)
            for key in ("version", "git_hash", "rustc_version", "target")
        },
        "modules": {module.name: _module(module) for module in metrics.modules},
        "gpus": [_gpu(gpu) for gpu in metrics.gpus],
        "process": {
            "cpu_seconds_total": number(process.cpu_s),
            "resident_memory_bytes": number(process.resident_memory_bytes),
            "virtual_memory_bytes": number(process.virtual_memory_bytes),
            "open_fds": number(process.open_fds),
            "max_fds": number(process.max_fds),
            "threads": number(process.threads),
            "start_time_seconds": number(process.start_time_unix_s),
        },
        "log_messages_total": _counts(metrics.log_messages),
        "log_lines_dropped_total": number(metrics.log_lines_dropped),
        "asr_connect": number(kyutai.connections),
        "asr_open_channels": number(kyutai.open_channels),
        "asr_model_step_duration": histogram(kyutai.steps),
        "asr_connection_num_steps": histogram(kyutai.session_steps),
        "interval": _interval(scrape),
    }


def of_outage(outage: Outage, time_unix_s: float) -> Json:
    """A server that did not answer: the same keys as of a scrape, most of them null."""
    unknown: Json = dict.fromkeys(
        (
            "ready", "build_info", "modules", "gpus", "process", "log_messages_total",
            "log_lines_dropped_total", "asr_connect", "asr_open_channels",
            "asr_model_step_duration", "asr_connection_num_steps", "interval",
        )
    )  # fmt: skip
    error = {
        "message": outage.reason,
        "hint": outage.hint,
        "lasts_seconds": round(outage.lasts_s, 3),
    }
    head = {"url": outage.url, "time_unix_seconds": round(time_unix_s, 3), "error": error}
    return {**head, **unknown}


def number(value: float | None) -> int | float | None:
    """A number as JSON can say it: whole ones without a point, and no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else value


def histogram(values: Histogram | None) -> Json | None:
    """A histogram with its quantiles; in `buckets`, `le` is null for the bucket without a bound."""
    if values is None:
        return None
    return {
        "count": number(values.count),
        "sum": number(values.sum),
        "mean": number(values.mean),
        **{name: number(values.quantile(q)) for name, q in QUANTILES.items()},
        "buckets": [
            {"le": number(bound), "count": number(cumulative)}
            for bound, cumulative in zip(values.bounds, values.cumulative, strict=True)
        ],
    }


def warmup(done: Warmup | None) -> Json:
    """How a warm-up went; `result` is null where the server says nothing of it."""
    return {
        "result": done.result.value if done else None,
        "runs": number(done.runs) if done else None,
        "duration_seconds": number(done.duration_s) if done else None,
    }


def _module(module: ModuleMetrics) -> Json:
    return {
        "type": module.type,
        "path": module.path,
        "device": module.device,
        "precision": module.precision,
        "kv_precision": module.kv_precision,
        "warmup": warmup(module.warmup),
        "lanes": number(module.lanes),
        "lanes_used": number(module.lanes_used),
        "model_loop_alive": module.loop_alive,
        "overloaded": module.overloaded,
        "step_running_seconds": number(module.step_running_s),
        "step_duration_seconds": histogram(module.steps),
        "deadline_misses_total": number(module.deadline_misses),
        "deadline_miss_ratio": number(module.deadline_miss_ratio),
        "frames_total": number(module.frames),
        "lag_seconds": number(module.lag_s),
        "backlog_seconds": number(module.backlog_s),
        "words_total": number(module.words),
        "word_latency_seconds": histogram(module.word_latency),
        "received_bytes_total": number(module.received_bytes),
        "sent_bytes_total": number(module.sent_bytes),
        "refusals_total": _counts(module.refusals),
        "sessions_total": _counts(module.sessions),
        "sessions_ended_total": {
            kind: _counts(ends) for kind, ends in module.sessions_ended.items()
        },
    }


def _gpu(gpu: GpuMetrics) -> Json:
    return {
        "device": gpu.device,
        "name": gpu.name,
        "uuid": gpu.uuid,
        "memory_used_bytes": number(gpu.memory_used_bytes),
        "memory_total_bytes": number(gpu.memory_total_bytes),
        "utilization_ratio": number(gpu.utilization_ratio),
        "power_watts": number(gpu.power_watts),
        "temperature_celsius": number(gpu.temperature_celsius),
    }


def _interval(scrape: Scrape) -> Json | None:
    if scrape.interval is None or scrape.interval_s is None:
        return None
    seconds = scrape.interval_s
    return {
        "seconds": round(seconds, 3),
        "restarted": scrape.restarted,
        "process_cpu_cores": number(scrape.cpu_cores),
        "modules": {
            module.name: _module_in_interval(module, seconds) for module in scrape.interval.modules
        },
    }


def _module_in_interval(module: ModuleMetrics, seconds: float) -> Json:
    def per_second(amount: float | None) -> float | None:
        return None if amount is None or not seconds else round(amount / seconds, 6)

    return {
        "steps_per_second": per_second(module.steps.count if module.steps else None),
        "step_duration_seconds": histogram(module.steps),
        "deadline_misses": number(module.deadline_misses),
        "deadline_miss_ratio": number(module.deadline_miss_ratio),
        "frames_per_second": per_second(module.frames),
        "words_per_second": per_second(module.words),
        "word_latency_seconds": histogram(module.word_latency),
        "received_bytes_per_second": per_second(module.received_bytes),
        "sent_bytes_per_second": per_second(module.sent_bytes),
        "refusals": _counts(module.refusals),
        "sessions": _counts(module.sessions),
        "sessions_ended": {kind: _counts(ends) for kind, ends in module.sessions_ended.items()},
    }


def _counts(counts: Counts | Mapping[str, float]) -> Json:
    return {key: number(value) for key, value in counts.items()}
