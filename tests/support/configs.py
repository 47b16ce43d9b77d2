"""Configurations to change and get wrong."""

from __future__ import annotations

from pathlib import Path

from moshi_ctl import shipped


def demo(folder: Path, *changes: tuple[str, str]) -> Path:
    """Writes the shipped demo configuration to `folder`, with texts replaced by others."""
    text = shipped.path_of("demo").read_text()
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after, 1)
    path = folder / "config.toml"
    path.write_text(text)
    return path
