#!/usr/bin/env python3
"""Step time and memory of our engine beside the published `moshi` crate, in one run.

Random weights in the shape of Kyutai's STT 1B, f32, on the CPU. Every measurement is a process of
its own; the two engines take turns, and who goes first changes with every repeat. Writes
`results/engine_step.md` and `results/engine_step.json`; exits with 1 where a limit is missed.

Standard library only. Needs a Rust toolchain, 3 GB of disk for the weights and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUST = HERE.parent / "rust"
PROGRAM = "moshi-ctl-bench-step"
SHAPE = "stt-1b"
ENGINES = ("ours", "reference")
BYTES_PER_GB = 1e9

# The limits the project has set itself.
MOST_TIME_OF_REFERENCE = 1.0
MOST_TIME_OF_ONE_LANE = 1.2
MOST_PEAK_OF_FINAL = 1.1


@dataclass(frozen=True)
class Case:
    """One thing to measure: how many lanes there are, how many of them have audio."""

    engine: str
    lanes: int
    active: int
    warmup: int
    steps: int


@dataclass
class Measured:
    """What the runs of one case say together."""

    runs: list[dict[str, Any]] = field(default_factory=list)

    def medians(self, key: str) -> list[float]:
        """The median of each run, in milliseconds."""
        return [statistics.median(run[key]) for run in self.runs]

    def median(self, key: str = "step_ms") -> float:
        """The median of the runs' medians, in milliseconds."""
        return statistics.median(self.medians(key))

    def quietest(self) -> float:
        """The lowest of the runs' medians, in milliseconds: the run others disturbed least."""
        return min(self.medians("step_ms"))

    def p95(self) -> float:
        """The 95th percentile of all steps of all runs, in milliseconds."""
        steps = sorted(ms for run in self.runs for ms in run["step_ms"])
        return float(steps[min(len(steps) - 1, int(0.95 * len(steps)))])

    def highest(self, moment: str, what: str) -> int:
        """The highest value of `/proc/self/status` among the runs, in bytes."""
        return max(int(run[moment].get(what, 0)) for run in self.runs)

    def spread(self) -> str:
        """Median and spread of the runs' medians for a table."""
        medians = self.medians("step_ms")
        return f"{self.median():.0f} ({min(medians):.0f} to {max(medians):.0f})"

    def parts(self) -> str:
        """Codec and language model for a table."""
        return f"{self.median('codec_ms'):.0f} + {self.median('lm_ms'):.0f}"


class Bench:
    """Runs cases and keeps what they measured."""

    def __init__(self, program: Path, weights: Path) -> None:
        self.program = program
        self.weights = weights
        self.measured: dict[Case, Measured] = {}

    def command(self, mode: str) -> list[str]:
        """The measuring program for these weights."""
        return [str(self.program), mode, "--shape", SHAPE, "--folder", str(self.weights)]

    def write_weights(self) -> None:
        """Writes the random checkpoint, unless it is there."""
        if not all((self.weights / f"{name}.safetensors").exists() for name in ("lm", "codec")):
            subprocess.run(self.command("write"), check=True)  # noqa: S603

    def run(self, case: Case) -> None:
        """Measures `case` once more."""
        numbers = ("lanes", "active", "warmup", "steps")
        options = [text for name in numbers for text in (f"--{name}", str(getattr(case, name)))]
        command = [*self.command(case.engine), *options]
        others, started = -foreign_cpu_s(), time.monotonic()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        others += foreign_cpu_s()
        run = json.loads(done.stdout)
        run["other_cores"] = others / (time.monotonic() - started)
        self.measured.setdefault(case, Measured()).runs.append(run)
        step = statistics.median(run["step_ms"])
        print(
            f"{case.engine:9} {case.active} of {case.lanes} lanes, {case.warmup} steps in: "
            f"{step:.1f} ms a step",
            flush=True,
        )


def foreign_cpu_s() -> float:
    """Processor time spent so far by others than us and our finished children, in seconds."""
    if platform.system() != "Linux":
        return 0.0
    first_line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    ticks = [int(number) for number in first_line.split()[1:]]
    idle, guests = sum(ticks[3:5]), sum(ticks[8:10])
    busy = (sum(ticks) - idle - guests) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def build() -> Path:
    """Builds the measuring program and returns where it is."""
    cargo = os.environ.get("CARGO", "cargo")
    options = ["--release", "--locked", "-p", "moshi-ctl-reference", "--bin", PROGRAM]
    subprocess.run([cargo, "build", *options], cwd=RUST, check=True)  # noqa: S603
    target = Path(os.environ.get("CARGO_TARGET_DIR", RUST / "target"))
    return target / "release" / PROGRAM


def cache() -> Path:
    """Where the weights stay between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "moshi-ctl" / "bench" / SHAPE


def machine() -> dict[str, str]:
    """What a reader needs to know of this machine, and nothing that names it."""
    facts = {"system": f"{platform.system()} {platform.machine()}", "cores": str(os.cpu_count())}
    if platform.system() != "Linux":
        return facts
    cpu: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    wanted = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    has = cpu.get("flags", "").split()
    kib = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1])
    facts["cpu"] = cpu.get("model name", "unknown")
    facts["instructions"] = " ".join(flag for flag in wanted if flag in has)
    facts["memory"] = f"{kib * 1024 / BYTES_PER_GB:.0f} GB"
    return facts


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def gigabytes(size: int) -> str:
    """Bytes for a table."""
    return f"{size / BYTES_PER_GB:.2f}"


class Plan:
    """Which cases are measured, and what their results say."""

    def __init__(self, lanes: list[int], warmup: int, steps: int) -> None:
        self.full = {n: [Case(engine, n, n, warmup, steps) for engine in ENGINES] for n in lanes}
        self.idle = Case("ours", 64, 1, warmup, steps)
        # It takes seconds a step: 64 lanes are computed whoever has audio.
        self.reference_idle = Case("reference", 64, 1, 1, 3)
        # The reference attends to its whole ring from the first step on; ours does so only when a
        # lane has filled it, 750 frames later.
        self.filled = [Case("ours", n, n, 760, steps) for n in sorted({min(lanes), max(lanes)})]

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

    def verdicts(self, bench: Bench) -> list[tuple[str, float, float]]:
        """What was promised, what came out, what was the limit."""
        of = bench.measured
        verdicts = []
        for n, (ours, reference) in self.full.items():
            ratio = of[ours].median() / of[reference].median()
            verdicts.append(
                (f"lanes: {n}, step time, ours / reference", ratio, MOST_TIME_OF_REFERENCE)
            )
        if 1 in self.full:
            ratio = of[self.idle].quietest() / of[self.full[1][0]].quietest()
            verdicts.append(("1 of 64 lanes / 1 of 1, ours", ratio, MOST_TIME_OF_ONE_LANE))
        for n, (ours, _) in self.full.items():
            ratio = of[ours].highest("loaded", "VmHWM") / of[ours].highest("end", "VmRSS")
            verdicts.append(
                (f"lanes: {n}, peak while loading / final, ours", ratio, MOST_PEAK_OF_FINAL)
            )
        return verdicts

    def report(self, bench: Bench, command: str) -> str:
        """The results for people."""
        of = bench.measured
        times = []
        memory = []
        for n, (ours, reference) in self.full.items():
            ratio = of[ours].median() / of[reference].median()
            for case in (ours, reference):
                cells = [str(n), case.engine, of[case].spread(), f"{of[case].p95():.0f}"]
                times.append([*cells, of[case].parts(), f"{ratio:.2f}" if case == ours else ""])
                sizes = [
                    of[case].highest(moment, what)
                    for moment, what in (("loaded", "VmHWM"), ("end", "VmHWM"), ("end", "VmRSS"))
                ]
                load = statistics.median(run["load_s"] for run in of[case].runs)
                cells = [str(n), case.engine, f"{load:.1f}", *map(gigabytes, sizes)]
                memory.append([*cells, f"{sizes[0] / sizes[2]:.2f}"])
        idle = []
        one = {case.engine: case for case in self.full.get(1, [])}
        for case in (self.idle, self.reference_idle):
            alone = of[one[case.engine]].quietest() if one else float("nan")
            times_one = f"{of[case].quietest() / alone:.2f}"
            idle.append([case.engine, f"{alone:.0f}", f"{of[case].quietest():.0f}", times_one])
        filled = [[str(c.lanes), of[c].spread(), of[c].parts()] for c in self.filled]
        verdicts = [
            [what, f"{value:.2f}", f"{limit:.1f}", "yes" if value <= limit else "NO"]
            for what, value, limit in self.verdicts(bench)
        ]
        memory_head = ["lanes", "engine", "load s", "peak loading", "peak", "final", "ratio"]
        first = self.full[next(iter(self.full))][0]
        repeats = len(of[first].runs)
        others = max(run["other_cores"] for m in of.values() for run in m.runs)
        facts = ", ".join(f"{name}: {value}" for name, value in machine().items())
        return f"""# Step time and memory, ours beside the reference

Written by `benchmarks/engine_step.py`; to repeat: `{command}`.

Random weights in the shape of STT 1B (2,048 wide, 16 layers, context 750, 32 codebooks) and Mimi,
f32 on the CPU. The reference is the crate `moshi` 0.6.4 (candle 0.9) as its server drives it:
batched, with a mask, also at one lane. Each engine alone in a process of its own, in turns,
{repeats} repeats of {first.steps} steps after {first.warmup} to warm up, bundled speech in every
lane. Times in ms: the median of the repeats' medians (lowest to highest); a step has 80 ms in real
time.

Machine: {facts}. Other programs took up to {others:.2f} cores meanwhile.

## Limits

{table(["what", "measured", "limit", "kept"], verdicts)}

## All lanes active

{table(["lanes", "engine", "step", "p95", "codec + LM", "ratio"], times)}

## One active lane of 64

{table(["engine", "1 of 1", "1 of 64", "ratio"], idle)}

The quietest run of each: one lane is bound by memory bandwidth, which neighbours share. The
reference was given fewer steps here ({self.reference_idle.steps}).

## With a full context

Ours after {self.filled[0].warmup} steps, when every lane attends to 750 frames. The reference
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
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    bench = Bench(build(), cache())
    bench.write_weights()
    plan = Plan(arguments.lanes, arguments.warmup, arguments.steps)
    plan.run(bench, arguments.repeats)

    command = " ".join(["benchmarks/engine_step.py", *sys.argv[1:]])
    arguments.results.mkdir(parents=True, exist_ok=True)
    raw = {
        "command": command,
        "machine": machine(),
        "cases": [{**vars(case), "runs": m.runs} for case, m in bench.measured.items()],
    }
    written = arguments.results / "engine_step.json"
    written.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    report = plan.report(bench, command)
    (arguments.results / "engine_step.md").write_text(report, encoding="utf-8")
    print(f"\n{report}")
    return 0 if all(value <= limit for _, value, limit in plan.verdicts(bench)) else 1


if __name__ == "__main__":
    sys.exit(main())
