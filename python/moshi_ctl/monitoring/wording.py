"""How numbers, spans of time and what became of a server are put into words."""

from __future__ import annotations

from typing import Final

from moshi_ctl.monitoring.histograms import Histogram
from moshi_ctl.monitoring.scrapes import Outage
from moshi_ctl.monitoring.server_metrics import Warmup, WarmupResult
from moshi_ctl.report import one_line
from moshi_ctl.units import counted

_UNKNOWN: Final = "-"


def describe_outage(outage: Outage) -> str:
    """Since when a server does not answer, and why."""
    return f"not reachable for {duration(outage.lasts_s)}: {one_line(outage.reason)}"


def describe_warmup(warmup: Warmup | None) -> str:
    """How a module's warm-up went, in a few words."""
    if warmup is None:
        return "the server says nothing of its warm-up"
    match warmup.result:
        case WarmupResult.SKIPPED:
            return "skipped (warm-up is off)"
        case WarmupResult.PENDING:
            return "not warmed up yet"
        case WarmupResult.FAILED:
            said = "failed"
        case WarmupResult.SUCCEEDED:
            said = "warmed up"
    if warmup.duration_s is None or not warmup.runs:
        return said
    if warmup.runs == 1:
        return f"{said} {'after' if said == 'failed' else 'in'} {seconds(warmup.duration_s)}"
    runs = counted(int(warmup.runs), "run")
    return f"{said}; {runs} of {seconds(warmup.duration_s / warmup.runs)} on average"


def duration(time_s: float) -> str:
    """A time span in the two units that matter."""
    whole = int(time_s)
    for unit_s, unit, below_s, below in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // below_s} {below}"
    return f"{whole} s"


def seconds(time_s: float) -> str:
    """A short time with three digits or fewer."""
    if time_s >= 100:
        return f"{time_s:.0f} s"
    if time_s >= 1:
        return f"{time_s:.2f} s"
    milliseconds = time_s * 1000
    return f"{milliseconds:.{0 if milliseconds >= 10 else 1}f} ms"


def count(number: float) -> str:
    """A number of things."""
    return f"{number:,.0f}"


def amount(number: float, interval_s: float | None, unit: str = "") -> str:
    """How many there were, or how many per second of an interval."""
    said = f" {unit}" if unit else ""
    if interval_s is None:
        return f"{count(number)}{said}"
    return f"{number / interval_s:,.1f}{said}/s"


def percent(share: float) -> str:
    """A share with as many digits as are worth reading; one that is not 0 never looks like it."""
    value = share * 100
    if value >= 10 or value == 0:
        return f"{value:.0f} %"
    if value < 0.01:
        return "< 0.01 %"
    return f"{value:.2g} %"


def quantile(values: Histogram, q: float, name: str = "") -> str:
    """A quantile of times; one beyond the largest bound of the histogram is more than that."""
    value = values.quantile(q)
    if value is None:
        return f"{name}p{q * 100:.0f} {_UNKNOWN}"
    beyond = ">" if value == values.largest_bound else ""
    return f"{name}p{q * 100:.0f} {beyond}{seconds(value)}"


def spelled(name: str) -> str:
    """The value of a label, as a word."""
    return one_line(name).replace("_", " ")
