#!/usr/bin/env python3
"""Times the steps of PyTorch's `moshi` in the shape of Kyutai's STT 1B, on the CPU.

Prints one line of JSON, like the programs that `measuring.py` runs. For an environment of its own:

    pip install moshi==0.2.13
    python pytorch_step.py --lanes 8 --active 8 --warmup 3 --steps 10 --precision f32

or `cpu_streams.py --pytorch PYTHON`. Weights are random, as the constructors make them; Mimi is
f32. Its rings are attended to as a whole, masked, from the first step on, so times hold for a full
context.
"""

from __future__ import annotations

import argparse
import json
import time
import wave
from pathlib import Path

import torch
from measuring import RECORDING
from moshi.models import LMGen, LMModel, loaders

FRAME_SAMPLES = 1920
CODEBOOKS = 32
# As ours: neighbours hear different things.
LANE_OFFSET_FRAMES = 29
BYTES_PER_KIB = 1024
PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}

STT_1B = {
    "dim": 2048,
    "num_heads": 16,
    "num_layers": 16,
    "hidden_scale": 4.125,
    "context": 750,
    "max_period": 100_000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "causal": True,
    "layer_scale": None,
    "n_q": CODEBOOKS,
    "dep_q": 0,
    "delays": [0] * (1 + CODEBOOKS),
    "card": 2048,
    "text_card": 8000,
    "existing_text_padding_id": 3,
    "extra_heads_num_heads": 4,
    "extra_heads_dim": 6,
}


def recording() -> torch.Tensor:
    """The whole frames of the bundled recording: frames x samples."""
    with wave.open(str(RECORDING)) as file:
        data = bytearray(file.readframes(file.getnframes()))
    samples = torch.frombuffer(data, dtype=torch.int16).float() / 32_768
    return samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)


def memory() -> dict[str, int]:
    """Resident memory now and at its highest, in bytes; Linux only."""
    names = {"VmRSS": "resident_bytes", "VmHWM": "peak_resident_bytes"}
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    fields = (line.partition(":") for line in lines)
    return {
        names[name]: BYTES_PER_KIB * int(value.split()[0])
        for name, _, value in fields
        if name in names
    }


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name in ("--lanes", "--active", "--warmup", "--steps"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="f32")
    parser.add_argument("--threads", type=int, help="PyTorch's choice unless given")
    arguments = parser.parse_args()
    if arguments.active != arguments.lanes:
        parser.error("--active: every lane is computed, so it must be equal to --lanes")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    lanes = arguments.lanes
    started = time.perf_counter()
    mimi = loaders.get_mimi(None, num_codebooks=CODEBOOKS)
    model = LMModel(device="cpu", dtype=PRECISIONS[arguments.precision], **STT_1B).eval()
    generator = LMGen(model, use_sampling=False)
    load_s = time.perf_counter() - started
    loaded = memory()

    frames = recording()
    step_ms: list[float] = []
    codec_ms: list[float] = []
    with torch.no_grad(), mimi.streaming(lanes), generator.streaming(lanes):
        for step in range(arguments.warmup + arguments.steps):
            places = [(step + LANE_OFFSET_FRAMES * lane) % len(frames) for lane in range(lanes)]
            pcm = frames[places][:, None]
            before = time.perf_counter()
            codes = mimi.encode(pcm)
            encoded = time.perf_counter()
            generator.step_with_extra_heads(codes)
            after = time.perf_counter()
            if step >= arguments.warmup:
                step_ms.append(1e3 * (after - before))
                codec_ms.append(1e3 * (encoded - before))

    line = {
        "engine": "pytorch",
        "about": {
            "precision": arguments.precision,
            "kv_precision": arguments.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "lanes": lanes,
        "active": lanes,
        "load_s": load_s,
        "step_ms": step_ms,
        "codec_ms": codec_ms,
        "lm_ms": [whole - codec for whole, codec in zip(step_ms, codec_ms, strict=True)],
        "loaded": loaded,
        "end": memory(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
