"""`moshi-ctl metrics`: shows what a server measures, once or until Ctrl-C."""

from __future__ import annotations

import io
import json
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final, Protocol

from rich.console import Console
from rich.live import Live

from moshi_ctl.errors import ClientError
from moshi_ctl.monitoring import documents, scrapes
from moshi_ctl.monitoring.fetching import UnreachableError
from moshi_ctl.monitoring.scrapes import Outage, Scrape
from moshi_ctl.monitoring.view import View, compact_line
from moshi_ctl.monitoring.wording import describe_outage

DEFAULT_EVERY_S: Final = 2.0
LEAST_EVERY_S: Final = 0.1
MOST_EVERY_S: Final = 86_400.0


def show(url: str, *, as_json: bool, trust: ssl.SSLContext | None = None) -> None:
    """Asks a server once and prints what it says.

    Raises:
        ClientError: When it does not answer as it should.
    """
    scrape = scrapes.scrape(url, trust=trust)
    if as_json:
        print(json.dumps(documents.of_scrape(scrape), indent=2, allow_nan=False))
    else:
        console().print(View(scrape))


def watch(url: str, *, every_s: float, as_json: bool, trust: ssl.SSLContext | None = None) -> None:
    """Asks a server again and again until Ctrl-C, whether it answers or not.

    Raises:
        ClientError: When what answers at first is no server of ours; what happens later is shown.
    """
    try:
        with _screen(console(), as_json=as_json) as screen:
            for seen in _observations(url, every_s, trust):
                screen.show(seen)
    except KeyboardInterrupt:
        pass  # It is how a watch ends.


def console() -> Console:
    """Standard output, which can show whatever a server calls its modules and cards."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, markup=False)


def _observations(url: str, every_s: float, trust: ssl.SSLContext | None) -> Iterator[View]:
    last: Scrape | None = None
    silent_since_s: float | None = None
    while True:
        started_s = time.monotonic()
        try:
            last = scrapes.scrape(url, last, trust=trust)
        except ClientError as error:
            unreachable = isinstance(error, UnreachableError)
            if last is None and silent_since_s is None and not unreachable:
                raise
            if silent_since_s is None:
                silent_since_s = started_s
            reason = error.reason if isinstance(error, UnreachableError) else error.message
            yield View(last, Outage(url, reason, error.hint, time.monotonic() - silent_since_s))
        else:
            silent_since_s = None
            yield View(last)
        time.sleep(max(0.0, started_s + every_s - time.monotonic()))


class _Screen(Protocol):
    """Where observations are shown."""

    def show(self, seen: View) -> None: ...


@contextmanager
def _screen(console: Console, *, as_json: bool) -> Iterator[_Screen]:
    if as_json:
        yield _Json()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines()
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield _Picture(live)


class _Json:
    """A document a line."""

    def show(self, seen: View) -> None:
        if seen.outage is not None:
            document = documents.of_outage(seen.outage, time.time())
        elif seen.scrape is not None:
            document = documents.of_scrape(seen.scrape)
        else:
            return
        print(json.dumps(document, allow_nan=False), flush=True)


class _Lines:
    """A line of the most important numbers each time."""

    def show(self, seen: View) -> None:
        clock = datetime.now().astimezone().strftime("%H:%M:%S")
        if seen.outage is not None:
            print(f"{clock} {describe_outage(seen.outage)}", flush=True)
        elif seen.scrape is not None:
            print(f"{clock} {compact_line(seen.scrape)}", flush=True)


class _Picture:
    """One picture, drawn anew each time."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, seen: View) -> None:
        self._live.update(seen, refresh=True)
