"""How full, busy and hot are the cards?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.kit import GREEN, RED, YELLOW, Query, Row, dashboard_of, graph, stat_of, table_of
from dashboards.queries import nameless, of_instance

_USED = of_instance("moshi_gpu_memory_used_bytes")
_TOTAL = of_instance("moshi_gpu_memory_total_bytes")
_BUSY = of_instance("moshi_gpu_utilization_ratio")
_POWER = of_instance("moshi_gpu_power_watts")
_TEMPERATURE = of_instance("moshi_gpu_temperature_celsius")
MIB = 1024 * 1024
_CARD = "{{instance}} {{device}} {{name}}"


def gpu() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "moshi-gpu",
        "GPU",
        "The cards that workers see, as the driver describes them: all that runs on a card counts, "
        "not only the worker. Empty where no worker sees a card, or its driver does not tell.",
        [
            Row(
                "Now",
                [
                    stat_of(
                        "Fullest card",
                        "Share of its memory that is used.",
                        "percentunit",
                        f"max({_USED} / {_TOTAL})",
                        decimals=0,
                    ),
                    stat_of(
                        "Least memory free",
                        "Of the card that has least left. Lanes are sized to leave 512 MiB.",
                        "bytes",
                        f"min({_TOTAL} - {_USED})",
                        levels={0: RED, 256 * MIB: YELLOW, 512 * MIB: GREEN},
                    ),
                    stat_of(
                        "Busiest card",
                        "Share of time in which something ran on it.",
                        "percentunit",
                        f"max({_BUSY})",
                        decimals=0,
                    ),
                    stat_of(
                        "Power",
                        "Of all cards.",
                        "watt",
                        f"sum({_POWER})",
                        decimals=0,
                    ),
                    stat_of(
                        "Hottest card",
                        "Most cards slow down somewhere between 83 and 95 degrees.",
                        "celsius",
                        f"max({_TEMPERATURE})",
                        levels={80: YELLOW, 90: RED},
                        decimals=0,
                    ),
                    stat_of(
                        "Cards",
                        "Cards that workers see; one that several workers see counts for each.",
                        "short",
                        f"count({_TOTAL})",
                    ),
                ],
            ),
            Row(
                "Memory",
                [
                    graph(
                        "Memory",
                        "Used by all processes and the driver; dashed, what the card has.",
                        "bytes",
                        Query(_USED, f"{_CARD} used"),
                        Query(_TOTAL, f"{_CARD} total", dashed="/ total$/"),
                        width=12,
                    ),
                    graph(
                        "Share of memory used",
                        "A worker fills a card on purpose, up to its reserve. What grows later is "
                        "somebody else.",
                        "percentunit",
                        Query(f"{_USED} / {_TOTAL}", _CARD),
                        maximum=1,
                        width=12,
                    ),
                ],
            ),
            Row(
                "Load",
                [
                    graph(
                        "Utilisation",
                        "Share of time in which something ran; says nothing about how much of the "
                        "card it used.",
                        "percentunit",
                        Query(_BUSY, _CARD),
                        maximum=1,
                    ),
                    graph("Power", "What each card draws.", "watt", Query(_POWER, _CARD)),
                    graph(
                        "Temperature",
                        "Of each card's chip.",
                        "celsius",
                        Query(_TEMPERATURE, _CARD),
                        levels={90: RED},
                    ),
                ],
            ),
            Row(
                "Cards",
                [
                    table_of(
                        "Cards",
                        "One line per card and worker.",
                        {"memory": nameless(_TOTAL), "used": nameless(_USED)},
                        units={"memory": "bytes", "used": "bytes"},
                        columns=["job", "instance", "device", "name", "uuid"],
                    ),
                ],
            ),
        ],
    )
