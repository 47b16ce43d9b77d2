"""All checks in turn, none of which can end or hold up the others, and how findings look."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from moshi_ctl import env, report
from moshi_ctl.doctor import machine, nvidia, serving, settings
from moshi_ctl.doctor.findings import Finding, Situation, Status, failure
from moshi_ctl.errors import MoshiCtlError
from moshi_ctl.units import counted

LIMIT_S: Final = 10.0
"""What a check may take; each keeps to less unless the system under it hangs."""

# Some errors say all there is to say: what is wrong is what to put right.
_ANY_REMEDY: Final = "put that right, then run `moshi-ctl doctor` again"

_STYLES: Final = {
    Status.OK: "green",
    Status.WARNING: "bold yellow",
    Status.FAILURE: "bold red",
}


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: What it is called when it breaks.
        find: What looks; it may raise anything.
    """

    name: str
    find: Callable[[Situation], list[Finding]]


CHECKS: Final = (
    Check("Python", machine.python),
    Check("wheel", machine.wheel),
    Check("CPU", machine.processor),
    Check("NVIDIA driver", nvidia.driver),
    Check("cards", nvidia.cards),
    Check("configuration", serving.configuration),
    Check("memory", machine.memory),
    Check("plan", serving.lanes),
    Check("port", settings.port),
    Check("certificate", settings.certificate),
    Check(".env", settings.dot_env),
    Check("keys", settings.api_keys),
    Check("numbers", settings.numbers),
    Check("hub", serving.hub_access),
    Check("files", serving.files),
    Check("disk space", serving.disk),
    Check("log directory", serving.log_folder),
)

_STATUS_WIDTH: Final = max(len(status.value) for status in Status) + 2
_NAME_WIDTH: Final = max(len(check.name) for check in CHECKS) + 2


def run(situation: Situation, *, as_json_text: bool) -> bool:
    """Examines a machine and prints what is found.

    Returns:
        Whether nothing failed.
    """
    try:
        env.load_dot_env(situation.folder)
    except Exception:  # noqa: BLE001 - a check says what is wrong, and others go on
        situation.refuses_dot_env = True
    env.set_defaults()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A card, a folder or a file may have a name that the terminal cannot show.
        sys.stdout.reconfigure(errors="replace")
    findings = examine(situation)
    if as_json_text:
        found = list(findings)
        print(json.dumps(as_json(found), indent=2))
    else:
        found = show(findings, report.console())
    return _worst(found) is not Status.FAILURE


def examine(
    situation: Situation, checks: Sequence[Check] = CHECKS, *, limit_s: float = LIMIT_S
) -> Iterator[Finding]:
    """What each check finds, as it finds it.

    Args:
        situation: What to look at.
        checks: What looks, in this order.
        limit_s: What each may take.
    """
    for check in checks:
        for finding in _within(limit_s, check, situation):
            no_remedy = finding.status is not Status.OK and not finding.remedy
            yield replace(finding, remedy=_ANY_REMEDY) if no_remedy else finding


def show(findings: Iterable[Finding], console: Console) -> list[Finding]:
    """Prints findings as they come, and at last how many are not as they should be."""
    shown = []
    for finding in findings:
        shown.append(finding)
        status = (finding.status.value.ljust(_STATUS_WIDTH), _STYLES[finding.status])
        name = (finding.name.ljust(_NAME_WIDTH), "bold")
        console.print(Text.assemble(status, name, report.one_line(finding.message)))
        if finding.remedy:
            margin = " " * _STATUS_WIDTH
            console.print(
                Text.assemble(margin, ("hint: ", "bold cyan"), report.one_line(finding.remedy))
            )
    counts = [
        counted(count, status.value)
        for status in (Status.FAILURE, Status.WARNING)
        if (count := sum(finding.status is status for finding in shown))
    ]
    console.print(Text(", ".join(counts) or "nothing to complain about"))
    return shown


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings for programs."""
    return {
        "status": _worst(findings).value,
        "checks": [
            {
                "name": finding.name,
                "status": finding.status.value,
                "message": finding.message,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def _worst(findings: Iterable[Finding]) -> Status:
    return max((finding.status for finding in findings), key=list(Status).index, default=Status.OK)


def _within(limit_s: float, check: Check, situation: Situation) -> list[Finding]:
    """What a check finds; one that hangs is left behind."""
    results: list[list[Finding]] = []
    # A daemon, because a call into a driver or a network file system cannot be ended.
    thread = threading.Thread(
        target=lambda: results.append(_guarded(check, situation)), daemon=True
    )
    thread.start()
    thread.join(limit_s)
    if results:
        return results[0]
    return [
        failure(
            check.name,
            f"this check was given up after {limit_s:g} s",
            "try again; if it stays, the driver, disk or network that it asks does not answer",
        )
    ]


def _guarded(check: Check, situation: Situation) -> list[Finding]:
    try:
        return check.find(situation)
    except MoshiCtlError as error:
        return [failure(check.name, str(error), error.hint)]
    except BaseException as error:  # noqa: BLE001 - the extension's panics are no Exception
        return [
            failure(
                check.name,
                f"this check itself broke: {_what_broke(error)}",
                "report this: it is moshi-ctl's mistake, and says nothing of this machine",
            )
        ]


def _what_broke(error: BaseException) -> str:
    """The error's kind and place; its text may hold anything, even a key."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = ""
    if trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename).name
        place = f" at {file}:{trace.tb_lineno}"
    said = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{said}{place}"
