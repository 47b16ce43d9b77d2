"""Which metrics there are, and which ones an expression asks for."""

from __future__ import annotations

import re

from moshi_ctl import _native

_HISTOGRAM_SUFFIXES = ("_bucket", "_sum", "_count")

# Strings, label lists, grouping and durations: what is not a metric although it may look like one.
_NOT_METRICS = re.compile(
    r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]'
    r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
)
_WORD = re.compile(r"(?<![\w:.])[a-zA-Z_][\w:]*(?!\s*\()(?![\w:])")
_OPERATORS = {"and", "or", "unless", "bool", "offset"}
_FUNCTIONS_WITHOUT_PARENTHESES = {"sum", "min", "max", "count", "avg"}


def series() -> set[str]:
    """The names of all series of a worker, a histogram's three parts among them."""
    names: set[str] = set()
    for metric in _native.metrics_table():
        if metric["kind"] == "histogram":
            names |= {metric["name"] + suffix for suffix in _HISTOGRAM_SUFFIXES}
        else:
            names.add(metric["name"])
    return names


def metrics_in(expr: str) -> set[str]:
    """The names of metrics in an expression."""
    words = set(_WORD.findall(_NOT_METRICS.sub(" ", expr)))
    return words - _OPERATORS - _FUNCTIONS_WITHOUT_PARENTHESES
