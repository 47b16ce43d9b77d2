"""How errors and warnings look: what happened on one line, what to do on the next."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from moshi_ctl.errors import MoshiCtlError


def console() -> Console:
    """Standard output, for text whose lines stay lines."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def fail(error: MoshiCtlError) -> None:
    """Writes an error to standard error."""
    _write("error", "bold red", str(error), error.hint)


def warn(message: str, *, hint: str | None = None) -> None:
    """Writes a warning to standard error."""
    _write("warning", "bold yellow", message, hint)


def one_line(text: str) -> str:
    """Text whose lines, and whatever else would move the cursor, are taken out."""
    joined = " ".join(text.split())
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in joined)


def _write(label: str, style: str, message: str, hint: str | None) -> None:
    # soft_wrap: a line stays one line, so that it can be searched for.
    console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
    console.print(Text.assemble((f"{label}:", style), " ", message))
    if hint:
        console.print(Text.assemble(("hint:", "bold cyan"), " ", hint))
