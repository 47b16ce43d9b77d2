"""What goes wrong, where, and since when?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.kit import (
    GREEN,
    RED,
    YELLOW,
    Query,
    Row,
    dashboard_of,
    graph,
    stat_of,
    timeline,
)
from dashboards.queries import increase, of_instance, of_module, or_zero, rate

_ALERTS = of_instance("ALERTS", 'alertname=~"Moshi.+"', 'alertstate="firing"')
_BAD_ENDS = of_module("moshi_sessions_ended_total", 'end!~"completed|shutdown"')
_ENDS = of_module("moshi_sessions_ended_total")
_UP_OR_DOWN = {1: ("up", GREEN), 0: ("down", RED)}


def errors() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "moshi-errors",
        "errors",
        "Alerts, workers that are gone, sessions that ended badly, refusals and log messages.",
        [
            Row(
                "Now",
                [
                    stat_of(
                        "Alerts",
                        "Rules that fire; deploy/README.md says what to do.",
                        "short",
                        or_zero(f"count({_ALERTS})"),
                        levels={1: RED},
                    ),
                    stat_of(
                        "Workers down",
                        "Workers that Prometheus could not scrape.",
                        "short",
                        or_zero(f"count({of_instance('up')} == 0)"),
                        levels={1: RED},
                    ),
                    stat_of(
                        "Model loops dead",
                        "Models that failed in a worker that still answers; it ends within "
                        "seconds and is then down.",
                        "short",
                        or_zero(f"count({of_module('moshi_model_loop_alive')} == 0)"),
                        levels={1: RED},
                    ),
                    stat_of(
                        "Sessions that ended badly",
                        "In the time shown: neither completed nor ended by a shutdown.",
                        "short",
                        or_zero(f"sum({increase(_BAD_ENDS, window='$__range')})"),
                        levels={1: YELLOW},
                        decimals=0,
                    ),
                    stat_of(
                        "Errors logged",
                        "In the time shown.",
                        "short",
                        "sum("
                        + increase(
                            of_instance("moshi_log_messages_total", 'level="error"'),
                            window="$__range",
                        )
                        + ")",
                        levels={1: RED},
                        decimals=0,
                    ),
                    stat_of(
                        "Log lines dropped",
                        "In the time shown: the disk is full or read-only, or too slow.",
                        "short",
                        "sum("
                        + increase(of_instance("moshi_log_lines_dropped_total"), window="$__range")
                        + ")",
                        levels={1: RED},
                        decimals=0,
                    ),
                ],
            ),
            Row(
                "State",
                [
                    timeline(
                        "Workers",
                        "Whether Prometheus could scrape them.",
                        Query(of_instance("up"), "{{instance}}"),
                        _UP_OR_DOWN,
                        width=6,
                    ),
                    timeline(
                        "Model loops",
                        "Whether each module's model runs. A gap: its worker does not answer.",
                        Query(of_module("moshi_model_loop_alive")),
                        {1: ("alive", GREEN), 0: ("dead", RED)},
                        width=6,
                    ),
                    timeline(
                        "Overload",
                        "Modules that let nobody in, because streams lag behind.",
                        Query(of_module("moshi_overloaded")),
                        {0: ("in time", GREEN), 1: ("overloaded", RED)},
                        width=6,
                    ),
                    timeline(
                        "Alerts",
                        "Rules that fire, and since when; empty while all is well.",
                        Query(
                            f"max by (alertname, instance, module) ({_ALERTS})",
                            "{{alertname}} {{instance}} {{module}}",
                        ),
                        {1: ("firing", RED)},
                        width=6,
                    ),
                ],
            ),
            Row(
                "Sessions",
                [
                    graph(
                        "Ended badly",
                        "Per minute. lost: the connection broke; idle: silent for too long; "
                        "not_reading: takes no messages; invalid, bad_audio: sent what cannot be "
                        "processed; bad_output, model_failed: our fault.",
                        "short",
                        Query(f"sum by (end) ({rate(_BAD_ENDS)}) * 60", "{{end}}"),
                        stacked=True,
                    ),
                    graph(
                        "Share that ended badly",
                        "Of all sessions that ended.",
                        "percentunit",
                        "sum by (job, instance, module) ("
                        + rate(_BAD_ENDS)
                        + ") / (sum by (job, instance, module) ("
                        + rate(_ENDS)
                        + ") > 0)",
                        maximum=1,
                    ),
                    graph(
                        "Refusals",
                        "Per minute. unauthorized: no or a wrong key; full: no free lane; "
                        "overloaded: streams lag behind; too_many: sessions of a key; busy: too "
                        "many files at once; unavailable: a model is dead; bad_request, "
                        "too_large, broken_off, timeout, bad_audio: the request.",
                        "short",
                        Query(
                            f"sum by (reason) ({rate(of_module('moshi_refusals_total'))}) * 60",
                            "{{reason}}",
                        ),
                        stacked=True,
                    ),
                ],
            ),
            Row(
                "Connections",
                [
                    graph(
                        "Connections",
                        "Open, those without a session included.",
                        "short",
                        Query(of_instance("moshi_connections"), "{{instance}}"),
                        width=12,
                    ),
                    graph(
                        "Dropped before their first request",
                        "Per minute. connections, address: more than there may be; handshakes, "
                        "timeout: too slow to say what they want; tls: no TLS of ours.",
                        "short",
                        Query(
                            "sum by (reason) ("
                            + rate(of_instance("moshi_connections_dropped_total"))
                            + ") * 60",
                            "{{reason}}",
                        ),
                        stacked=True,
                        width=12,
                    ),
                ],
            ),
            Row(
                "Logs and restarts",
                [
                    graph(
                        "Log messages",
                        "Per minute, by level.",
                        "short",
                        Query(
                            "sum by (level) ("
                            + rate(of_instance("moshi_log_messages_total"))
                            + ") * 60",
                            "{{level}}",
                        ),
                    ),
                    graph(
                        "Log lines dropped",
                        "Per minute: lines that could not be written to the log file.",
                        "short",
                        Query(
                            rate(of_instance("moshi_log_lines_dropped_total")) + " * 60",
                            "{{instance}}",
                        ),
                    ),
                    graph(
                        "Restarts",
                        "Starts within the last 15 minutes after the first.",
                        "short",
                        Query(
                            f"changes({of_instance('process_start_time_seconds')}[15m])",
                            "{{instance}}",
                        ),
                        levels={3: RED},
                    ),
                ],
            ),
        ],
    )
