"""The trained model as the files that the server loads.

    python -m training.export RUN FOLDER

Writes `codec.safetensors` and `model.safetensors`, 16 bits and Kyutai's tensor names, and
`tokenizer.model`, SentencePiece's format. `moshi-ctl quantize` then makes `model.gguf` of the
language model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as sentencepiece

from training import shape as shapes
from training.streams import FIRST_WORD_TOKEN
from training.train_codec import Transcriber
from training.vocabulary import WORDS

_SPECIAL_PIECES = ("<unk>", "<s>", "</s>", "<pad>")


def tokenizer() -> bytes:
    """A unigram model with a piece for every word."""
    model, piece = sentencepiece.ModelProto(), sentencepiece.ModelProto.SentencePiece
    for text in _SPECIAL_PIECES:
        kind = piece.UNKNOWN if text == "<unk>" else piece.CONTROL
        model.pieces.add(piece=text, score=0.0, type=kind)
    for word in WORDS:
        model.pieces.add(piece=f"\N{LOWER ONE EIGHTH BLOCK}{word}", score=-1.0, type=piece.NORMAL)
    trainer = model.trainer_spec
    trainer.model_type = trainer.UNIGRAM
    trainer.vocab_size = len(model.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = range(FIRST_WORD_TOKEN)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    return model.SerializeToString()


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="what the two stages of the training wrote")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = Transcriber(shapes.load())
    model.load_state_dict(torch.load(arguments.run / "codec.pt"))
    model.codec.finish()
    states = {
        "codec": model.codec.state_dict(),
        "model": torch.load(arguments.run / "lm.pt"),
    }
    for name, state in states.items():
        tensors = {key: value.half().contiguous() for key, value in state.items()}
        save_file(tensors, arguments.folder / f"{name}.safetensors")
    (arguments.folder / "tokenizer.model").write_bytes(tokenizer())


if __name__ == "__main__":
    main()
