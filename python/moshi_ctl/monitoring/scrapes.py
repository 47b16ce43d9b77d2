"""Asking a server for its metrics, once or again and again."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from moshi_ctl.errors import ClientError
from moshi_ctl.monitoring import exposition, fetching, server_metrics
from moshi_ctl.monitoring.fetching import UnreachableError
from moshi_ctl.monitoring.server_metrics import ServerMetrics

PATH: Final = "/metrics"
_OK: Final = 200
# What proxies say while the server behind them is away.
_NOT_NOW: Final = frozenset({502, 503, 504})
_NOT_OURS_HINT: Final = "check host and port; `moshi-ctl worker` serves on port 8080"


@dataclass(frozen=True)
class Scrape:
    """What a server said, and what of it happened since it was asked before.

    Attributes:
        url: The server's address.
        time_unix_s: When it was asked.
        monotonic_s: The same on a clock that nobody sets.
        metrics: What it said, since its start.
        previous: What it said before; None the first time.
    """

    url: str
    time_unix_s: float
    monotonic_s: float
    metrics: ServerMetrics
    previous: Scrape | None = None

    @cached_property
    def interval(self) -> ServerMetrics | None:
        """The metrics with counters and histograms as what was added since the previous scrape."""
        return self.metrics.since(self.previous.metrics) if self.previous else None

    @property
    def interval_s(self) -> float | None:
        """How long ago the previous scrape was."""
        return self.monotonic_s - self.previous.monotonic_s if self.previous else None

    @property
    def shown(self) -> ServerMetrics:
        """What happened in the interval, or since the server's start without one."""
        return self.interval or self.metrics

    @property
    def restarted(self) -> bool:
        """Whether the server is another process than at the previous scrape."""
        return self.previous is not None and self.metrics.is_another_process_than(
            self.previous.metrics
        )

    @property
    def cpu_cores(self) -> float | None:
        """How many processors were busy for the server in the interval, on average."""
        if self.interval is None or not self.interval_s or self.interval.process.cpu_s is None:
            return None
        return self.interval.process.cpu_s / self.interval_s


@dataclass(frozen=True)
class Outage:
    """A server that does not answer as it should.

    Attributes:
        url: The server's address.
        reason: Why, without the address.
        hint: What to do about it.
        lasts_s: For how long that has been so.
    """

    url: str
    reason: str
    hint: str | None
    lasts_s: float


def scrape(
    url: str,
    previous: Scrape | None = None,
    *,
    timeout_s: float = fetching.TIMEOUT_S,
    trust: ssl.SSLContext | None = None,
) -> Scrape:
    """Asks a server for its metrics.

    Args:
        url: The server's address, as `fetching.base_address` gives it.
        previous: What it said before, for `Scrape.interval`.
        timeout_s: What that may take.
        trust: Which certificates to trust, as `fetching.get` takes it.

    Raises:
        UnreachableError: When it does not answer.
        ClientError: When what answers there does not say what such a server says.
    """
    time_unix_s, monotonic_s = time.time(), time.monotonic()
    answer = fetching.get(f"{url}{PATH}", timeout_s=timeout_s, trust=trust)
    if answer.status in _NOT_NOW:
        raise UnreachableError(
            answer.place, f"HTTP {answer.status}", hint="see the log of the server, or of its proxy"
        )
    if answer.status != _OK:
        raise ClientError(
            f"{answer.place}: there are no metrics (HTTP {answer.status})",
            hint=_NOT_OURS_HINT if answer.status < 500 else "see the server's log",
        )
    try:
        exposed = exposition.parse(answer.body.decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        what = "not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ClientError(
            f"{answer.place}: what answers there are no metrics: {what}", hint=_NOT_OURS_HINT
        ) from error
    if not server_metrics.is_from_a_known_server(exposed):
        raise ClientError(
            f"{answer.place}: these are metrics, but neither moshi-ctl's nor Kyutai's",
            hint=_NOT_OURS_HINT,
        )
    metrics = server_metrics.read(exposed)
    # Without what came before it, or a watch would remember everything.
    before = replace(previous, previous=None) if previous else None
    return Scrape(url, time_unix_s, monotonic_s, metrics, before)
