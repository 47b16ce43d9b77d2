#!/usr/bin/env python3
"""Step time and memory of our engine beside the published `moshi` crate, in one run.

Random weights in the shape of Kyutai's STT 1B, f32, on the CPU. Every measurement is a process of
its own; the two engines take turns, and who goes first changes with every repeat. Writes
`results/engine_step.md` and `results/engine_step.json`; exits with 1 where a limit is missed.

Standard library only. Needs a Rust toolchain, 3 GB of disk for the weights and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measuring import (
    RESULTS,
    Bench,
    Case,
    Verdict,
    cache,
    command_line,
    gigabytes,
    limits_table,
    machine_line,
    table,
    write_results,
)

ENGINES = ("ours", "reference")

# The limits the project has set itself.
MOST_TIME_OF_REFERENCE = 1.0
MOST_TIME_OF_ONE_LANE = 1.2
MOST_PEAK_OF_FINAL = 1.1


class Plan:
    """Which cases are measured, and what their results say."""

    def __init__(self, lanes: list[int], warmup: int, steps: int) -> None:
        self.full = {n: [Case(engine, n, n, warmup, steps) for engine in ENGINES] for n in lanes}
        self.idle = Case("ours", 64, 1, warmup, steps)
        # It takes seconds a step: 64 lanes are computed whoever has audio.
        self.reference_idle = Case("reference", 64, 1, 1, 3)
        # The reference attends to its whole ring from the first step on; ours does so only when a
        # lane has filled it, 750 frames later.
        self.filled = [
            Case("ours", n, n, warmup, steps, context="full")
            for n in sorted({min(lanes), max(lanes)})
        ]

    def run(self, bench: Bench, repeats: int) -> None:
        """Runs everything; the engines take turns."""
        for repeat in range(repeats):
            for n, cases in self.full.items():
                for case in cases if repeat % 2 == 0 else reversed(cases):
                    bench.run(case)
                if n == 1:
                    bench.run(self.idle)
        bench.run(self.reference_idle)
        for case in self.filled:
            bench.run(case)

    def verdicts(self, bench: Bench) -> list[Verdict]:
        """What was promised, and what came out."""
        of = bench.measured
        verdicts = []
        for n, (ours, reference) in self.full.items():
            ratio = of[ours].median() / of[reference].median()
            what = f"lanes: {n}, step time, ours / reference"
            verdicts.append(Verdict(what, ratio, MOST_TIME_OF_REFERENCE))
        if 1 in self.full:
            ratio = of[self.idle].quietest() / of[self.full[1][0]].quietest()
            verdicts.append(Verdict("1 of 64 lanes / 1 of 1, ours", ratio, MOST_TIME_OF_ONE_LANE))
        for n, (ours, _) in self.full.items():
            peak = of[ours].highest("loaded", "peak_resident_bytes")
            ratio = peak / of[ours].highest("end", "resident_bytes")
            what = f"lanes: {n}, peak while loading / final, ours"
            verdicts.append(Verdict(what, ratio, MOST_PEAK_OF_FINAL))
        return verdicts

    def report(self, bench: Bench, command: str) -> str:
        """The results for people."""
        of = bench.measured
        times = []
        memory = []
        for n, (ours, reference) in self.full.items():
            ratio = of[ours].median() / of[reference].median()
            for case in (ours, reference):
                cells = [str(n), case.engine, of[case].spread(), f"{of[case].percentile(95):.0f}"]
                times.append([*cells, of[case].parts(), f"{ratio:.2f}" if case == ours else ""])
                sizes = [
                    of[case].highest(moment, what)
                    for moment, what in (
                        ("loaded", "peak_resident_bytes"),
                        ("end", "peak_resident_bytes"),
                        ("end", "resident_bytes"),
                    )
                ]
                cells = [str(n), case.engine, f"{of[case].load_s():.1f}", *map(gigabytes, sizes)]
                memory.append([*cells, f"{sizes[0] / sizes[2]:.2f}"])
        idle = []
        one = {case.engine: case for case in self.full.get(1, [])}
        for case in (self.idle, self.reference_idle):
            alone = of[one[case.engine]].quietest() if one else float("nan")
            times_one = f"{of[case].quietest() / alone:.2f}"
            idle.append([case.engine, f"{alone:.0f}", f"{of[case].quietest():.0f}", times_one])
        filled = [[str(c.lanes), of[c].spread(), of[c].parts()] for c in self.filled]
        memory_head = ["lanes", "engine", "load s", "peak loading", "peak", "final", "ratio"]
        first = self.full[next(iter(self.full))][0]
        repeats = len(of[first].runs)
        return f"""# Step time and memory, ours beside the reference

Written by `benchmarks/engine_step.py`; to repeat: `{command}`.

Random weights in the shape of STT 1B (2,048 wide, 16 layers, context 750, 32 codebooks) and Mimi,
f32 on the CPU. The reference is the crate `moshi` 0.6.4 (candle 0.9) as its server drives it:
batched, with a mask, also at one lane. Each engine alone in a process of its own, in turns,
{repeats} repeats of {first.steps} steps after {first.warmup} to warm up, bundled speech in every
lane. Times in ms: the median of the repeats' medians (lowest to highest); a step has 80 ms in real
time.

{machine_line(bench)}

## Limits

{limits_table(self.verdicts(bench))}

## All lanes active

{table(["lanes", "engine", "step", "p95", "codec + LM", "ratio"], times)}

## One active lane of 64

{table(["engine", "1 of 1", "1 of 64", "ratio"], idle)}

The quietest run of each: one lane is bound by memory bandwidth, which neighbours share. The
reference was given fewer steps here ({self.reference_idle.steps}).

## With a full context

Ours when every lane attends to 750 frames, as after a minute of audio. The reference
attends to its whole ring, masked, from its first step on, so its times above hold here as well.

{table(["lanes", "step", "codec + LM"], filled)}

## Memory

GB (10⁹ bytes) of resident memory as the kernel counts it, mapped file pages included; the
ratio is the peak while loading to the final size.

{table(memory_head, memory)}
"""


def main() -> int:
    """Measures, writes the results, says whether the limits were kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    bench = Bench(cache())
    plan = Plan(arguments.lanes, arguments.warmup, arguments.steps)
    plan.run(bench, arguments.repeats)

    command = command_line()
    report = plan.report(bench, command)
    write_results(arguments.results, "engine_step", report, bench.raw(command))
    print(f"\n{report}")
    return 0 if all(verdict.kept for verdict in plan.verdicts(bench)) else 1


if __name__ == "__main__":
    sys.exit(main())
