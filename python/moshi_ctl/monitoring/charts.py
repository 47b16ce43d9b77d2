"""Bars and histograms in text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from rich.text import Text

from moshi_ctl.monitoring.histograms import Bucket, Histogram

_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
# Where the output's encoding has only letters.
_PLAIN_EIGHTHS: Final = " ...::###"
_MOST_CELL_WIDTH: Final = 4
_MORE: Final = "more"
# The line with a blank beside it, and what the last label is longer than its column.
_MARGIN: Final = 5


@dataclass(frozen=True)
class Marks:
    """What charts are drawn with."""

    full: str
    empty: str
    line: str
    base: str
    eighths: str


FINE: Final = Marks("█", "░", "┊", "─", _EIGHTHS)
PLAIN: Final = Marks("#", ".", "|", "-", _PLAIN_EIGHTHS)


def share_bar(share: float, width: int, marks: Marks, style: str) -> Text:
    """A bar of which `share` is filled, and something of it as soon as there is anything."""
    filled = min(width, math.ceil(share * width)) if share > 0 else 0
    bar = Text("[")
    bar.append(marks.full * filled, style)
    bar.append(marks.empty * (width - filled), "dim")
    return bar.append("]")


def histogram(
    values: Histogram,
    *,
    width: int,
    height: int,
    marks: Marks,
    line_at: float,
    label: Callable[[float], str],
) -> list[Text]:
    """Columns of a histogram, one a bucket, with a line between two of them and bounds below.

    The tallest column is the fullest bucket; one that holds anything is never empty.

    Args:
        values: What to draw.
        width: Characters there are at most.
        height: Lines of the columns.
        marks: What to draw with.
        line_at: The bound where the line is; values above it are red.
        label: How a bound is written, in three letters or so.
    """
    parts = _merged(list(values.buckets()), width - _MARGIN, keep=line_at)
    if not parts:
        return []
    cell = max(1, min(_MOST_CELL_WIDTH, (width - _MARGIN) // len(parts)))
    tallest = max(part.count for part in parts) or 1
    has_line = any(part.above == line_at for part in parts)
    rows = [Text() for _ in range(height)]
    labels: list[tuple[int, str, bool]] = []
    at = 0
    for part in parts:
        if part.above == line_at:
            for row in rows:
                row.append(f"{marks.line} "[: 1 + (cell > 1)], "bold")
            at += 1 + (cell > 1)
        style = "red" if has_line and part.above >= line_at else "green"
        eighths = math.ceil(part.count / tallest * height * 8)
        for i, row in enumerate(reversed(rows)):
            mark = marks.eighths[max(0, min(8, eighths - 8 * i))]
            row.append((mark * max(1, cell - 1)).ljust(cell), style)
        labels.append(
            (at, _MORE if math.isinf(part.up_to) else label(part.up_to), part.up_to == line_at)
        )
        at += cell
    for row in rows:
        row.rstrip()
    base = Text(marks.base * at, "dim")
    return [*rows, base, _written_below(labels)]


def _merged(buckets: Sequence[Bucket], most: int, keep: float) -> list[Bucket]:
    """Neighbours put together until there are at most `most`, but not across the bound `keep`."""
    group = 1
    merged = list(buckets)
    while len(merged) > most:
        group += 1
        merged = [
            Bucket(part[0].above, part[-1].up_to, sum(bucket.count for bucket in part))
            for _, side in groupby(buckets, key=lambda bucket: bucket.up_to <= keep)
            for part in _chunks(list(side), group)
        ]
        if group > len(buckets):
            break
    return merged


def _chunks(items: list[Bucket], size: int) -> Iterable[list[Bucket]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _written_below(labels: Sequence[tuple[int, str, bool]]) -> Text:
    """As many labels as there is room for; those that matter and the last are there first."""
    taken: dict[int, str] = {}
    order = sorted(range(len(labels)), key=lambda i: (not labels[i][2], i != len(labels) - 1, i))
    for i in order:
        start, text, _ = labels[i]
        wanted = range(start - 1, start + len(text) + 1)
        if not any(place in taken for place in wanted):
            taken.update({start + k: letter for k, letter in enumerate(text)})
    end = max(taken, default=-1) + 1
    return Text("".join(taken.get(i, " ") for i in range(end)), "dim")
