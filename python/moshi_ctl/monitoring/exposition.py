"""The text that a server's `/metrics` answers with, as values that can be asked for by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from moshi_ctl.monitoring.histograms import Histogram
from moshi_ctl.report import one_line

# A line of a server's is a tenth of that. The parser takes time by the square of a line's length.
MAX_LINE_CHARS: Final = 8192

_BUCKET: Final = "_bucket"

Labels = frozenset[tuple[str, str]]


class ExpositionError(ValueError):
    """Text that is not in Prometheus' text format; the message says where."""


@dataclass(frozen=True)
class Exposition:
    """What a server says of itself at one moment.

    Numbers that are NaN or infinite say nothing and count as absent.

    Attributes:
        samples: By name and labels; the name of a counter ends in `_total`, whatever it is called.
    """

    samples: Mapping[str, Mapping[Labels, float]]

    def value(self, name: str, /, **labels: str) -> float | None:
        """The sample of this name and exactly these labels."""
        value = self.samples.get(name, {}).get(frozenset(labels.items()))
        return value if value is not None and math.isfinite(value) else None

    def total(self, name: str) -> float | None:
        """The sum of all samples of this name, whatever their labels; None without any."""
        values = [value for value in self.samples.get(name, {}).values() if math.isfinite(value)]
        return sum(values) if values else None

    def by_label(self, name: str, label: str, /, **others: str) -> dict[str, float]:
        """The samples of this name and the labels `others`, by the value of `label`."""
        found = {}
        for labels, value in self.samples.get(name, {}).items():
            named = dict(labels)
            key = named.pop(label, None)
            if key is not None and named == others and math.isfinite(value):
                found[key] = value
        return found

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each sample of this name."""
        return [dict(labels) for labels in self.samples.get(name, {})]

    def histogram(self, name: str, /, **labels: str) -> Histogram | None:
        """The histogram of this name and exactly these labels."""
        count = self.value(f"{name}_count", **labels)
        if count is None:
            return None
        buckets = [
            (_number(bound), value)
            for bound, value in self.by_label(f"{name}{_BUCKET}", "le", **labels).items()
        ]
        return Histogram.of(buckets, count, self.value(f"{name}_sum", **labels) or 0.0)


def parse(text: str) -> Exposition:
    """Reads Prometheus' text format.

    Where a sample is there twice, the first counts, as it does for Prometheus.

    Raises:
        ExpositionError: When it is something else, or ends in the middle of a line.
    """
    if text and not text.endswith("\n"):
        raise ExpositionError("it ends in the middle of a line")
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE_CHARS:
            raise ExpositionError(f"line {number} has {len(line):,} characters")
    try:
        return _collected(text_string_to_metric_families(text))
    # The parser checks little by itself, and stumbles over what it did not expect.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ExpositionError(f"not Prometheus' text format: {_brief(str(error))}") from error


def _collected(families: Iterable[Metric]) -> Exposition:
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in families:
        for sample in family.samples:
            samples[sample.name].setdefault(frozenset(sample.labels.items()), _number(sample.value))
    return Exposition(dict(samples))


def _number(value: str | float) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):  # a bound that is none; a whole number of 400 digits
        return math.nan


def _brief(text: str) -> str:
    """What the parser complains of, which holds what the server said."""
    most = 100
    return one_line(text if len(text) <= most else f"{text[:most]}...")
