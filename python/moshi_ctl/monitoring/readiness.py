"""`moshi-ctl warmup`: whether a server is ready, and how its models were warmed up."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from moshi_ctl.errors import ClientError, MoshiCtlError
from moshi_ctl.monitoring import documents, fetching, scrapes
from moshi_ctl.monitoring.server_metrics import ModuleMetrics, WarmupResult
from moshi_ctl.monitoring.wording import describe_warmup
from moshi_ctl.report import one_line

DEFAULT_TIMEOUT_S: Final = 300.0
MOST_TIMEOUT_S: Final = 7 * 86_400.0

_READY_PATH: Final = "/health/ready"
_LIVE_PATH: Final = "/health/live"
# Kyutai's server has no health routes; it answers this one as soon as its models are loaded.
_BUILD_INFO_PATH: Final = "/api/build_info"
_POLL_S: Final = 0.5
_OK: Final = 200
_NOT_FOUND: Final = 404
_UNAVAILABLE: Final = 503
_NOT_OURS_HINT: Final = "check host and port; `moshi-ctl worker` serves on port 8080"


class State(str, Enum):
    """How far a server is."""

    READY = "ready"
    NOT_READY = "not ready"
    DEAD = "dead"


@dataclass(frozen=True)
class Look:
    """What was seen of a server at one moment.

    Attributes:
        state: How far it is.
        reasons: Why it is not ready, in its words or ours.
    """

    state: State
    reasons: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """The reasons on one line."""
        return one_line("; ".join(self.reasons)) or "it gives no reason"


@dataclass(frozen=True)
class Outcome:
    """What came of looking at a server, or of waiting for it.

    Attributes:
        url: The server's address.
        waited_s: How long that took.
        look: What was seen last.
        modules: What the server says of each; empty where it does not, or is not ready.
        note: What keeps it from telling more of its warm-up, if anything.
    """

    url: str
    waited_s: float
    look: Look
    modules: tuple[ModuleMetrics, ...] = ()
    note: str | None = None

    @property
    def bad_modules(self) -> tuple[ModuleMetrics, ...]:
        """The modules whose warm-up failed or has not been."""
        bad = (WarmupResult.FAILED, WarmupResult.PENDING)
        return tuple(each for each in self.modules if each.warmup and each.warmup.result in bad)


def run(
    url: str, *, wait_s: float | None, as_json: bool, trust: ssl.SSLContext | None = None
) -> None:
    """Looks at a server, or waits for it, and prints how its models were warmed up.

    Args:
        url: The server's address, as `fetching.base_address` gives it.
        wait_s: How long to wait for it; None looks once.
        as_json: Prints one JSON object.
        trust: Which certificates to trust; the system's if None.

    Raises:
        ClientError: When it is not ready in time, dead, or a warm-up failed; after printing.
    """
    began_s = time.monotonic()
    with _spinner(url, shown=wait_s is not None) as tell:
        last = look(url, trust=trust) if wait_s is None else wait(url, wait_s, tell, trust=trust)
    outcome = _outcome(url, last, time.monotonic() - began_s, trust)
    if as_json:
        print(json.dumps(_document(outcome), indent=2, allow_nan=False))
    else:
        for line in _lines(outcome):
            print(line)
    problem = _problem(outcome, wait_s)
    if problem is not None:
        raise problem


def look(
    url: str,
    *,
    timeout_s: float = fetching.TIMEOUT_S,
    trust: ssl.SSLContext | None = None,
) -> Look:
    """Looks once.

    Raises:
        ClientError: When what answers there is no server of ours, which waiting does not change.
    """
    try:
        return _look(url, timeout_s, trust)
    except fetching.UnreachableError as error:
        return Look(State.NOT_READY, (error.reason,))


def wait(
    url: str,
    wait_s: float,
    tell: Callable[[Look], None],
    *,
    trust: ssl.SSLContext | None = None,
) -> Look:
    """Looks until the server is ready or dead, or the time is over.

    Args:
        url: The server's address.
        wait_s: How long to wait.
        tell: Called with what is seen each time.
        trust: Which certificates to trust; the system's if None.

    Raises:
        ClientError: When what answers there is no server of ours.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        left_s = deadline_s - time.monotonic()
        timeout_s = max(_POLL_S, min(left_s, fetching.TIMEOUT_S))
        seen = look(url, timeout_s=timeout_s, trust=trust)
        tell(seen)
        left_s = deadline_s - time.monotonic()
        if seen.state is not State.NOT_READY or left_s <= 0:
            return seen
        time.sleep(min(left_s, _POLL_S))


def _look(url: str, timeout_s: float, trust: ssl.SSLContext | None) -> Look:
    ready = fetching.get(f"{url}{_READY_PATH}", timeout_s=timeout_s, trust=trust)
    if ready.status == _OK:
        if _status(ready) == "ok":
            return Look(State.READY)
        raise _not_ours(ready)
    if ready.status == _NOT_FOUND:
        return _look_without_health(url, timeout_s, trust)
    if ready.status < 500:
        raise _not_ours(ready)
    try:
        live = fetching.get(f"{url}{_LIVE_PATH}", timeout_s=timeout_s, trust=trust)
    except fetching.UnreachableError as error:
        return Look(State.NOT_READY, (error.reason,))
    # A proxy in front of a server that is not there yet says 503 too, but in other words.
    if live.status == _UNAVAILABLE and _status(live) == "unavailable":
        return Look(State.DEAD, _reasons(live))
    return Look(State.NOT_READY, _reasons(ready))


def _look_without_health(url: str, timeout_s: float, trust: ssl.SSLContext | None) -> Look:
    info = fetching.get(f"{url}{_BUILD_INFO_PATH}", timeout_s=timeout_s, trust=trust)
    if info.status == _OK and isinstance(info.json(), dict):
        return Look(State.READY)
    if info.status >= 500:
        return Look(State.NOT_READY, _reasons(info))
    raise _not_ours(info)


def _not_ours(answer: fetching.Answer) -> ClientError:
    return ClientError(
        f"{answer.place}: what answers there is no server of speech models (HTTP {answer.status})",
        hint=_NOT_OURS_HINT,
    )


def _status(answer: fetching.Answer) -> object:
    said = answer.json()
    return said.get("status") if isinstance(said, dict) else None


def _reasons(answer: fetching.Answer) -> tuple[str, ...]:
    said = answer.json()
    reasons = said.get("reasons") if isinstance(said, dict) else None
    if isinstance(reasons, list) and reasons:
        return tuple(map(str, reasons))
    return (f"HTTP {answer.status}",)


def _outcome(url: str, last: Look, waited_s: float, trust: ssl.SSLContext | None) -> Outcome:
    if last.state is not State.READY:
        return Outcome(url, waited_s, last)
    try:
        modules = scrapes.scrape(url, trust=trust).metrics.modules
    except ClientError as error:
        # It is ready all the same, and a script waits for nothing else.
        return Outcome(url, waited_s, last, note=f"its metrics cannot be read: {error}")
    told = tuple(module for module in modules if module.warmup is not None)
    note = None if told else "it says nothing of its warm-up"
    return Outcome(url, waited_s, last, told, note)


def _lines(outcome: Outcome) -> Iterator[str]:
    for module in outcome.modules:
        yield f"{one_line(module.name)}: {describe_warmup(module.warmup)}"
    if outcome.note is not None:
        yield f"{outcome.url}: ready; {one_line(outcome.note)}"


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "url": outcome.url,
        "state": outcome.look.state.value.replace(" ", "_"),
        "reasons": list(outcome.look.reasons),
        "waited_seconds": round(outcome.waited_s, 3),
        "modules": {module.name: documents.warmup(module.warmup) for module in outcome.modules},
        "note": outcome.note,
    }


def _problem(outcome: Outcome, wait_s: float | None) -> MoshiCtlError | None:
    url, last = outcome.url, outcome.look
    if last.state is State.DEAD:
        return ClientError(
            f"{url}: the server is dead: {last.why}", hint="see its log, and start it again"
        )
    if last.state is State.NOT_READY and wait_s is None:
        return ClientError(f"{url}: not ready: {last.why}", hint="add --wait to wait until it is")
    if last.state is State.NOT_READY:
        return ClientError(
            f"{url}: not ready within {wait_s:g} s; seen last: {last.why}",
            hint="see the server's log: it opens its port once models are downloaded, loaded and "
            "warmed up, and ends where that fails; --timeout waits longer",
        )
    if bad := outcome.bad_modules:
        names = ", ".join(one_line(module.name) for module in bad)
        return ClientError(f"{url}: ready, but not warmed up: {names}", hint="see the server's log")
    return None


@contextmanager
def _spinner(url: str, *, shown: bool) -> Iterator[Callable[[Look], None]]:
    """Shows what is waited for and for how long, on a terminal; otherwise nothing."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as progress:
        task = progress.add_task(f"waiting for {url}")

        def tell(seen: Look) -> None:
            if seen.state is State.NOT_READY:
                progress.update(task, description=f"waiting for {url}: {seen.why}")

        yield tell
