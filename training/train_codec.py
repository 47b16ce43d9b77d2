"""First stage: the codec, alone and then with a language model behind it.

    python -m training.train_codec FEATURES OUT

At first the encoder learns which phoneme and which part of which word is spoken, from small heads
that teach it in every frame. Then the quantizer and the language model join: what the codebooks
say has to be worth something to who transcribes, so the language model's loss reaches the encoder
through the quantizer (straight-through gradients).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import shape as shapes
from training.features import Streams
from training.model import Codec, LanguageModel
from training.shape import TEXT_PADDING, Shape
from training.streams import FIRST_WORD_TOKEN, STATES, Pronunciations

_SEED = 7
_BATCH = 8
_WARM_UP_STEPS = 100
_WEIGHTS = {"text": 1.0, "pauses": 0.3, "states": 0.5, "phonemes": 0.5, "commitment": 1.0}
# A token that the model said wrongly must not lead it astray.
_TEXT_DROPOUT = 0.15


@dataclass
class Losses:
    """Of one batch."""

    text: Tensor
    pauses: Tensor
    states: Tensor
    phonemes: Tensor
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
        self.states = _head(2 * dim, STATES)
        self.phonemes = _head(2 * dim, 2 * Pronunciations.CLASSES)
        self._shape = shape

    def embeddings(self, parts: list[Tensor]) -> Tensor:
        """What the codebooks say, as the language model hears it: a frame later."""
        embedded = self.semantic(parts[0]) + self.acoustic(parts[1])
        first = self.no_audio.expand(len(embedded), 1, -1)
        return torch.cat([first, embedded[:, :-1]], 1)

    def losses(self, batch: dict[str, Tensor], *, levels: int | None) -> tuple[Losses, Tensor]:
        """Losses with `levels` codebooks; none of them and no language model for None. Logits."""
        latents = self.codec.latents(batch["features"])
        if levels is None:
            parts, commitment = self.codec.project(latents), latents.new_zeros(())
            text_loss, pauses_loss = latents.new_zeros(()), latents.new_zeros(())
            logits = latents.new_zeros(*batch["text"].shape, self._shape.lm.text_out_vocab_size)
        else:
            parts, commitment, _ = self.codec.quantize(latents, levels=levels)
            text = before(batch["text"], self._shape, self.training)
            logits, pauses = self.lm(self.embeddings(parts), text)
            text_loss = F.cross_entropy(logits.flatten(0, 1), batch["text"].flatten())
            pauses_loss = F.cross_entropy(pauses.flatten(0, 2), batch["pauses"].flatten())
        heard = torch.cat(parts, -1)
        phonemes = self.phonemes(heard).unflatten(-1, (2, Pronunciations.CLASSES))
        states = self.states(heard)
        losses = Losses(
            text=text_loss,
            pauses=pauses_loss,
            states=F.cross_entropy(states.flatten(0, 1), batch["states"].flatten()),
            phonemes=F.cross_entropy(phonemes.flatten(0, 2), batch["phonemes"].flatten()),
            commitment=commitment,
        )
        return losses, states if levels is None else logits


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 256), nn.GELU(), nn.Linear(256, outputs))


def before(text: Tensor, shape: Shape, dropout: bool) -> Tensor:
    """The token each step is told it said last; the first one hears the start token."""
    start = torch.full_like(text[:, :1], shape.lm.text_in_vocab_size - 1)
    previous = text[:, :-1]
    if dropout:
        previous = previous.masked_fill(torch.rand(previous.shape) < _TEXT_DROPOUT, TEXT_PADDING)
    return torch.cat([start, previous], 1)


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a warm-up, then half a cosine down to a hundredth."""
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    done = (step - _WARM_UP_STEPS) / (steps - _WARM_UP_STEPS)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def accuracy(logits: Tensor, classes: Tensor, least: int) -> float:
    """Share of the places with at least class `least` where that class is the likeliest."""
    due = classes >= least
    return float((logits.argmax(-1) == classes)[due].float().mean())


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


def train(
    model: Transcriber, streams: Streams, steps: int, rate: float, levels: int | None
) -> None:
    """Some steps with up to `levels` codebooks, or with the encoder and the small heads alone."""
    optimizer, averages, started = optimiser(model, rate), None, time.monotonic()
    order = torch.randperm(len(streams))
    for step in range(steps):
        first = step * _BATCH % (len(streams) - _BATCH)
        if first < _BATCH:
            order = torch.randperm(len(streams))
        batch = streams.batch(order[first : first + _BATCH])
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, steps)
        # Few codebooks now and then, so that the first ones say what matters most.
        used = (
            None if levels is None else random.choice([levels, levels, random.randint(1, levels)])
        )
        losses, logits = model.losses(batch, levels=used)
        optimizer.zero_grad()
        losses.total().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        what, least = ("states", 2) if levels is None else ("text", FIRST_WORD_TOKEN)
        right = accuracy(logits, batch[what], least)
        numbers = np.array([loss.item() for loss in vars(losses).values()] + [right])
        averages = numbers if averages is None else 0.95 * averages + 0.05 * numbers
        if step % 50 == 0:
            names = (*vars(losses), f"{what} right")
            shown = " ".join(f"{n} {v:.3f}" for n, v in zip(names, averages, strict=True))
            print(f"{step} {time.monotonic() - started:.0f}s {shown}", flush=True)


def main() -> None:
    """Trains and writes `encoder.pt`, then `codec.pt`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seed_everything(_SEED)
    shape = shapes.load()
    model, streams = Transcriber(shape), Streams(arguments.features)
    encoder = arguments.out / "encoder.pt"
    if encoder.exists():
        model.load_state_dict(torch.load(encoder))
    else:
        train(model, streams, arguments.encoder_steps, arguments.rate, None)
        torch.save(model.state_dict(), encoder)
    train(model, streams, arguments.steps, arguments.rate, shape.lm.audio_codebooks)
    torch.save(model.state_dict(), arguments.out / "codec.pt")


if __name__ == "__main__":
    main()
