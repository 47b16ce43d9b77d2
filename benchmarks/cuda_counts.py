#!/usr/bin/env python3
"""What a step asks of an NVIDIA card: kernels, copies, waits. Counted, without a card.

The engine runs on the driver of `rust/emulator`, whose card is the processor, with a model that has
the layers, codebooks and heads of STT 1B and Mimi as published: widths change what a kernel does,
not how many there are. Writes `results/cuda_counts.md` and `results/cuda_counts.json`.

Standard library only. Needs a Rust toolchain, a C++ compiler and a Python with
nvidia-cuda-nvrtc-cu12 first on the PATH, on Linux on x86-64.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from measuring import RESULTS, build, command_line, table, write_results

LANES = (1, 12)
PRECISIONS = ("f32", "f16", "q8")
FEW, MANY = 1, 3

SHAPE: dict[str, Any] = {
    "transformer": {
        "d_model": 128,
        "num_heads": 2,
        "num_layers": 16,
        "dim_feedforward": 512,
        "causal": True,
        "norm_first": True,
        "bias_ff": False,
        "bias_attn": False,
        "context": 750,
        "max_period": 100_000,
        "use_conv_block": False,
        "use_conv_bias": True,
        "gating": "silu",
        "norm": "RmsNorm",
        "positional_embedding": "Rope",
        "conv_layout": False,
        "conv_kernel_size": 3,
        "kv_repeat": 1,
        "max_seq_len": 40_960,
    },
    "text_in_vocab_size": 101,
    "text_out_vocab_size": 100,
    "audio_vocab_size": 2049,
    "audio_codebooks": 32,
    "extra_heads": {"num_heads": 4, "dim": 6},
}

WHAT = {
    "graph": "graphs started",
    "graph_launch": "kernels in them",
    "launch": "kernels beside them",
    "graph_copy_to_device": "copies to the card",
    "graph_copy_to_host": "copies from it",
    "synchronize": "waits",
    "alloc": "memory taken",
}


def programs() -> tuple[Path, str]:
    """The program that steps, and the folder of the emulated driver."""
    step, emulator = "moshi-ctl-bench-step", "moshi-ctl-emulator"
    program = build(step, feature="cuda")[step]
    printer = [str(build(emulator, package=emulator)[emulator])]
    folder = subprocess.run(printer, check=True, capture_output=True, text=True)  # noqa: S603
    return program, folder.stdout.strip()


def counted(program: Path, driver: str, folder: Path, options: list[str]) -> dict[str, int]:
    """What a process of so many steps asked of the card."""
    report = folder / "report"
    report.unlink(missing_ok=True)
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": driver,
        "EMULATED_CUDA_REPORT": str(report),
        "EMULATED_CUDA_CAPABILITY": "7.5",
    }
    shape = ["--shape", str(folder / "shape.json"), "--folder", str(folder)]
    command = [str(program), options[0], *shape, *options[1:]]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)  # noqa: S603
    if not report.exists():
        return {}
    lines = (line.split() for line in report.read_text(encoding="utf-8").splitlines())
    return {what: int(count) for what, count in lines if what != "lookup"}


def main() -> None:
    """Counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    program, driver = programs()
    rows, raw = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shape.json").write_text(json.dumps(SHAPE), encoding="utf-8")
        counted(program, driver, folder, ["write"])
        for precision in PRECISIONS:
            for lanes in LANES:
                options = ["ours", "--device", "cuda:0"]
                options += ["--precision", precision, "--kv", precision]
                options += ["--lanes", str(lanes), "--active", str(lanes), "--warmup", "1"]
                few, many = (
                    counted(program, driver, folder, [*options, "--steps", str(steps)])
                    for steps in (FEW, MANY)
                )
                of_step = {
                    what: (many.get(what, 0) - few.get(what, 0)) / (MANY - FEW) for what in WHAT
                }
                raw.append({"precision": precision, "lanes": lanes, **of_step})
                rows.append([precision, str(lanes), *(f"{count:g}" for count in of_step.values())])
                print(raw[-1], flush=True)
    command = command_line()
    report = f"""# What a step asks of a card

Written by `benchmarks/cuda_counts.py`; to repeat: `{command}`.

Counted by a driver whose card is the processor, so without one: for each step of a model with the
layers, codebooks and heads of STT 1B and Mimi. More than eight lanes are multiplied on tensor
cores, which takes a kernel more for each product that is not in f32.

{table(["precision", "lanes", *WHAT.values()], rows)}
"""
    write_results(arguments.results, "cuda_counts", report, {"command": command, "counts": raw})


if __name__ == "__main__":
    main()
