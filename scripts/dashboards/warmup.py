"""What runs where since when, and did it warm up?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.kit import GREEN, RED, YELLOW, Query, Row, dashboard_of, graph, stat_of, table_of
from dashboards.queries import nameless, of_instance, of_module, or_zero

_UPTIME = f"time() - {of_instance('process_start_time_seconds')}"
_DURATION = (
    f"{of_module('warmup_duration_seconds_sum')} / "
    f"({of_module('warmup_duration_seconds_count')} > 0)"
)
_NEVER_READY = (
    f"({of_instance('up')} == 0) unless on (job, instance) "
    f"present_over_time({of_instance('moshi_ready')}[1h])"
)


def warmup() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "moshi-warmup",
        "warm-up",
        "Starts and warm-ups, what each module runs on, and versions. A worker whose warm-up fails "
        "ends without ever being scraped: look at starts that do not complete, and at its log.",
        [
            Row(
                "Now",
                [
                    stat_of(
                        "Ready",
                        "Workers whose /health/ready answers 200.",
                        "short",
                        or_zero(f"sum({of_instance('moshi_ready')})"),
                        levels={0: RED, 1: GREEN},
                    ),
                    stat_of(
                        "Starts not completed",
                        "Workers that do not answer and did not within the last hour: loading or "
                        "warm-up fails, or still runs; or they were stopped long ago.",
                        "short",
                        or_zero(f"count({_NEVER_READY})"),
                        levels={1: RED},
                    ),
                    stat_of(
                        "Warmed up",
                        "Modules that warmed up before their worker was ready.",
                        "short",
                        f"sum({of_module('warmup_success_total')})",
                    ),
                    stat_of(
                        "Not warmed up",
                        "Modules whose warm-up was switched off: their first steps are slow.",
                        "short",
                        f"sum({of_module('warmup_skipped_total')})",
                        levels={1: YELLOW},
                    ),
                    stat_of(
                        "Longest warm-up",
                        "Of the modules that run now.",
                        "s",
                        f"max({_DURATION})",
                    ),
                    stat_of(
                        "Last start",
                        "How long the youngest worker has been running.",
                        "s",
                        f"min({_UPTIME})",
                    ),
                ],
            ),
            Row(
                "Modules",
                [
                    table_of(
                        "Modules",
                        "What each module runs on, and how many lanes it offers there.",
                        {"": of_module("moshi_module_info")},
                        units={},
                        columns=[
                            *("job", "instance", "module", "type", "path"),
                            *("device", "precision", "kv_precision", "lanes"),
                        ],
                    ),
                    table_of(
                        "Warm-ups",
                        "One line per module. Nothing can have failed where a worker serves: it "
                        "would have ended.",
                        {
                            "duration": _DURATION,
                            "succeeded": nameless(of_module("warmup_success_total")),
                            "failed": nameless(of_module("warmup_failure_total")),
                            "skipped": nameless(of_module("warmup_skipped_total")),
                        },
                        units={"duration": "s"},
                        columns=["job", "instance", "module"],
                        width=12,
                    ),
                    table_of(
                        "Builds",
                        "Versions of the workers that answer.",
                        {"": of_instance("moshi_build_info")},
                        units={},
                        columns=["job", "instance", "version", "git_hash", "target"],
                        width=12,
                    ),
                ],
            ),
            Row(
                "Over time",
                [
                    graph(
                        "Warm-up duration",
                        "Of the worker's own start: changes with a restart.",
                        "s",
                        _DURATION,
                        width=12,
                    ),
                    graph(
                        "Time since start",
                        "Falls to zero with every restart.",
                        "s",
                        Query(_UPTIME, "{{instance}}"),
                        width=12,
                    ),
                ],
            ),
        ],
    )
