"""Which metrics there are, and which ones an expression asks for."""

from __future__ import annotations

import re
from typing import Any

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


def table() -> list[dict[str, Any]]:
    """The product's own table: name, kind, labels and help of each metric."""
    metrics: list[dict[str, Any]] = _native.metrics_table()
    return metrics


def names(metric: dict[str, Any]) -> set[str]:
    """What the series of a metric are called."""
    if metric["kind"] == "histogram":
        return {metric["name"] + suffix for suffix in _HISTOGRAM_SUFFIXES}
    return {metric["name"]}


def series() -> set[str]:
    """The names of all series of a worker."""
    return {name for metric in table() for name in names(metric)}


def metrics_in(expr: str) -> set[str]:
    """The names of metrics in an expression."""
    words = set(_WORD.findall(_NOT_METRICS.sub(" ", expr)))
    return words - _OPERATORS - _FUNCTIONS_WITHOUT_PARENTHESES
