#!/usr/bin/env python3
"""How many live streams our engine keeps in real time on the CPU, beside other engines, in one run.

Random weights in the shape of Kyutai's STT 1B. Every measurement is a process of its own; engines
take turns, in the other order with every second repeat, and the machine itself is measured first
and last. Writes `results/cpu_streams.md` and `results/cpu_streams.json`; exits with 1 where a limit
is missed.

Standard library only. Needs a Rust toolchain, 3 GB of disk for the weights (5 GB with moshi.cpp)
and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import (
    BYTES_PER_GB,
    BYTES_PER_MB,
    FRAME_MS,
    RESULTS,
    Bench,
    Case,
    Measured,
    Verdict,
    cache,
    command_line,
    gigabytes,
    limits_table,
    machine_line,
    paragraph,
    table,
    write_results,
)

LANES = [1, 2, 4, 8, 10, 12, 16]
CONTEXTS = ("empty", "full")
REFERENCE_LANES = (1, 8)
PRECISION = "q8"
OTHER_WARMUP = 2

# The limits the project has set itself.
MOST_MS_OF_ONE_STREAM = 40.0
LEAST_STREAMS = 12
MOST_CODEC_MS_PER_LANE = 2.0
CODEC_LANES = 8
MOST_BYTES_AT_ONE_LANE = 1.6e9
MOST_BYTES_PER_FURTHER_LANE = 110e6
MOST_TIME_OF_ONE_LANE = 1.2
MOST_LOAD_S = 6.0
LEAST_TIMES_REFERENCE = 7.0
LEAST_THROUGHPUT_OF_REFERENCE = 10.0
THROUGHPUT_LANES = 8

# For one frame of one lane: Mimi's encoder and its transformer in f32, 32 codebooks in int8.
CODEC_MULTIPLICATIONS = 162e6 + 50e6
CODEBOOK_MULTIPLICATIONS = 17e6

# What threads do, in the order of the profile.
SPENT = [(part, work) for part in ("codec", "lm") for work in ("products", "attention", "rest")]

# Of one number in memory; q8 shares a 16-bit scale among 32 of them.
BYTES_PER_NUMBER = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8": 1 + 2 / 32}


class Plan:
    """Which cases are measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        warmup, steps = arguments.warmup, arguments.steps

        def ours(lanes: int, active: int, context: str, precision: str = PRECISION) -> Case:
            return Case("ours", lanes, active, warmup, steps, precision, context)

        def other(engine: str, lanes: int, precision: str) -> Case:
            return Case(
                engine, lanes, lanes, OTHER_WARMUP, arguments.other_steps, precision, "full"
            )

        self.lanes: list[int] = sorted({*arguments.lanes})
        self.ours = {(n, context): ours(n, n, context) for n in self.lanes for context in CONTEXTS}
        self.f32 = ours(1, 1, "full", "f32")
        self.idle = ours(64, 1, "empty")
        # Masked, but over its whole ring from the first step on.
        self.reference = {n: other("reference", n, "f32") for n in REFERENCE_LANES}
        self.pytorch = (
            [other("pytorch", n, form) for form in ("f32", "bf16") for n in REFERENCE_LANES]
            if arguments.pytorch
            else []
        )
        # The formats that its own tools offer; the first is nearest to ours.
        self.moshi_cpp = (
            [other("moshi.cpp", 1, form) for form in ("q8_0", "q4_k")]
            if arguments.moshi_cpp
            else []
        )

    def run(self, bench: Bench, repeats: int) -> None:
        """Runs everything."""
        bench.roofline()
        for repeat in range(repeats):
            # The others run between cases of ours, so that all meet the same machine.
            cases = [*self.ours.values()]
            others = [*self.reference.values(), *self.moshi_cpp]
            others += self.pytorch if repeat == 0 else []
            cases[1:1] = [self.idle]
            middle = len(cases) // 2
            cases = [*cases[:middle], *others, self.f32, *cases[middle:]]
            for case in cases if repeat % 2 == 0 else reversed(cases):
                bench.run(case)
        bench.roofline()


class Findings:
    """What was measured, in the terms of the report."""

    def __init__(self, plan: Plan, bench: Bench) -> None:
        self.plan = plan
        self.of = bench.measured
        self.rooflines = bench.rooflines

    def at(self, lanes: int, context: str = "full") -> Measured | None:
        """Ours with so many lanes, all active, where that was measured."""
        case = self.plan.ours.get((lanes, context))
        return self.of[case] if case else None

    def full(self) -> Iterator[tuple[int, Measured]]:
        """Ours with full contexts, by the number of lanes."""
        for n in self.plan.lanes:
            yield n, self.of[self.plan.ours[n, "full"]]

    def most_in_real_time(self, context: str) -> int:
        """The most lanes whose 99th percentile stays within a frame."""
        kept = (
            n
            for n in self.plan.lanes
            if (m := self.at(n, context)) and m.percentile(99) <= FRAME_MS
        )
        return max(kept, default=0)

    def resident(self, lanes: int) -> float:
        """Memory with so many lanes that all have a full context, in bytes."""
        measured = self.at(lanes)
        return float(measured.highest("end", "resident_bytes") if measured else math.nan)

    def per_further_lane(self) -> float:
        """Memory of one more lane, in bytes."""
        first, last = self.plan.lanes[0], self.plan.lanes[-1]
        if first == last:
            return math.nan
        return (self.resident(last) - self.resident(first)) / (last - first)

    def of_one_lane(self) -> float:
        """Step time with 63 idle lanes beside one, as a multiple of that of one alone."""
        alone = self.at(1, "empty")
        return self.of[self.plan.idle].quietest() / alone.quietest() if alone else math.nan

    def times_ours(self, case: Case) -> float:
        """How much longer a step of another case takes than ours with as many full lanes."""
        ours = self.at(case.lanes)
        return self.of[case].median() / ours.median() if ours else math.nan

    def times_reference(self, lanes: int) -> float:
        """How much longer a step of the reference takes."""
        reference = self.plan.reference.get(lanes)
        return self.times_ours(reference) if reference else math.nan

    def verdicts(self) -> list[Verdict]:
        """What was promised, and what came out, as far as it was measured."""
        nothing = Measured([{"step_ms": [math.nan], "codec_ms": [math.nan]}])
        one = self.at(1) or nothing
        twelve = self.at(LEAST_STREAMS) or nothing
        codec = (self.at(CODEC_LANES) or nothing).median("codec_ms") / CODEC_LANES
        load_s = one.load_s() if self.at(1) else math.nan

        def ms(value: float) -> str:
            return f"{value:.1f} ms"

        def gb(value: float) -> str:
            return f"{gigabytes(value)} GB"

        def mb(value: float) -> str:
            return f"{value / BYTES_PER_MB:.0f} MB"

        def times(value: float) -> str:
            return f"{value:.1f} times"

        verdicts = [
            Verdict("1 stream, median step", one.median(), MOST_MS_OF_ONE_STREAM, form=ms),
            Verdict(f"{LEAST_STREAMS} streams, p99", twelve.percentile(99), FRAME_MS, form=ms),
            Verdict(
                f"Mimi per frame and lane, {CODEC_LANES} lanes",
                codec,
                MOST_CODEC_MS_PER_LANE,
                form=ms,
            ),
            Verdict("memory at 1 lane", self.resident(1), MOST_BYTES_AT_ONE_LANE, form=gb),
            Verdict(
                "memory per further lane",
                self.per_further_lane(),
                MOST_BYTES_PER_FURTHER_LANE,
                form=mb,
            ),
            Verdict("1 of 64 lanes / 1 of 1", self.of_one_lane(), MOST_TIME_OF_ONE_LANE),
            Verdict("loaded within", load_s, MOST_LOAD_S, form="{:.1f} s".format),
            Verdict(
                "reference / ours, 1 stream",
                self.times_reference(1),
                LEAST_TIMES_REFERENCE,
                at_least=True,
                form=times,
            ),
            Verdict(
                f"reference / ours, {THROUGHPUT_LANES} streams",
                self.times_reference(THROUGHPUT_LANES),
                LEAST_THROUGHPUT_OF_REFERENCE,
                at_least=True,
                form=times,
            ),
        ]
        return [verdict for verdict in verdicts if not math.isnan(verdict.measured)]

    def step_rows(self) -> list[list[str]]:
        """Step times of ours."""
        rows = []
        for context in CONTEXTS:
            for n in self.plan.lanes:
                if (m := self.at(n, context)) is None:
                    continue
                ratio = self.times_reference(n) if context == "full" else math.nan
                rows.append(
                    [
                        context,
                        str(n),
                        m.spread(1),
                        f"{m.percentile(95):.1f}",
                        f"{m.percentile(99):.1f}",
                        m.parts(1),
                        f"{m.median('codec_ms') / n:.2f}",
                        one_digit(ratio),
                        "yes" if m.percentile(99) <= FRAME_MS else "no",
                    ]
                )
        return rows

    def other_rows(self) -> list[list[str]]:
        """Step times of the others, and of ours in their number format."""
        plan = self.plan
        cases = [plan.f32, *plan.reference.values(), *plan.moshi_cpp, *plan.pytorch]
        return [
            [
                case.engine,
                case.precision,
                str(case.lanes),
                self.of[case].spread(),
                one_digit(self.times_ours(case)),
                f"{self.of[case].percentile(99):.0f}",
                self.of[case].parts(),
                gigabytes(self.of[case].highest("end", "resident_bytes")),
                gigabytes(self.of[case].highest("end", "peak_resident_bytes")),
                # PyTorch's weights are made, not read.
                "" if case in plan.pytorch else f"{self.of[case].load_s():.1f}",
            ]
            for case in cases
        ]

    def memory_rows(self) -> list[list[str]]:
        """Memory and loading time of ours with full contexts."""
        rows = []
        for n, m in self.full():
            sizes = [m.highest("loaded", "peak_resident_bytes"), m.highest("end", "resident_bytes")]
            rows.append([str(n), *map(gigabytes, sizes), f"{m.load_s():.1f}"])
        return rows

    def best(self, rate: str) -> float:
        """The best of a rate that was seen of this machine."""
        return max(float(roofline[rate]["median"]) for roofline in self.rooflines)

    def multiplying(self, measured: Measured, lanes: int) -> tuple[float, float]:
        """What the multiply-adds of Mimi and of the matrices take at best, in milliseconds."""
        in_f32 = 2e-6 * lanes / self.best("f32_gflop_per_s")
        in_int8 = 2e-6 * lanes / self.best("int8_gop_per_s")
        codec = CODEC_MULTIPLICATIONS * in_f32 + CODEBOOK_MULTIPLICATIONS * in_int8
        return codec, float(measured.runs[0]["matrix_numbers"]) * in_int8

    def reading(self, size: float) -> float:
        """What reading so many bytes takes at best, in milliseconds."""
        return 1e3 * size / BYTES_PER_GB / self.best("read_gb_per_s")

    def profile_rows(self) -> list[list[str]]:
        """What the threads did in a step with full contexts, and what it takes at best."""
        rows = []
        for n, m in self.full():
            threads = m.runs[0]["about"]["threads"]
            codec, lm = self.multiplying(m, n)
            rings = self.reading(bytes_of_rings(m.runs[0], n))
            least = dict.fromkeys(SPENT, "")
            for (part, work), ms in (
                (("codec", "products"), codec),
                (("lm", "products"), lm),
                (("lm", "attention"), rings),
            ):
                least[part, work] = f" ({threads * ms:.0f})"
            spent = {key: m.median("{}_{}_thread_ms".format(*key)) for key in SPENT}
            waited = threads * m.median() - sum(spent.values())
            cells = [f"{ms:.0f}{least[key]}" for key, ms in spent.items()]
            rows.append([str(n), *cells, f"{waited:.0f}"])
        return rows

    def bound_rows(self) -> list[list[str]]:
        """How far a step is from what reading and arithmetic take at the machine's best rates."""
        rows = []
        for n, m in self.full():
            size = bytes_read(m.runs[0], n)
            reading = self.reading(size)
            codec, lm = self.multiplying(m, n)
            share = f"{100 * max(reading, codec + lm) / m.median():.0f} %"
            times = [f"{ms:.1f}" for ms in (reading, codec, lm, m.median())]
            rows.append([str(n), gigabytes(size), *times, share])
        return rows

    def roofline_rows(self) -> list[list[str]]:
        """What the machine did, first and last."""
        names = {"read_gb_per_s": "GB/s read", "int8_gop_per_s": "int8 GOP/s"}
        names["f32_gflop_per_s"] = "f32 GFLOP/s"
        rows = []
        for key, name in names.items():
            cells = [
                f"{r[key]['median']:.0f} ({r[key]['lowest']:.0f} to {r[key]['highest']:.0f})"
                for r in self.rooflines
            ]
            rows.append([name, *cells])
        return rows


def one_digit(number: float) -> str:
    """A number for a table, or nothing where there is none."""
    return "" if math.isnan(number) else f"{number:.1f}"


def bytes_read(run: dict[str, Any], lanes: int) -> float:
    """Bytes of weights, keys and values that a step of the language model reads."""
    weights = run["matrix_numbers"] * BYTES_PER_NUMBER[run["about"]["precision"]]
    return float(weights) + bytes_of_rings(run, lanes)


def bytes_of_rings(run: dict[str, Any], lanes: int) -> float:
    """Bytes of keys and values among them."""
    ring = run["ring_numbers_per_lane"] * BYTES_PER_NUMBER[run["about"]["kv_precision"]]
    return float(lanes * ring)


def report(plan: Plan, bench: Bench, arguments: argparse.Namespace, command: str) -> str:
    """The results for people."""
    found = Findings(plan, bench)
    about = bench.measured[plan.ours[plan.lanes[0], "full"]].runs[0]["about"]
    roofline = bench.rooflines[0]
    in_real_time = ", ".join(f"{found.most_in_real_time(c)} with {c} contexts" for c in CONTEXTS)
    others = [
        "the crate `moshi` 0.6.4 (candle 0.9), batched and with a mask as its server drives it"
    ]
    if plan.pytorch:
        others.append("PyTorch's `moshi` with its streaming state, measured once")
    if plan.moshi_cpp:
        built = bench.measured[plan.moshi_cpp[0]].runs[0]["about"]
        versions = f"{built['moshi.cpp']} on ggml {built['ggml']}"
        others.append(f"moshi.cpp {versions}, which has one stream in a process")
    step_head = "context|lanes|step|p95|p99|Mimi + LM|Mimi / lane|reference / ours|real time"
    profile_head = "lanes|Mimi: products|attention|rest|LM: products|attention|rest|waiting"
    bound_head = "lanes|GB read|reading|Mimi|matrices|step|share"
    other_head = "engine|precision|lanes|step|ratio|p99|Mimi + LM|GB|peak|load s"
    method = f"""
        Random weights in the shape of STT 1B (2,048 wide, 16 layers, context 750, 32 codebooks) and
        Mimi. Ours: {about["precision"]} weights, keys and values in {about["kv_precision"]},
        {about["threads"]} threads, {about["instructions"]}. Beside it: {"; ".join(others)}. Each
        measurement alone in a process of its own, in turns, {arguments.repeats} repeats of
        {arguments.steps} steps after {arguments.warmup} to warm up ({arguments.other_steps} and
        {OTHER_WARMUP} for the others), bundled speech in every lane. Times in ms: the median of the
        repeats' medians (lowest to highest), percentiles over all steps; a step has
        {FRAME_MS:.0f} ms in real time."""
    streams = f"""
        An empty context is a stream that begins; a full one has 750 frames, a minute of audio, to
        look back on. A number of lanes is in real time when 99 of 100 steps take at most
        {FRAME_MS:.0f} ms. The most lanes in real time, of those measured: {in_real_time}. Mimi and
        the language model run side by side; the step is divided as the threads' time was."""
    engines = f"""
        The others attend to their whole rings, masked, from the first step on, so their times hold
        for a full context. The ratio is to ours in {about["precision"]} with as many lanes and full
        contexts. GB (10⁹ bytes) are resident memory at the end and at its highest."""
    bounds = """
        What a step with full contexts takes at these rates: reading the language model's weights,
        keys and values once, and the multiply-adds of Mimi (f32, codebooks int8) and of the
        language model's matrices (int8). Reading and arithmetic can go on at the same time; the
        share is that of the larger one in the measured step."""
    profile = f"""
        What the {about["threads"]} threads did in a step with full contexts, in ms of all threads
        together, so {about["threads"]} times {FRAME_MS:.0f} are a frame. In brackets what the
        multiply-adds, or reading keys and values, take at the best rates above with nothing else
        going on. Products are matrices, convolutions and codebook searches."""
    rates = f"""
        {roofline["threads"]} threads; median (lowest to highest) of {roofline["repeats"]} repeats,
        before and after everything else. Multiply-adds ({roofline["int8_instructions"]} and
        {roofline["f32_instructions"]}) count as two operations."""
    return f"""# Live streams on the CPU

Written by `benchmarks/cpu_streams.py`; to repeat: `{command}`.

{paragraph(method)}

{machine_line(bench)}

## Limits

With full contexts, unless said otherwise.

{limits_table(found.verdicts())}

## Ours, {about["precision"]}

{paragraph(streams)}

{table(step_head.split("|"), found.step_rows())}

## Other engines, and ours in f32

{paragraph(engines)}

{table(other_head.split("|"), found.other_rows())}

## One active lane of 64

{found.of_one_lane():.2f} times the step of one lane alone, comparing the quietest run of each: one
lane is bound by memory bandwidth, which neighbours share.

## Memory and loading

GB of resident memory as the kernel counts it, with full contexts; the peak is that of loading. A
further lane takes {found.per_further_lane() / BYTES_PER_MB:.0f} MB.

{table(["lanes", "peak loading", "final", "load s"], found.memory_rows())}

## The machine's limits

{paragraph(rates)}

{table(["", "first", "last"], found.roofline_rows())}

{paragraph(bounds)}

{table(bound_head.split("|"), found.bound_rows())}

{paragraph(profile)}

{table(profile_head.split("|"), found.profile_rows())}
"""


def main() -> int:
    """Measures, writes the results, says whether the limits were kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--other-steps", type=int, default=12)
    parser.add_argument(
        "--pytorch", type=Path, metavar="PYTHON", help="a Python with moshi 0.2.13, to include it"
    )
    parser.add_argument(
        "--moshi-cpp", type=Path, metavar="DRIVER", help="built by moshi_cpp/, to include moshi.cpp"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    bench = Bench(cache(), pytorch=arguments.pytorch, moshi_cpp=arguments.moshi_cpp)
    plan = Plan(arguments)
    plan.run(bench, arguments.repeats)

    command = command_line(pytorch="PYTHON", moshi_cpp="DRIVER")
    written = report(plan, bench, arguments, command)
    write_results(arguments.results, "cpu_streams", written, bench.raw(command))
    print(f"\n{written}")
    return 0 if all(verdict.kept for verdict in Findings(plan, bench).verdicts()) else 1


if __name__ == "__main__":
    sys.exit(main())
