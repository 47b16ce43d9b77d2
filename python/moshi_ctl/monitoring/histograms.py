"""Histograms as Prometheus counts them, and what can be told of the values behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Bucket:
    """Values above one bound, up to another and including it.

    Attributes:
        above: The lower bound; -inf for the first bucket.
        up_to: The upper bound; inf for the last.
        count: How many.
    """

    above: float
    up_to: float
    count: float


@dataclass(frozen=True)
class Histogram:
    """How often values fell into which range.

    Attributes:
        bounds: Upper bounds, ascending; the last is inf in a complete histogram.
        cumulative: For each bound, how many values were at most that; never falling.
        count: How many values there were.
        sum: All of them together, in their unit.
    """

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    count: float
    sum: float

    @staticmethod
    def of(buckets: Iterable[tuple[float, float]], count: float, total: float) -> Histogram | None:
        """Makes one of pairs of upper bound and cumulative count, in any order.

        As PromQL does, buckets of one bound are added, and counts that fall are lifted to the one
        before: a scrape may come between two of the server's own additions.

        Returns:
            None where a count is negative or no number, so that nothing can be told.
        """
        counts: dict[float, float] = {}
        for bound, cumulative in buckets:
            counts[bound] = counts.get(bound, 0.0) + cumulative
        numbers = [count, *counts.values()]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return None
        if any(map(math.isnan, counts)):
            return None
        bounds = tuple(sorted(counts))
        cumulative_counts = tuple(accumulate((counts[bound] for bound in bounds), max))
        return Histogram(bounds, cumulative_counts, count, total)

    @property
    def mean(self) -> float | None:
        """The values' mean; None without values."""
        return self.sum / self.count if self.count and math.isfinite(self.sum) else None

    @property
    def largest_bound(self) -> float | None:
        """The largest finite bound: a quantile of this size says "at least so much"."""
        finite = [bound for bound in self.bounds if math.isfinite(bound)]
        return finite[-1] if finite else None

    def quantile(self, q: float) -> float | None:
        """Estimates the value that a share `q` of all values does not exceed.

        The same estimate as PromQL's `histogram_quantile`: values are taken to be spread evenly
        over their bucket, the lowest bucket to begin at 0 (unless its bound is not positive: then
        that bound is the answer), and where the quantile is beyond the largest finite bound, that
        bound is the answer.

        Args:
            q: From 0 to 1.

        Returns:
            None where `histogram_quantile` gives NaN: without values, without a bucket for inf,
            or with no other bucket.
        """
        if len(self.bounds) < 2 or self.bounds[-1] != math.inf or not self.cumulative[-1]:
            return None
        rank = q * self.cumulative[-1]
        finite = len(self.bounds) - 1
        at = next((i for i in range(finite) if self.cumulative[i] >= rank), finite)
        if at == finite:
            return self.bounds[finite - 1]
        if at == 0 and self.bounds[0] <= 0:
            return self.bounds[0]
        start, before = (self.bounds[at - 1], self.cumulative[at - 1]) if at else (0.0, 0.0)
        inside = self.cumulative[at] - before
        if not inside:
            return None
        return start + (self.bounds[at] - start) * (rank - before) / inside

    def buckets(self) -> Iterator[Bucket]:
        """What fell into each bucket alone."""
        above, before = -math.inf, 0.0
        for bound, cumulative in zip(self.bounds, self.cumulative, strict=True):
            yield Bucket(above, bound, cumulative - before)
            above, before = bound, cumulative

    def since(self, previous: Histogram | None) -> Histogram:
        """What was added since `previous`.

        A histogram whose count or any bucket is smaller than before was reset: it began again at
        zero, so all that it holds was added since. Its buckets are looked at together, because
        some of them may have grown beyond their old counts already.
        """
        if previous is None or previous.bounds != self.bounds or self._is_below(previous):
            return self
        # Lifted like any other: a scrape between two additions may have been lifted too.
        added = accumulate(_differences(self.cumulative, previous.cumulative), max)
        return Histogram(
            self.bounds, tuple(added), self.count - previous.count, self.sum - previous.sum
        )

    def _is_below(self, previous: Histogram) -> bool:
        return self.count < previous.count or any(
            now < before for now, before in zip(self.cumulative, previous.cumulative, strict=True)
        )


def _differences(now: Sequence[float], before: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(now, before, strict=True)]
