"""Is there a lane for the next stream, and what is the server doing?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.kit import GREEN, RED, YELLOW, AnyPanel, Query, Row, dashboard_of, graph, stat_of
from dashboards.queries import SERIES, increase, of_instance, of_module, or_zero, rate
from moshi_ctl.protocol import FRAME_S

_USED = of_module("moshi_lanes_used")
_LANES = of_module("moshi_lanes")
_FRAMES = rate(of_module("moshi_frames_total"))


def capacity() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "moshi-capacity",
        "capacity",
        "Lanes, streams in real time, sessions and refusals, and what the process takes.",
        [
            Row(
                "Now",
                [
                    stat_of(
                        "Free lanes",
                        "Streams that could start now, over all chosen modules.",
                        "short",
                        f"sum({_LANES}) - sum({_USED})",
                        levels={0: RED, 1: GREEN},
                    ),
                    stat_of(
                        "Utilisation",
                        "Lanes with a session, of those offered.",
                        "percentunit",
                        f"sum({_USED}) / sum({_LANES})",
                        levels={0.8: YELLOW, 1: RED},
                        decimals=0,
                    ),
                    stat_of(
                        "Streams in real time",
                        "Seconds of audio processed in a second. A live stream counts 1, a file as "
                        "much as it runs ahead of real time.",
                        "short",
                        f"sum({_FRAMES}) * {FRAME_S}",
                        decimals=1,
                    ),
                    stat_of(
                        "Sessions per minute",
                        "Streams and files that got a lane.",
                        "short",
                        f"sum({rate(of_module('moshi_sessions_total'))}) * 60",
                        decimals=1,
                    ),
                    stat_of(
                        "Refused as full",
                        "Connections and requests that found no free lane, in the time shown.",
                        "short",
                        "sum("
                        + increase(
                            of_module("moshi_refusals_total", 'reason="full"'), window="$__range"
                        )
                        + ")",
                        levels={1: RED},
                        decimals=0,
                    ),
                    stat_of(
                        "Workers that answer",
                        "Workers that Prometheus could scrape.",
                        "short",
                        or_zero(f"sum({of_instance('up')})"),
                        levels={0: RED, 1: GREEN},
                    ),
                ],
            ),
            Row(
                "Lanes",
                [
                    graph(
                        "Lanes",
                        "Lanes with a session; dashed, the lanes offered. A worker may offer fewer "
                        "than its configuration asks for.",
                        "short",
                        Query(_USED, f"{SERIES} used"),
                        Query(_LANES, f"{SERIES} offered", dashed="/ offered$/"),
                    ),
                    graph(
                        "Free lanes",
                        "At 0 the next stream is refused.",
                        "short",
                        f"{_LANES} - {_USED}",
                    ),
                    graph(
                        "Utilisation",
                        "Lanes with a session, of those offered.",
                        "percentunit",
                        f"{_USED} / {_LANES}",
                        maximum=1,
                        levels={1: RED},
                    ),
                ],
            ),
            Row(
                "Keys",
                [
                    graph(
                        "Open sessions by key",
                        "By the name that a key was given, or its place in the list.",
                        "short",
                        Query(
                            f"sum by (key) ({of_instance('moshi_key_sessions_open')})", "{{key}}"
                        ),
                        stacked=True,
                        width=12,
                    ),
                    graph(
                        "Sessions per minute by key",
                        "Streams and files that began.",
                        "short",
                        Query(
                            f"sum by (key) ({rate(of_instance('moshi_key_sessions_total'))}) * 60",
                            "{{key}}",
                        ),
                        stacked=True,
                        width=12,
                    ),
                ],
            ),
            Row(
                "Work",
                [
                    graph(
                        "Frames per second",
                        "Frames of 80 ms of audio, over all lanes: 12.5 for each live stream.",
                        "short",
                        _FRAMES,
                    ),
                    graph(
                        "Streams in real time",
                        "Seconds of audio processed in a second; dashed, lanes with a session. "
                        "Below it for long: streams are silent, or fall behind.",
                        "short",
                        Query(f"{_FRAMES} * {FRAME_S}", f"{SERIES} in real time"),
                        Query(_USED, f"{SERIES} lanes used", dashed="/ lanes used$/"),
                    ),
                    graph(
                        "Received and sent",
                        "Payload of messages, request and response bodies.",
                        "Bps",
                        Query(rate(of_module("moshi_received_bytes_total")), f"{SERIES} received"),
                        Query(rate(of_module("moshi_sent_bytes_total")), f"{SERIES} sent"),
                    ),
                ],
            ),
            Row(
                "Sessions",
                [
                    graph(
                        "Sessions started",
                        "Per minute: streams (WebSocket) and files (POST) that got a lane.",
                        "short",
                        Query(
                            f"sum by (kind) ({rate(of_module('moshi_sessions_total'))}) * 60",
                            "{{kind}}",
                        ),
                        stacked=True,
                    ),
                    graph(
                        "Sessions ended",
                        "Per minute, by how they ended.",
                        "short",
                        Query(
                            f"sum by (end) ({rate(of_module('moshi_sessions_ended_total'))}) * 60",
                            "{{end}}",
                        ),
                        stacked=True,
                    ),
                    graph(
                        "Refusals",
                        "Connections and requests per minute that got no lane, by reason.",
                        "short",
                        Query(
                            f"sum by (reason) ({rate(of_module('moshi_refusals_total'))}) * 60",
                            "{{reason}}",
                        ),
                        stacked=True,
                    ),
                ],
            ),
            Row("Process", _process()),
        ],
    )


def _process() -> list[AnyPanel]:
    of_process = "{{instance}}"
    return [
        graph(
            "Memory",
            "Resident memory of the worker, its mapped files included.",
            "bytes",
            Query(of_instance("process_resident_memory_bytes"), of_process),
            width=6,
        ),
        graph(
            "CPU",
            "Cores in use.",
            "short",
            Query(rate(of_instance("process_cpu_seconds_total")), of_process),
            width=6,
        ),
        graph(
            "Open files",
            "File descriptors, of those allowed. Every connection takes one.",
            "percentunit",
            Query(
                f"{of_instance('process_open_fds')} / {of_instance('process_max_fds')}", of_process
            ),
            levels={0.8: RED},
            width=6,
        ),
        graph(
            "Threads",
            "Threads of the worker.",
            "short",
            Query(of_instance("process_threads"), of_process),
            width=6,
        ),
    ]
