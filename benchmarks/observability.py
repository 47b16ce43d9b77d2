#!/usr/bin/env python3
"""What metrics and log lines cost, as a share of a step of 64 lanes.

The calls that a step of 64 lanes makes to count and measure, a log line of a session, and a scrape
are timed in a process that does nothing else; beside them, in the same run, a step of 64 lanes of
our engine: random weights in the shape of Kyutai's STT 1B, q8, on the CPU, with empty contexts,
where steps are shortest. Writes `results/observability.md` and `results/observability.json`; exits
with 1 where the limit is missed.

Standard library only. Needs a Rust toolchain, 3 GB of disk for the weights and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from measuring import (
    FRAME_MS,
    RESULTS,
    Bench,
    Case,
    Verdict,
    build,
    cache,
    command_line,
    json_line,
    limits_table,
    machine_line,
    paragraph,
    table,
    write_results,
)

PROGRAM = "moshi-ctl-observability"
LANES = 64
MOST_OF_A_STEP = 0.01
# More than there will be: every session lasts ten seconds only and writes two lines, and three
# servers of metrics scrape every second.
LINES_PER_STEP = 2 * LANES / 10 * FRAME_MS / 1000
SCRAPES_PER_STEP = 3 * FRAME_MS / 1000


def percentile(values: list[int], percent: int) -> int:
    """What `percent` of 100 of the values do not exceed."""
    return sorted(values)[max(-(-len(values) * percent // 100), 1) - 1]


class Costs:
    """The costs that several runs measured, in nanoseconds."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []

    def median(self, what: str) -> float:
        """The median of the runs' medians."""
        return statistics.median(statistics.median(run[what]) for run in self.runs)

    def row(self, name: str, what: str, per_step: float) -> list[str]:
        """For a table, in microseconds."""
        medians = [statistics.median(run[what]) / 1000 for run in self.runs]
        high = statistics.median(percentile(run[what], 99) / 1000 for run in self.runs)
        return [
            name,
            f"{statistics.median(medians):.1f} ({min(medians):.1f} to {max(medians):.1f})",
            f"{high:.1f}",
            f"{per_step:.2f}",
            f"{statistics.median(medians) * per_step:.1f}",
        ]

    def per_step_ns(self) -> float:
        """What all of it takes of a step."""
        return (
            self.median("metrics_ns")
            + self.median("log_line_ns") * LINES_PER_STEP
            + self.median("scrape_ns") * SCRAPES_PER_STEP
        )


def report(costs: Costs, bench: Bench, case: Case, command: str) -> tuple[str, Verdict]:
    """The page, and whether the limit was kept."""
    step_ms = bench.measured[case].median()
    share = costs.per_step_ns() / 1e6 / step_ms
    verdict = Verdict(
        "share of a step of 64 lanes", share, MOST_OF_A_STEP, form=lambda value: f"{value:.4%}"
    )
    rows = [
        costs.row("metrics of a step", "metrics_ns", 1),
        costs.row("log line of a session", "log_line_ns", LINES_PER_STEP),
        costs.row("scrape", "scrape_ns", SCRAPES_PER_STEP),
    ]
    head = ("what", "µs: median (spread of runs)", "p99", "a step", "µs a step")
    parts = [
        "# Cost of metrics and logs",
        f"Written by `benchmarks/observability.py`; to repeat: `{command}`.",
        paragraph((__doc__ or "").split("\n\n")[1].split("Writes")[0]),
        paragraph(
            f"""A step of {LANES} lanes takes {bench.measured[case].spread()} ms here. Lines are
            counted as if every session lasted ten seconds, scrapes as if there were three every
            second; lines are written by a thread of their own, scrapes are made on others than the
            model's. The limit would hold for steps from
            {costs.per_step_ns() / 1e6 / MOST_OF_A_STEP:.1f} ms on."""
        ),
        machine_line(bench),
        table(head, rows),
        "## Limits",
        limits_table([verdict]),
    ]
    return "\n\n".join(parts) + "\n", verdict


def main() -> int:
    """Measures, writes the results, says whether the limit was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    program = str(build(PROGRAM)[PROGRAM])
    bench, costs = Bench(cache()), Costs()
    case = Case("ours", LANES, LANES, arguments.warmup, arguments.steps, precision="q8")
    for _ in range(arguments.repeats):
        costs.runs.append(json_line([program, str(LANES), "20000", "20000", "200"]))
        bench.run(case)

    command = command_line()
    page, verdict = report(costs, bench, case, command)
    raw = {
        **bench.raw(command),
        "medians_ns": [
            {
                what: statistics.median(run[what])
                for what in ("metrics_ns", "log_line_ns", "scrape_ns")
            }
            for run in costs.runs
        ],
    }
    write_results(arguments.results, "observability", page, raw)
    print(f"\n{page}")
    return 0 if verdict.kept else 1


if __name__ == "__main__":
    sys.exit(main())
