"""The model's shape, read from the configuration that serves it: there it is written once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tomlkit

CONFIGURATION = Path(__file__).parents[1] / "python" / "moshi_ctl" / "configs" / "demo.toml"

SAMPLE_RATE_HZ = 24_000
FRAME_RATE_HZ = 12.5
FRAME_SAMPLES = 1_920
TEXT_PADDING, TEXT_END_OF_PADDING = 3, 0

# Each head says whether nobody has spoken for so long.
PAUSES_S = (0.24, 0.48, 0.72, 1.2)


@dataclass(frozen=True)
class Shape:
    """The parts of the `model` section, by their names there."""

    delay: int
    lm: SimpleNamespace
    transformer: SimpleNamespace
    codec: SimpleNamespace
    heads: SimpleNamespace

    @property
    def latents_per_frame(self) -> int:
        """Latents of the convolutional encoder in a frame."""
        stride = 1
        for ratio in self.codec.ratios:
            stride *= ratio
        return FRAME_SAMPLES // stride


def load(file: Path = CONFIGURATION) -> Shape:
    """Reads the `asr` module of a configuration."""
    module: dict[str, Any] = tomlkit.parse(file.read_text()).unwrap()["modules"]["asr"]
    model = module["model"]
    return Shape(
        delay=module["asr_delay_in_tokens"],
        lm=SimpleNamespace(**{k: v for k, v in model.items() if not isinstance(v, dict)}),
        transformer=SimpleNamespace(**model["transformer"]),
        codec=SimpleNamespace(**model["codec"]),
        heads=SimpleNamespace(**model["extra_heads"]),
    )
