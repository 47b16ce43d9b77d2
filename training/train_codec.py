"""First stage: the codec and a language model behind it, together.

    python -m training.train_codec CORPUS OUT

What the codebooks say has to be worth something to who transcribes, so the language model's loss
teaches the encoder through the quantizer (straight-through gradients). Small heads beside it
predict the spectrum of the speech without noise and room, which keeps the tokens about sound, and
which part of which word is spoken, which teaches the encoder in every frame and not once a word.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from training import shape as shapes
from training.model import Codec, LanguageModel, mel, mel_to_hz
from training.shape import FRAME_SAMPLES, SAMPLE_RATE_HZ, TEXT_PADDING, Shape
from training.streams import STATES, Batch, batches

_SEED = 7
_BATCH = 8
_WARM_UP_STEPS = 100
# Until then the quantizer passes its input through; codebooks then begin with real latents.
_QUANTIZE_FROM = 250
_MEL_BANDS, _MEL_HOP, _FFT = 40, 240, 1024
_WEIGHTS = {"text": 1.0, "pauses": 0.3, "spectrum": 0.6, "states": 0.5, "commitment": 1.0}
# A token that the model said wrongly must not lead it astray.
_TEXT_DROPOUT = 0.15


class LogMel(nn.Module):
    """B × samples → B × T × (hops in a frame · bands)."""

    def __init__(self) -> None:
        super().__init__()
        edges = mel_to_hz(torch.linspace(mel(80.0), mel(8_000.0), _MEL_BANDS + 2))
        bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, _FFT // 2 + 1)
        low, mid, high = (edges[i : i + _MEL_BANDS, None] for i in range(3))
        filters = torch.minimum((bins - low) / (mid - low), (high - bins) / (high - mid))
        self.register_buffer("_filters", filters.clamp(min=0))
        self.register_buffer("_window", torch.hann_window(_FFT))

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        padded = F.pad(audio, (_FFT - _MEL_HOP, 0))
        power = (
            torch.stft(
                padded, _FFT, _MEL_HOP, window=self._window, center=False, return_complex=True
            )
            .abs()
            .square()
        )
        bands = torch.log10(self._filters @ power + 1e-3)
        return bands.transpose(1, 2).reshape(len(audio), -1, FRAME_SAMPLES // _MEL_HOP * _MEL_BANDS)


@dataclass
class Losses:
    """Of one batch."""

    text: Tensor
    pauses: Tensor
    spectrum: Tensor
    states: Tensor
    commitment: Tensor

    def total(self) -> Tensor:
        """Their weighted sum."""
        return sum(weight * getattr(self, name) for name, weight in _WEIGHTS.items())


class Transcriber(nn.Module):
    """Codec and language model with what lies between them while they learn together."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim, width = shape.codec.quantizer_dim, shape.transformer.d_model
        self.codec, self.lm = Codec(shape), LanguageModel(shape)
        # Embeddings of audio tokens are products of codebook entries for now.
        self.semantic = nn.Linear(dim, width, bias=False)
        self.acoustic = nn.Linear(dim, width, bias=False)
        self.no_audio = nn.Parameter(torch.zeros(width))
        self.spectrum = _head(2 * dim, FRAME_SAMPLES // _MEL_HOP * _MEL_BANDS)
        self.states = _head(2 * dim, STATES)
        self.log_mel = LogMel()
        self._shape = shape

    def embeddings(self, parts: list[Tensor]) -> Tensor:
        """What the codebooks say, as the language model hears it: a frame later."""
        embedded = self.semantic(parts[0]) + self.acoustic(parts[1])
        first = self.no_audio.expand(len(embedded), 1, -1)
        return torch.cat([first, embedded[:, :-1]], 1)

    def losses(self, batch: dict[str, Tensor], *, levels: int) -> tuple[Losses, Tensor, Tensor]:
        """Losses with `levels` codebooks, 0 for none; the text's logits; audio tokens."""
        latents = self.codec.latents(batch["audio"])
        if levels == 0:
            parts, tokens = self.codec.project(latents), latents.new_zeros(0)
            commitment = 1e-3 * sum(part.square().mean() for part in parts)
        else:
            parts, commitment, tokens = self.codec.quantize(latents, levels=levels)
        text = before(batch["text"], self._shape, self.training)
        logits, pauses = self.lm(self.embeddings(parts), text)
        heard = torch.cat(parts, -1)
        losses = Losses(
            text=F.cross_entropy(logits.flatten(0, 1), batch["text"].flatten()),
            pauses=F.cross_entropy(pauses.flatten(0, 2), batch["pauses"].flatten()),
            spectrum=F.l1_loss(self.spectrum(heard), self.log_mel(batch["clean"])),
            states=F.cross_entropy(self.states(heard).flatten(0, 1), batch["states"].flatten()),
            commitment=commitment,
        )
        return losses, logits, tokens


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 256), nn.GELU(), nn.Linear(256, outputs))


def before(text: Tensor, shape: Shape, dropout: bool) -> Tensor:
    """The token each step is told it said last; the first one hears the start token."""
    start = torch.full_like(text[:, :1], shape.lm.text_in_vocab_size - 1)
    previous = text[:, :-1]
    if dropout:
        previous = previous.masked_fill(torch.rand(previous.shape) < _TEXT_DROPOUT, TEXT_PADDING)
    return torch.cat([start, previous], 1)


class Streams(IterableDataset):
    """Batches for a `DataLoader` that has them made by another process."""

    def __init__(self, corpus: Path, delay: int, size: int, seed: int) -> None:
        self._arguments = (corpus, delay, size, seed)

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        return batches(*self._arguments, worker.id if worker else 0)


def loader(corpus: Path, delay: int, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches as tensors, made beside the training."""
    streams = DataLoader(Streams(corpus, delay, size, seed), None, num_workers=1, prefetch_factor=4)
    for batch in streams:
        yield {name: torch.as_tensor(value) for name, value in vars(batch).items()}


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a warm-up, then half a cosine down to a hundredth."""
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    done = (step - _WARM_UP_STEPS) / (steps - _WARM_UP_STEPS)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def word_accuracy(logits: Tensor, text: Tensor) -> float:
    """Share of the words that are likeliest where they are due."""
    due = text > TEXT_PADDING
    return float((logits.argmax(-1) == text)[due].float().mean())


def optimiser(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW, with decay for matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def seed_everything(seed: int) -> None:
    """The dice of this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def main() -> None:
    """Trains and writes `codec.pt` every hundred steps and at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--resume", type=Path, help="begin with these weights")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seed_everything(_SEED)
    shape = shapes.load()
    model = Transcriber(shape)
    if arguments.resume:
        model.load_state_dict(torch.load(arguments.resume))
    optimizer = optimiser(model, arguments.rate)
    codebooks = shape.lm.audio_codebooks
    started, averages = time.monotonic(), None
    data = loader(arguments.corpus, shape.delay, _BATCH, _SEED + (1 if arguments.resume else 0))
    for step, batch in zip(range(arguments.steps), data, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * schedule(step, arguments.steps)
        quantized = step >= _QUANTIZE_FROM or arguments.resume
        # Few codebooks now and then, so that the first ones say what matters most.
        levels = (
            random.choice([codebooks, codebooks, random.randint(1, codebooks)]) if quantized else 0
        )
        losses, logits, _ = model.losses(batch, levels=levels)
        optimizer.zero_grad()
        losses.total().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        numbers = np.array(
            [v.item() for v in vars(losses).values()] + [word_accuracy(logits, batch["text"])]
        )
        averages = numbers if averages is None else 0.95 * averages + 0.05 * numbers
        if step % 20 == 0:
            words = " ".join(
                f"{n} {v:.3f}" for n, v in zip([*vars(losses), "words"], averages, strict=True)
            )
            print(f"{step} {time.monotonic() - started:.0f}s levels {levels} {words}", flush=True)
        if step % 100 == 99 or step == arguments.steps - 1:
            torch.save(model.state_dict(), arguments.out / "codec.pt")


if __name__ == "__main__":
    main()
