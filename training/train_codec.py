"""First stage: the codec, alone and then with a language model behind it.

    python -m training.train_codec FEATURES OUT

At first the encoder learns which phoneme and which part of which word is spoken, from small heads
that teach it in every frame, in easy streams before noisy ones. Then the quantizer and the language
model join: what the codebooks say has to be worth something to who transcribes, so the language
model's loss reaches the encoder through the quantizer (straight-through gradients).
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
from training.features import Streams, elsewhere
from training.model import Codec, LanguageModel
from training.shape import TEXT_PADDING, Shape
from training.streams import FIRST_WORD_TOKEN, STATES, Pronunciations

_SEED = 7
_BATCH = 4
_WARM_UP_STEPS = 100
_WEIGHTS = {"text": 1.0, "pauses": 0.3, "states": 0.5, "phonemes": 0.5, "commitment": 1.0}
# Silence is half of what there is, and what word begins nobody knows before it is spoken.
_SILENCE_WEIGHT, _THIRD_WEIGHTS = 0.2, (0.3, 1.0, 2.0)
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
        states, phonemes = torch.ones(STATES), torch.ones(Pronunciations.CLASSES)
        states[0] = phonemes[0] = _SILENCE_WEIGHT
        states[2:] = torch.tensor(_THIRD_WEIGHTS).repeat(len(states[2:]) // 3)
        self.register_buffer("_state_weights", states, persistent=False)
        self.register_buffer("_phoneme_weights", phonemes, persistent=False)
        self._shape = shape

    def embeddings(self, parts: list[Tensor]) -> Tensor:
        """What the codebooks say, as the language model hears it: a frame later."""
        embedded = self.semantic(parts[0]) + self.acoustic(parts[1])
        first = self.no_audio.expand(len(embedded), 1, -1)
        return torch.cat([first, embedded[:, :-1]], 1)

    def losses(self, batch: dict[str, Tensor], *, levels: int | None) -> tuple[Losses, Tensor]:
        """Losses with `levels` codebooks; none of them and no language model for None. Logits."""
        latents = self.codec(batch["loudness"])
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
            states=F.cross_entropy(
                states.flatten(0, 1), batch["states"].flatten(), self._state_weights
            ),
            phonemes=F.cross_entropy(
                phonemes.flatten(0, 2), batch["phonemes"].flatten(), self._phoneme_weights
            ),
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
    """Share of the places with at least class `least` where that is the likeliest; 1 of none."""
    due = classes >= least
    right = (logits.argmax(-1) == classes)[due]
    return float(right.float().mean()) if len(right) else 1.0


def optimiser(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW, with decay for matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def half_the_bits() -> torch.autocast:
    """Matrix products in bfloat16 where the processor has instructions for them."""
    can = torch.cpu.get_capabilities()
    has_instructions = any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=has_instructions)


def seed_everything(seed: int) -> None:
    """Makes what follows the same each time: dice, and the order of sums that threads share."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


@dataclass(frozen=True)
class Stage:
    """A part of the training, which leaves a file of its own."""

    name: str
    steps: int
    rate: float
    easy: bool
    """Whether it hears easy streams only."""
    codebooks: bool
    """Whether the quantizer and the language model take part."""
    norms_learnt: float = 1.0
    """The share of its steps after which the codec normalises as it will when it is finished, and
    no longer by what happens to be in the batch."""


# What two cores do in an hour and three quarters.
STAGES = (
    Stage("easy", 3000, 1.5e-3, easy=True, codebooks=False),
    Stage("encoder", 8000, 1e-3, easy=False, codebooks=False),
    Stage("joint", 26_000, 1e-3, easy=False, codebooks=True, norms_learnt=0.6),
    Stage("codec", 6000, 5e-4, easy=False, codebooks=True, norms_learnt=0.0),
)


def train(model: Transcriber, streams: Streams, stage: Stage, codebooks: int) -> None:
    """Trains one stage."""
    optimizer, averages, started = optimiser(model, stage.rate), None, time.monotonic()
    count = streams.easy if stage.easy else len(streams)
    what, least = ("text", FIRST_WORD_TOKEN) if stage.codebooks else ("states", 2)
    for step in range(stage.steps):
        first = step * _BATCH % (count // _BATCH * _BATCH)
        if first == 0:
            order = torch.randperm(count)
        batch = streams.batch(order[first : first + _BATCH])
        noises = None if stage.easy else streams.noises(_BATCH)
        batch["loudness"] = elsewhere(batch["loudness"], noises)
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * schedule(step, stage.steps)
        model.codec.norms.train(step < stage.norms_learnt * stage.steps)
        levels = None
        if stage.codebooks:
            # Few codebooks now and then, so that the first ones say what matters most.
            levels = random.choice([codebooks, codebooks, random.randint(1, codebooks)])
        with half_the_bits():
            losses, logits = model.losses(batch, levels=levels)
        optimizer.zero_grad()
        losses.total().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right = accuracy(logits, batch[what], least)
        numbers = np.array([loss.item() for loss in vars(losses).values()] + [right])
        averages = numbers if averages is None else 0.95 * averages + 0.05 * numbers
        if step % 50 == 0:
            names = (*vars(losses), f"{what} right")
            shown = " ".join(f"{n} {v:.3f}" for n, v in zip(names, averages, strict=True))
            print(f"{stage.name} {step} {time.monotonic() - started:.0f}s {shown}", flush=True)


def main() -> None:
    """Trains all stages; one whose file is there is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = shapes.load()
    seed_everything(_SEED)
    model, streams = Transcriber(shape), Streams(arguments.features)
    model.codec.compile()
    model.lm.compile()
    for number, stage in enumerate(STAGES):
        seed_everything(_SEED + number)
        file = arguments.out / f"{stage.name}.pt"
        if not file.exists():
            train(model, streams, stage, shape.lm.audio_codebooks)
            torch.save(model.state_dict(), file)
        model.load_state_dict(torch.load(file))


if __name__ == "__main__":
    main()
