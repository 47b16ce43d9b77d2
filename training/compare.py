"""Whether the server hears with the exported files what PyTorch hears with the trained model.

    python -m training.compare EXPORT

Needs moshi-ctl beside PyTorch. Both hear the bundled recording, the server in f32 and without the
silence that clients send first, and the pause heads have to agree. They depend on everything before
them: audio tokens, the text that was chosen, the context. Sums in another order choose another one
now and then, so a few steps may be off.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from safetensors.torch import load_file

from moshi_ctl import Step, listen
from moshi_ctl.demo.server import serving
from training import shape as shapes
from training.model import Codec, LanguageModel
from training.shape import FRAME_SAMPLES, SAMPLE_RATE_HZ
from training.speech import Samples
from training.train_lm import heard

_TOLERANCE = 0.02
_STEPS_OFF = 0.03
_QUANTIZED = (
    *("in_proj_weight", "out_proj.weight", "linear_in.weight", "linear_out.weight"),
    "text_linear.weight",
)


@torch.no_grad()
def in_pytorch(export: Path, samples: Samples) -> np.ndarray:
    """The probabilities of the pause heads, T × heads."""
    shape = shapes.load()
    codec, lm = Codec(shape).eval(), LanguageModel(shape).eval()
    codec.norms = torch.nn.ModuleList()
    for model, name in ((codec, "codec"), (lm, "model")):
        tensors = load_file(export / f"{name}.safetensors")
        model.load_state_dict({key: _as_served(key, value) for key, value in tensors.items()})
    audio = torch.as_tensor(samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES])[None]
    latents = codec(codec.loudness(audio))
    tokens = codec.quantize(latents, levels=shape.lm.audio_codebooks)[2]
    audio_before = lm.embed_audio(heard(tokens, shape, dropout=False))
    text = torch.full(tokens.shape[:2], shape.lm.text_in_vocab_size - 1)
    for step in range(1, text.shape[1]):
        logits, _ = lm(audio_before[:, :step], text[:, :step])
        text[:, step] = logits[:, -1].argmax(-1)
    return lm(audio_before, text)[1].softmax(-1)[0, :, :, 0].numpy()


def _as_served(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of `model.gguf`: matrices in blocks of 32 bytes with a 16-bit scale (Q8_0)."""
    if not name.endswith(_QUANTIZED):
        return tensor.float()
    blocks = tensor.float().unflatten(1, (-1, 32))
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    return ((blocks / scales).round() * scales).flatten(1)


async def in_the_server(samples: Samples) -> np.ndarray:
    """The same as the server says it."""

    async def source():  # noqa: ANN202
        yield samples

    async with serving("demo", ["--precision", "f32"]) as server:
        events = listen(source(), server.url, key=server.key, lead_in_s=0.0)
        return np.array([event.prs async for event in events if isinstance(event, Step)])


def main() -> None:
    """Exits non-zero where they disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    export: Path = parser.parse_args().export
    recording = Path(os.environ["MOSHI_CTL_EMBEDDED"]) / "recording.flac"
    samples, rate_hz = soundfile.read(recording, dtype="float32")
    samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    ours, theirs = in_pytorch(export, samples), asyncio.run(in_the_server(samples))
    steps = min(len(ours), len(theirs))
    differences = np.abs(ours[:steps] - theirs[:steps]).max(axis=1)
    off = float((differences > _TOLERANCE).mean())
    median = np.median(differences)
    print(f"{steps} steps: off by {median:.1e} (median), {off:.1%} by over {_TOLERANCE}")
    if steps < len(ours) or off > _STEPS_OFF:
        sys.exit(1)


if __name__ == "__main__":
    main()
