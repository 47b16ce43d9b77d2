#!/usr/bin/env python3
"""Step times on an NVIDIA card, beside the published `moshi` crate and the card's bandwidth.

Random weights in the shape of Kyutai's STT 1B, full contexts, every number of lanes in every
precision. The reference takes part, in f32 and bf16, with `--reference`: it needs NVIDIA's toolkit,
and a card with compute capability 8.0, below which its kernels do not compile. What a step has to
read at least, its weights once and every lane's keys and values, at the rate at which the card
copies, is the limit that one stream is held to. Writes `results/cuda_step.md` and
`results/cuda_step.json`; exits with 1 where a limit is missed.

Standard library only. Needs a Rust toolchain, a card with its driver, a Python with
nvidia-cuda-nvrtc-cu12 first on the PATH, 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import (
    FRAME_MS,
    RESULTS,
    SHAPE,
    Verdict,
    build,
    cache,
    command_line,
    limits_table,
    paragraph,
    table,
    write_results,
)

PRECISIONS = ("f32", "f16", "q8", "bf16")
OF_REFERENCE = ("f32", "bf16")
# Bytes of a weight, of a file in bf16; and of a key's or value's number.
WEIGHT_BYTES = {"f32": 2, "f16": 2, "bf16": 2, "q8": 34 / 32}
RING_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8": 1 + 4 / 128}

PROGRAM = "moshi-ctl-bench-step"
# Of each engine: the feature it is built with, and where, below the usual place. They link CUDA in
# ways that exclude each other.
FEATURES = {"ours": ("cuda", ""), "reference": ("cuda-reference", "cuda-reference")}

# The limits the project has set itself.
LEAST_STREAMS_OF_REFERENCE = 2.0
MOST_TIME_OF_BANDWIDTH = 2.0


def card_facts(device: str) -> dict[str, str]:
    """What card it is, as `nvidia-smi` says it, where that is there."""
    names = ("name", "driver_version", "compute_cap", "memory.total", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    command.append(f"--id={device.partition(':')[2] or 0}")
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(names, (field.strip() for field in said.stdout.split(",")), strict=False))


def bandwidth(program: Path, device: str) -> list[float]:
    """Bytes a second that a card reads and writes while it copies, of several copies."""
    command = [str(program), "bandwidth", "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"there is nothing to measure: {done.stderr.strip()}")
    return [float(rate) for rate in json.loads(done.stdout)["bytes_per_s"]]


class Bench:
    """Runs engines, each a process of its own."""

    def __init__(self, programs: dict[str, Path], device: str, steps: int, warmup: int) -> None:
        self._programs = programs
        self._device = device
        self._numbers = ("--steps", str(steps), "--warmup", str(warmup))
        self._weights = cache()
        self.runs: list[dict[str, Any]] = []
        if not all((self._weights / f"{name}.safetensors").exists() for name in ("lm", "codec")):
            subprocess.run(self._command("write", "ours"), check=True)  # noqa: S603

    def step_ms(self, engine: str, precision: str, lanes: int) -> float | None:
        """The median step of one more run; None where the card has no room for so many lanes."""
        options = ["--lanes", str(lanes), "--active", str(lanes), *self._numbers]
        options += ["--device", self._device, "--precision", precision]
        if engine == "ours":
            options += ["--context", "full"]
        done = subprocess.run(  # noqa: S603
            [*self._command(engine, engine), *options], capture_output=True, text=True, check=False
        )
        if done.returncode:
            if "memory" not in done.stderr.lower():
                sys.exit(f"{engine}, {precision}, {lanes} lanes: {done.stderr}")
            return None
        run = json.loads(done.stdout)
        self.runs.append(run)
        median = statistics.median(run["step_ms"])
        print(f"{engine} {precision} {lanes} lanes: {median:.1f} ms a step", flush=True)
        return median

    def _command(self, mode: str, engine: str) -> list[str]:
        program = str(self._programs[engine])
        return [program, mode, "--shape", SHAPE, "--folder", str(self._weights)]


def least_ms(run: dict[str, Any], lanes: int, bytes_per_s: float) -> float:
    """What a step cannot do without: reading its weights once and each lane's keys and values."""
    about = run["about"]
    weights = run["matrix_numbers"] * WEIGHT_BYTES[about["precision"]]
    rings = lanes * run["ring_numbers_per_lane"] * RING_BYTES[about["kv_precision"]]
    return float(1e3 * (weights + rings) / bytes_per_s)


Times = dict[tuple[str, str, int], list[float]]


def most_in_real_time(times: Times, engine: str, precision: str) -> int:
    """The most lanes of those measured whose steps take no longer than a frame lasts."""
    kept = [
        lanes
        for (of, name, lanes), ms in times.items()
        if (of, name) == (engine, precision) and statistics.median(ms) <= FRAME_MS
    ]
    return max(kept, default=0)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["f32", "f16", "q8"])
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 100])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference", action="store_true", help="build and measure it as well")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    engines = ("ours", "reference") if arguments.reference else ("ours",)
    programs = {}
    for engine in engines:
        feature, below = FEATURES[engine]
        programs[engine] = build(PROGRAM, feature=feature, below=below)[PROGRAM]
    rates = bandwidth(programs["ours"], arguments.device)
    rate = statistics.median(rates)
    bench = Bench(programs, arguments.device, arguments.steps, arguments.warmup)
    times: Times = {}
    for repeat in range(arguments.repeats):
        for precision in arguments.precisions:
            for lanes in arguments.lanes:
                for engine in engines if repeat % 2 == 0 else reversed(engines):
                    if engine == "reference" and precision not in OF_REFERENCE:
                        continue
                    ms = bench.step_ms(engine, precision, lanes)
                    if ms is not None:
                        times.setdefault((engine, precision, lanes), []).append(ms)

    rows, verdicts = [], []
    for precision in arguments.precisions:
        for lanes in arguments.lanes:
            ours = times.get(("ours", precision, lanes))
            if ours is None:
                rows.append([precision, str(lanes), "no room", "", "", ""])
                continue
            run = next(
                run
                for run in bench.runs
                if run["engine"] == "ours"
                and (run["lanes"], run["about"]["precision"]) == (lanes, precision)
            )
            limit = least_ms(run, lanes, rate)
            median = statistics.median(ours)
            theirs = times.get(("reference", precision, lanes))
            of_reference = "" if theirs is None else f"{median / statistics.median(theirs):.2f}"
            spread = f"{median:.1f} ({min(ours):.1f} to {max(ours):.1f})"
            rows.append(
                [
                    precision,
                    str(lanes),
                    spread,
                    of_reference,
                    f"{limit:.1f}",
                    f"{median / limit:.2f}",
                ]
            )
            if lanes == 1:
                what = f"one stream in {precision}, step / what bandwidth allows"
                verdicts.append(Verdict(what, median / limit, MOST_TIME_OF_BANDWIDTH))
        theirs_kept = most_in_real_time(times, "reference", precision)
        if theirs_kept:
            ratio = most_in_real_time(times, "ours", precision) / theirs_kept
            what = f"streams in real time in {precision}, ours / reference"
            verdicts.append(Verdict(what, ratio, LEAST_STREAMS_OF_REFERENCE, at_least=True))

    facts = card_facts(arguments.device)
    head = ["precision", "lanes", "step", "of the reference's", "limit", "of the limit"]
    command = command_line()
    beside = (
        "The reference is the crate `moshi` 0.6.4 with candle's CUDA, as its server drives it."
        if arguments.reference
        else "The reference was not built for this card, so there are no ratios to it."
    )
    low, high = min(rates) / 1e9, max(rates) / 1e9
    about = paragraph(
        f"Random weights in the shape of STT 1B and Mimi, full contexts, every lane active. Times "
        f"in ms: the median of {arguments.repeats} runs' medians (lowest to highest); a step has "
        f"{FRAME_MS:.0f} ms in real time. The limit is what reading the weights once and every "
        f"lane's keys and values takes at {rate / 1e9:.0f} GB/s ({low:.0f} to {high:.0f}), which "
        f"the card does while it copies. {beside}"
    )
    report = f"""# Steps on a card

Written by `benchmarks/cuda_step.py`; to repeat: `{command}`.

{about}

Card: {", ".join(f"{name}: {value}" for name, value in facts.items()) or "unknown"}.

## Limits

{limits_table(verdicts)}

## Steps

{table(head, rows)}
"""
    raw = {"command": command, "card": facts, "bytes_per_s": rates, "runs": bench.runs}
    write_results(arguments.results, "cuda_step", report, raw)
    print(report)
    sys.exit(not all(verdict.kept for verdict in verdicts))


if __name__ == "__main__":
    main()
