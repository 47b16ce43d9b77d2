"""Eight-bit files of language models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moshi_ctl import _native
from moshi_ctl.errors import UsageError
from moshi_ctl.units import counted, size


@dataclass(frozen=True)
class Quantized:
    """What became of a file.

    Attributes:
        quantized: Matrices that were quantized.
        kept: Tensors that stayed as they were.
        bytes_in: Size of the file read.
        bytes_out: Size of the file written.
    """

    quantized: int
    kept: int
    bytes_in: int
    bytes_out: int

    def __str__(self) -> str:
        return (
            f"{counted(self.quantized, 'matrix', 'matrices')} quantized, "
            f"{counted(self.kept, 'tensor')} kept, "
            f"{size(self.bytes_in)} -> {size(self.bytes_out)}"
        )


def run(source: Path, target: Path, *, overwrite: bool) -> Quantized:
    """Writes the language model in `source` to `target` with its matrices in eight bits.

    The file appears whole or not at all.

    Args:
        source: Safetensors or GGUF.
        target: GGUF.
        overwrite: Whether a file that is already there is replaced.

    Raises:
        UsageError: When `target` is `source`, or exists and is not to be replaced.
        ModelFileError: When `source` cannot be quantized or `target` cannot be written.
    """
    if target.exists():
        if source.exists() and target.samefile(source):
            raise UsageError(
                f"{source} cannot be quantized into itself",
                hint="name another file for the result",
            )
        if not overwrite:
            raise UsageError(f"{target} is already there", hint="add --force to replace it")
    return Quantized(**_native.quantize(source, target))
