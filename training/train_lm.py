"""Second stage: the language model on the tokens of the finished codec.

    python -m training.train_lm FEATURES OUT

The codec is rounded to the precision of its file and frozen; audio tokens get embeddings of their
own, which begin as the products of codebook entries that the first stage learnt with. Every stream
is encoded a few times, heard elsewhere each time, and learnt from more often than that.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import shape as shapes
from training.features import Streams, elsewhere
from training.model import Codec, LanguageModel
from training.shape import TEXT_PADDING, Shape
from training.streams import FIRST_WORD_TOKEN
from training.train_codec import (
    Transcriber,
    accuracy,
    before,
    half_the_bits,
    optimiser,
    schedule,
    seed_everything,
)

_SEED = 11
_BATCH = 32
_HEARD = 2
_PAUSES_WEIGHT = 0.3
# Missing a word is worse than saying one in vain, and silence is likelier by far: padding is given
# so much while it learns, which it lacks afterwards (logit adjustment, arXiv:2007.07314).
_PADDING_ADVANTAGE = 0.7
# Tokens of noisy audio change easily.
_AUDIO_DROPOUT = 0.02


@torch.no_grad()
def with_embeddings(model: Transcriber, shape: Shape) -> LanguageModel:
    """The language model with an embedding for each token of each codebook."""
    lm, bins = model.lm, shape.codec.quantizer_bins
    for k, (embedding, codebook) in enumerate(zip(lm.emb, model.codec.codebooks(), strict=True)):
        projection = model.semantic if k == 0 else model.acoustic
        embedding.weight[:bins] = projection(codebook.entries)
        embedding.weight[bins] = model.no_audio if k == 0 else 0.0
    return lm


@torch.no_grad()
def encode(codec: Codec, streams: Streams, codebooks: int) -> dict[str, Tensor]:
    """Audio tokens and targets of all streams, one after the other, `_HEARD` times."""
    parts: dict[str, list[Tensor]] = {"audio": [], "text": [], "pauses": []}
    for indices in torch.arange(len(streams)).repeat(_HEARD).split(_BATCH):
        batch = streams.batch(indices)
        loudness = elsewhere(batch["loudness"], streams.noises(len(indices)))
        tokens = codec.quantize(codec(loudness), levels=codebooks)[2]
        parts["audio"].append(tokens.short())
        parts["text"].append(batch["text"].short())
        parts["pauses"].append(batch["pauses"].to(torch.int8))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def heard(tokens: Tensor, shape: Shape, dropout: bool) -> Tensor:
    """The audio tokens of the frame before each step, B × T × K; none before the first."""
    none = torch.full_like(tokens[:, :1], shape.lm.audio_vocab_size - 1)
    tokens = torch.cat([none, tokens[:, :-1]], 1)
    if dropout:
        others = torch.randint_like(tokens, shape.codec.quantizer_bins)
        tokens = torch.where(torch.rand(tokens.shape) < _AUDIO_DROPOUT, others, tokens)
    return tokens


def losses(
    lm: LanguageModel, batch: dict[str, Tensor], shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the text and of the heads; the text's logits."""
    audio = lm.embed_audio(heard(batch["audio"], shape, lm.training))
    logits, pauses = lm(audio, before(batch["text"], shape, lm.training))
    advantage = _PADDING_ADVANTAGE * F.one_hot(torch.tensor(TEXT_PADDING), logits.shape[-1])
    text = F.cross_entropy((logits + advantage).flatten(0, 1), batch["text"].flatten())
    return text, F.cross_entropy(pauses.flatten(0, 2), batch["pauses"].flatten()), logits


def main() -> None:
    """Reads `OUT/codec.pt`, trains and writes `OUT/lm.pt`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=6e-4)
    arguments = parser.parse_args()
    seed_everything(_SEED)
    shape = shapes.load()
    model = Transcriber(shape)
    model.load_state_dict(torch.load(arguments.out / "codec.pt"))
    model.codec.finish()
    lm = with_embeddings(model, shape).train()
    lm.compile()
    started = time.monotonic()
    data = encode(model.codec, Streams(arguments.features), shape.lm.audio_codebooks)
    print(f"{len(data['text'])} streams encoded in {time.monotonic() - started:.0f} s", flush=True)
    optimizer = optimiser(lm, arguments.rate)
    order, averages = torch.randperm(len(data["text"])), None
    for step in range(arguments.steps):
        first = step * _BATCH % len(order)
        if first == 0:
            order = torch.randperm(len(order))
        batch = {
            name: tensor[order[first : first + _BATCH]].long() for name, tensor in data.items()
        }
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * schedule(step, arguments.steps)
        with half_the_bits():
            text, pauses, logits = losses(lm, batch, shape)
        optimizer.zero_grad()
        (text + _PAUSES_WEIGHT * pauses).backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        numbers = np.array(
            [text.item(), pauses.item(), accuracy(logits, batch["text"], FIRST_WORD_TOKEN)]
        )
        averages = numbers if averages is None else 0.9 * averages + 0.1 * numbers
        if step % 20 == 0:
            seconds = time.monotonic() - started
            print(f"{step} {seconds:.0f}s text, pauses, words: {averages.round(3)}", flush=True)
    torch.save(lm.state_dict(), arguments.out / "lm.pt")


if __name__ == "__main__":
    main()
