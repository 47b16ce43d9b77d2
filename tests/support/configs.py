"""Configurations to change and get wrong."""

from __future__ import annotations

import re
from pathlib import Path

from moshi_ctl import shipped


def tiny(folder: Path, *changes: tuple[str, str]) -> Path:
    """Writes the shipped configuration tiny-random to `folder`, with texts replaced by others."""
    text = shipped.path_of("tiny-random").read_text()
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after, 1)
    path = folder / "config.toml"
    path.write_text(text)
    return path


def slow_to_start(folder: Path) -> Path:
    """The tiny model with lanes and a context that take seconds to measure before it listens."""
    return tiny(folder, ("batch_size = 4", "batch_size = 64"), ("context = 100", "context = 1500"))


def shipped_copy(folder: Path, name: str, *lines: str, section: str = "") -> Path:
    """Writes a shipped configuration whose module says `lines`, with a section before it."""
    text = shipped.path_of(name).read_text()
    for line in lines:
        key = line.partition("=")[0].strip()
        text = re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
    head = "[modules.asr]\n"
    assert head in text
    text = text.replace(head, f"{section}\n{head}" + "".join(f"{line}\n" for line in lines))
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def two_modules(folder: Path, name: str, *lines: tuple[str, ...]) -> Path:
    """Writes a shipped configuration with a second module, `asr2`, and lines added to each."""
    first = shipped_copy(folder, name, *lines[0]).read_text()
    second = shipped_copy(folder, name, *lines[1]).read_text()
    second = second[second.index("[modules.asr]") :]
    second = second.replace("[modules.asr", "[modules.asr2").replace("asr-streaming", "asr2")
    path = folder / "two.toml"
    path.write_text(first + second)
    return path
