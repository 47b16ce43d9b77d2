#!/usr/bin/env python3
"""What goes wrong, and what a worker makes of it: the same drills against ours and the original.

Each drill starts a server of its own (`moshi-ctl worker` or the worker of the published crate
`moshi-server` 0.6.4), with one configuration and the same random weights, on the CPU, does
something to it and notes what its clients and its monitoring saw. Writes `results/reliability.md`,
`results/reliability.json` and the table in `docs/reliability.md`.

Needs an environment with moshi-ctl and its development tools, e.g. the one `make setup` prints; a
Rust toolchain for the original unless `--original` names it. Drills with a fault that is built in
need `make faults`; without, they are left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import drills
import drills_load
from drill_servers import LANES, ORIGINAL_VERSION, Servers, both, build_original
from drills import Measured
from measuring import (
    HERE,
    RESULTS,
    cache,
    command_line,
    foreign_cpu_s,
    machine,
    paragraph,
    table,
    write_results,
)

from moshi_ctl.units import counted

PAGE = HERE.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- drills: begin -->", "<!-- drills: end -->"
NOT_APPLICABLE = "-"
NAMES = ("ours", "original")


@dataclass(frozen=True)
class Drill:
    """Something that goes wrong.

    Attributes:
        title: What it is.
        run: Does it to a server of its own; None where that server cannot be made to fail so.
        survives: What "survived" means here; None where it does not apply.
        headline: What the summary says of it.
        once: Whether it is run once only: it takes long, and measures many sessions itself.
    """

    title: str
    run: Callable[[Servers], Measured | None]
    survives: str | None
    headline: tuple[str, ...]
    once: bool = False

    @property
    def what(self) -> str:
        """The drill in a sentence."""
        run = self.run.func if isinstance(self.run, functools.partial) else self.run
        return " ".join((run.__doc__ or "").split())

    def rows(self, measured: dict[str, Outcomes], keys: Iterable[str]) -> list[list[str]]:
        """Whether it was survived, and what was measured: for both servers."""
        rows = [[key, *(measured[name].value(key) for name in NAMES)] for key in keys]
        if self.survives is None:
            return rows
        return [["survived", *(measured[name].survived() for name in NAMES)], *rows]


@dataclass
class Outcomes:
    """What the repeats of one drill on one server say together."""

    runs: list[Measured] = field(default_factory=list)

    def survived(self) -> str:
        """How many runs it survived, for a table."""
        if not self.runs:
            return "not run"
        kept = sum(bool(run["survived"]) for run in self.runs)
        return {0: "NO", len(self.runs): "yes"}.get(kept, f"{kept} of {len(self.runs)}")

    def value(self, key: str) -> str:
        """Median and spread of numbers, or all that was said; for a table."""
        if not self.runs:
            return "not run"
        values = [run[key] for run in self.runs if key in run]
        if not values:
            return NOT_APPLICABLE
        numbers = [v for v in values if isinstance(v, float)]
        if len(numbers) == len(values):
            middle = number(statistics.median(numbers))
            low, high = number(min(numbers)), number(max(numbers))
            return middle if low == high else f"{middle} ({low} to {high})"
        said = [("yes" if v else "no") if isinstance(v, bool) else str(v) for v in values]
        return " / ".join(dict.fromkeys(said))


def number(value: float) -> str:
    """With three digits that count; what never came is said so."""
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def all_drills(arguments: argparse.Namespace) -> list[Drill]:
    """Every drill, in the order of the report."""
    one_hour = functools.partial(drills_load.hour_of_audio, limit_s=arguments.hour_s)
    many = functools.partial(drills_load.many_sessions, sessions=arguments.sessions)
    ended = ("client's error, ms", "readiness off, ms", "exit, ms", "exit code")
    answers = ("step's answer p99 before, ms", "step's answer p99 meanwhile, ms")
    return [
        Drill("Full server", drills_load.full_server, "all were refused in-band, streams went on",
              ("refusal p99, ms", *answers)),
        Drill("POST to a full server", drills_load.post_to_full, "429 or 503 came back",
              ("answer, ms",)),
        Drill("SIGTERM in mid-speech", drills.sigterm, "the marker was answered before the end",
              ("close code", "words after the signal", "readiness off, ms", "exit, ms")),
        Drill("Long Ogg Opus message", drills.long_opus, "a new client is served afterwards",
              ("stream beside goes on", *ended)),
        Drill("Dead model thread", drills.dead_model, None, ended),
        Drill("Hanging step", drills.hanging_step, None, ended),
        Drill("Port before warm-up", drills.port_before_warmup, "the first client waits < 0.5 s",
              ("says ready then", "first client ready after, ms")),
        Drill("Unknown configuration key", drills.unknown_key, "the start was refused",
              ("refused, ms",)),
        Drill("NaN audio", drills_load.nan_audio, "nobody else's output changed by a bit",
              ("client told", "neighbour: VAD", "next: VAD")),
        Drill("Lane reuse", drills_load.lane_reuse, "the output is that of a fresh server",
              ("VAD",)),
        Drill("Malformed message", drills.malformed, "a new client is served afterwards",
              ("client's error, ms", "close code")),
        Drill("Vanished clients", drills_load.vanished, "all lanes are free within 60 s",
              ("lanes free after, ms", "descriptors more")),
        Drill("Slow handshakes", drills_load.slow_handshakes, "new clients are served meanwhile",
              ("still open after 15 s", *answers)),
        Drill("Huge header", drills.huge_header, "a new client is served afterwards",
              ("answer", "answer, ms")),
        Drill("Hour of audio", one_hour, "it runs on and the lane gets free",
              ("audio taken, s", "in, s", "memory, MB more"), once=True),
        Drill("Many sessions", many, "it ran to the end",
              ("memory, bytes a session", "memory at the end, MB"), once=True),
    ]  # fmt: skip


def measure(
    servers: Iterable[Servers], chosen: list[Drill], repeats: int
) -> dict[str, dict[str, Outcomes]]:
    """Runs the drills; the servers take turns."""
    measured = {drill.title: {name: Outcomes() for name in NAMES} for drill in chosen}
    for drill in chosen:
        for _ in range(1 if drill.once else repeats):
            for server in servers:
                run = drill.run(server)
                if run is not None:
                    measured[drill.title][server.name].runs.append(run)
                print(f"{drill.title}, {server.name}: {run}", flush=True)
    return measured


def summary(chosen: list[Drill], measured: dict[str, dict[str, Outcomes]]) -> str:
    """What matters most of each drill."""
    rows = []
    for drill in chosen:
        for place, row in enumerate(drill.rows(measured[drill.title], drill.headline)):
            rows.append([drill.title if place == 0 else "", *row])
    return table(["drill", "what", *NAMES], rows)


def details(drill: Drill, measured: dict[str, Outcomes]) -> str:
    """All that one drill measured."""
    runs = [run for outcomes in measured.values() for run in outcomes.runs]
    keys = dict.fromkeys(key for run in runs for key in run if key != "survived")
    said = drill.what if drill.survives is None else f"{drill.what} Survived: {drill.survives}."
    measurements = table(["", *NAMES], drill.rows(measured, keys))
    return f"### {drill.title}\n\n{paragraph(said)}\n\n{measurements}"


def method(repeats: int, other_cores: float, repeated: Mapping[str, int]) -> str:
    """How it was measured, as paragraphs.

    Args:
        repeats: Runs of each drill.
        other_cores: What other programs took.
        repeated: Drills that were measured again later, by title, and how often then.
    """
    facts = ", ".join(f"{name}: {value}" for name, value in machine().items())
    how = f"""The original is the worker of the published crate `moshi-server` {ORIGINAL_VERSION},
        both serve one configuration file: the language model of `tiny-random` with the codec of the
        real models (the original knows no other), random weights, {LANES} lanes, on the CPU, each
        with its own defaults (ours: q8). Every run of a drill is a process of its own and servers
        take turns; {counted(repeats, "run")} of each, the last two drills once. Median (lowest to
        highest) of the runs; times in ms from the fault on; "never" is not within 10 to 60 s, and
        "{NOT_APPLICABLE}" is what does not apply. The original is asked `/api/build_info` for
        readiness, ours `/health/ready`."""
    where = f"""Machine: {facts}. Clients ran on the same machine; programs that are neither took
        {other_cores:.2f} cores on average."""
    slow = """The original computes all lanes in each step and needs about as long for it as a frame
        lasts on such a machine, so how late its answers are says something about its speed; how
        they change under load says something about the drill."""
    later = ", ".join(f"{title} ({counted(runs, 'run')})" for title, runs in repeated.items())
    again = f"Measured again later, by themselves (`--only`): {later}."
    said = (how, slow, where, again) if repeated else (how, slow, where)
    return "\n\n".join(paragraph(text) for text in said)


def write_page(page: Path, text: str) -> None:
    """Replaces what stands between the marks in the page, or begins the page."""
    block = f"{BEGIN}\n{text}\n{END}"
    old = (
        page.read_text(encoding="utf-8") if page.exists() else f"# Reliability\n\n{BEGIN}\n{END}\n"
    )
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(head + block + tail, encoding="utf-8")


def earlier(path: Path) -> dict[str, dict[str, Outcomes]]:
    """What was measured before, by drill and server."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return {
        title: {
            name: Outcomes([{k: math.inf if v is None else v for k, v in r.items()} for r in runs])
            for name, runs in by_name.items()
        }
        for title, by_name in raw["drills"].items()
    }


def finite(value: float | str | bool) -> float | str | bool | None:
    """For JSON, which has no infinity."""
    return None if isinstance(value, float) and math.isinf(value) else value


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--original", type=Path, help="its program, instead of building it")
    parser.add_argument("--build", type=Path, default=cache("original"), help="where it is built")
    parser.add_argument(
        "--faults", type=Path, default=Path(sys.prefix, "faults"), help="our package with faults"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="WORD",
        help="drills with this in the title; of the others the earlier results stay",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=200, help="of the drill with many")
    parser.add_argument("--hour-s", type=float, default=60, help="limit of the hour of audio")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table goes")
    return parser.parse_args()


def main() -> int:
    """Runs the drills and writes what came out."""
    arguments = parse()
    drills_there_are = all_drills(arguments)
    chosen = [
        drill
        for drill in drills_there_are
        if not arguments.only or any(word.lower() in drill.title.lower() for word in arguments.only)
    ]
    original = arguments.original or build_original(arguments.build)
    faults = arguments.faults if arguments.faults.is_dir() else None
    begun_s, others_s = time.monotonic(), -foreign_cpu_s()
    with both(original.resolve(), faults) as servers:
        measured = measure(servers, chosen, arguments.repeats)
    others_s += foreign_cpu_s()
    other_cores = max(0.0, others_s) / (time.monotonic() - begun_s)
    command = command_line(original="moshi-server", build="FOLDER", faults="FOLDER", page="PAGE")
    before = arguments.results / "reliability.json"
    repeats = arguments.repeats
    repeated: dict[str, int] = {}
    if arguments.only and before.exists():
        # One drill is improved more often than all are repeated.
        raw_before = json.loads(before.read_text(encoding="utf-8"))
        measured = {**earlier(before), **measured}
        command = raw_before["command"]
        repeats = raw_before["repeats"]
        again = {drill.title: 1 if drill.once else arguments.repeats for drill in chosen}
        repeated = {**raw_before["repeated"], **again}
        other_cores = max(other_cores, raw_before["other_cores"])
        chosen = [drill for drill in drills_there_are if drill.title in measured]

    how = method(repeats, other_cores, repeated)
    short = summary(chosen, measured)
    intro = f"Written by `benchmarks/reliability.py`; to repeat: `{command}`."
    parts = ["# Drills, ours beside the original", intro, how, "## Summary", short, "## Drills"]
    report = "\n\n".join([*parts, *(details(d, measured[d.title]) for d in chosen)]) + "\n"
    raw = {
        "command": command,
        "machine": machine(),
        "other_cores": other_cores,
        "repeats": repeats,
        "repeated": repeated,
        "drills": {
            title: {
                name: [{key: finite(value) for key, value in run.items()} for run in outcomes.runs]
                for name, outcomes in by_name.items()
            }
            for title, by_name in measured.items()
        },
    }
    write_results(arguments.results, "reliability", report, raw)
    write_page(arguments.page, f"\n{intro}\n\n{how}\n\n{short}\n")
    print(f"\n{report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
