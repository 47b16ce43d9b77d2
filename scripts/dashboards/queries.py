"""PromQL as the panels need it, narrowed by the variables at the top of a dashboard."""

from __future__ import annotations

from typing import Final

_OF_INSTANCE: Final = 'job=~"$job", instance=~"$instance"'
_OF_MODULE: Final = f'{_OF_INSTANCE}, module=~"$module"'

SERIES: Final = "{{instance}} {{module}}"
"""The legend of what exists once per module of a worker."""


def of_instance(metric: str, *matchers: str) -> str:
    """Series that have no module: of the process, the machine or the scrape."""
    return _selected(metric, _OF_INSTANCE, matchers)


def of_module(metric: str, *matchers: str) -> str:
    """Series of the chosen modules."""
    return _selected(metric, _OF_MODULE, matchers)


def rate(selector: str) -> str:
    """Per second, over as little as the panel's resolution and the scrapes allow."""
    return f"rate({selector}[$__rate_interval])"


def increase(selector: str, window: str = "$__rate_interval") -> str:
    """How often, within a window."""
    return f"increase({selector}[{window}])"


def quantile(q: float, histogram: str, *, by: str = "job, instance, module, le") -> str:
    """A quantile of a module's histogram; no value where nothing was observed."""
    buckets = rate(of_module(f"{histogram}_bucket"))
    return f"histogram_quantile({q}, sum by ({by}) ({buckets}))"


def nameless(selector: str) -> str:
    """The same series without the metric's name, for tables: lines are joined by their labels."""
    return f"{selector} + 0"


def or_zero(expression: str) -> str:
    """0 where a sum or count has nothing to add up."""
    return f"{expression} or vector(0)"


def _selected(metric: str, matchers: str, more: tuple[str, ...]) -> str:
    return f"{metric}{{{', '.join((matchers, *more))}}}"
