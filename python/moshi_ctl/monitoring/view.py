"""How a server's metrics look: for people, in any width, and as one line a scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from moshi_ctl.monitoring import charts
from moshi_ctl.monitoring.histograms import Histogram
from moshi_ctl.monitoring.scrapes import Outage, Scrape
from moshi_ctl.monitoring.server_metrics import (
    Counts,
    GpuMetrics,
    ModuleMetrics,
    ServerMetrics,
    Warmup,
    WarmupResult,
)
from moshi_ctl.monitoring.wording import (
    amount,
    count,
    describe_outage,
    describe_warmup,
    duration,
    percent,
    quantile,
    spelled,
)
from moshi_ctl.protocol import FRAME_S
from moshi_ctl.report import one_line
from moshi_ctl.units import counted, memory, size

_MARGIN: Final = 2
_LABEL_WIDTH: Final = 10
_BAR_WIDTH: Final = 30
_CHART_HEIGHT: Final = 4
_LEAST_WIDTH: Final = 40
_GAP: Final = 3
_UNKNOWN: Final = "-"

_GOOD: Final = "green"
_WARN: Final = "bold yellow"
_BAD: Final = "bold red"

# From here on something is wrong with a server that should keep up with speech.
_BAD_MISS_RATIO: Final = 0.01
_WARN_LAG_S: Final = 0.5
_BAD_LAG_S: Final = 2.0
_STUCK_S: Final = 1.0


@dataclass(frozen=True)
class View:
    """A whole picture of a server, which fits any width.

    Attributes:
        scrape: What it said last; None before it has said anything.
        outage: Why it does not answer now, if it does not.
    """

    scrape: Scrape | None
    outage: Outage | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(_LEAST_WIDTH, options.max_width)
        marks = charts.PLAIN if options.ascii_only else charts.FINE
        yield from self._lines(width, marks)

    def _lines(self, width: int, marks: charts.Marks) -> Iterator[Text]:
        if self.outage is not None:
            yield Text(f"{self.outage.url}   {describe_outage(self.outage)}", _BAD)
            if self.scrape is not None:
                yield Text("what it said last:", "dim")
                yield Text()
        if self.scrape is None:
            return
        for line in _server(self.scrape, width, marks):
            if self.outage is not None:
                line.stylize("dim")
            yield line


def compact_line(scrape: Scrape) -> str:
    """The most important numbers of a scrape, on one line."""
    shown = scrape.shown
    if scrape.interval_s is None or scrape.restarted:
        span = "restarted, since then" if scrape.restarted else "since the start"
    else:
        span = f"last {scrape.interval_s:.1f} s"
    parts = [part for part in (_readiness(shown).plain, span) if part]
    parts += [
        ", ".join(filter(None, _compact_module(module, scrape.interval_s)))
        for module in shown.modules
    ]
    if not shown.modules:
        parts.append(", ".join(_compact_kyutai(shown)))
    return " | ".join(parts)


def _server(scrape: Scrape, width: int, marks: charts.Marks) -> Iterator[Text]:
    metrics = scrape.metrics
    build = metrics.build
    title = Text("moshi-ctl" if metrics.modules or build else "a server", "bold")
    if version := build.get("version"):
        title.append(f" {one_line(version)}")
    if git_hash := build.get("git_hash"):
        title.append(f" ({one_line(git_hash)[:12]})", "dim")
    title.append(f" at {scrape.url}")
    yield from flow([title, _readiness(metrics), *_uptime(scrape)], width)
    yield from flow(list(_process(scrape)), width)
    for gpu in metrics.gpus:
        yield from flow(list(_gpu(gpu, marks)), width)
    log = list(_log(metrics))
    if log:
        yield from flow(log, width)
    yield from flow([Text(_span(scrape), "dim italic")], width)
    if not metrics.modules:
        yield Text()
        yield from _kyutai(scrape, width, marks)
    for total, shown in zip(metrics.modules, scrape.shown.modules, strict=True):
        yield Text()
        yield from _module(total, shown, scrape.interval_s, width, marks)


def _span(scrape: Scrape) -> str:
    if scrape.interval_s is None:
        return "since the server's start:"
    if scrape.restarted:
        return "the server was started anew since the previous scrape; since then:"
    return (
        f"of the {scrape.interval_s:.1f} s since the previous scrape; sessions and refusals since "
        "the start:"
    )


def _readiness(metrics: ServerMetrics) -> Text:
    if metrics.ready is None:
        return Text("")
    return Text("ready", _GOOD) if metrics.ready else Text("not ready", _BAD)


def _uptime(scrape: Scrape) -> Iterator[Text]:
    start = scrape.metrics.process.start_time_unix_s
    if start is not None:
        yield Text(f"up {duration(max(0.0, scrape.time_unix_s - start))}")


def _process(scrape: Scrape) -> Iterator[Text]:
    process = scrape.metrics.process
    if process.resident_memory_bytes is not None:
        yield Text(f"memory {memory(int(process.resident_memory_bytes))}")
    if scrape.cpu_cores is not None:
        yield Text(f"CPU {scrape.cpu_cores:.2f} cores")
    elif process.cpu_s is not None:
        yield Text(f"CPU time {duration(process.cpu_s)}")
    if process.threads is not None:
        yield Text(f"threads {count(process.threads)}")
    if process.open_fds is not None:
        most = "" if process.max_fds is None else f" of {count(process.max_fds)}"
        yield Text(f"open files {count(process.open_fds)}{most}")


def _gpu(gpu: GpuMetrics, marks: charts.Marks) -> Iterator[Text]:
    title = Text(one_line(gpu.device), "bold")
    yield title.append(f" {one_line(gpu.name)}" if gpu.name else "", "not bold")
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
        share = gpu.memory_used_bytes / gpu.memory_total_bytes
        bar = charts.share_bar(share, 10, marks, "magenta")
        used, total = (
            memory(int(each)) for each in (gpu.memory_used_bytes, gpu.memory_total_bytes)
        )
        yield bar.append(f" {used} of {total}")
    if gpu.utilization_ratio is not None:
        yield Text(f"busy {percent(gpu.utilization_ratio)}")
    if gpu.power_watts is not None:
        yield Text(f"{gpu.power_watts:.0f} W")
    if gpu.temperature_celsius is not None:
        yield Text(f"{gpu.temperature_celsius:.0f} °C")


def _log(metrics: ServerMetrics) -> Iterator[Text]:
    """What the log should be looked at for."""
    for level, name in (("error", "error"), ("warn", "warning")):
        if number := metrics.log_messages.get(level):
            yield Text(f"{counted(int(number), name)} logged", _BAD if level == "error" else _WARN)
    if metrics.log_lines_dropped:
        yield Text(f"{counted(int(metrics.log_lines_dropped), 'log line')} lost", _BAD)


def _module(
    total: ModuleMetrics,
    shown: ModuleMetrics,
    interval_s: float | None,
    width: int,
    marks: charts.Marks,
) -> Iterator[Text]:
    facts = [Text(one_line(total.name), "bold cyan")]
    if total.type or total.path:
        facts.append(Text(" at ".join(one_line(one) for one in (total.type, total.path) if one)))
    facts += [Text(one_line(each)) for each in (total.device,) if each]
    if total.precision:
        kv = total.kv_precision if total.kv_precision != total.precision else None
        facts.append(Text(one_line(f"{total.precision}{f', kv {kv}' if kv else ''}")))
    facts.append(Text(describe_warmup(total.warmup), _warmup_style(total.warmup)))
    yield from flow(facts, width)
    rows = (
        ("model", _troubles(total)),
        ("lanes", _lanes(total, marks)),
        ("steps", _steps(shown, interval_s)),
        ("audio", _audio(shown, interval_s)),
        ("words", _words(shown, interval_s)),
        ("traffic", _traffic(shown, interval_s)),
        *_sessions(total),
        ("refused", _refusals(total.refusals)),
    )
    for label, items in rows:
        if parts := [item for item in items if item]:
            yield from _row(label, parts, width)
    if shown.steps is not None:
        yield from _chart(shown.steps, width, marks)


def _warmup_style(warmup: Warmup | None) -> str:
    if warmup is None or warmup.result is WarmupResult.SKIPPED:
        return "dim"
    return _GOOD if warmup.result is WarmupResult.SUCCEEDED else _BAD


def _troubles(module: ModuleMetrics) -> Iterator[Text]:
    if module.loop_alive is False:
        yield Text("its loop has ended: it answers nobody", _BAD)
    if module.overloaded:
        yield Text("overloaded: nobody is let in until streams have caught up", _BAD)
    if module.step_running_s is not None and module.step_running_s >= _STUCK_S:
        yield Text(f"a step has been running for {duration(module.step_running_s)}", _BAD)


def _lanes(module: ModuleMetrics, marks: charts.Marks) -> Iterator[Text]:
    used, lanes = module.lanes_used, module.lanes
    if used is None or not lanes:
        return
    style = _WARN if used >= lanes else _GOOD
    bar = charts.share_bar(used / lanes, _BAR_WIDTH, marks, style)
    yield bar.append(f" {count(used)} of {count(lanes)} used")


def _steps(module: ModuleMetrics, interval_s: float | None) -> Iterator[Text]:
    steps = module.steps
    if steps is None:
        return
    yield Text(amount(steps.count, interval_s))
    if steps.count:
        yield Text(quantile(steps, 0.5))
        yield Text(quantile(steps, 0.99))
    yield _deadline_misses(module)


def _deadline_misses(module: ModuleMetrics) -> Text:
    misses, ratio = module.deadline_misses, module.deadline_miss_ratio
    if misses is None:
        return Text()
    style = _GOOD if not misses else _BAD if (ratio or 0) > _BAD_MISS_RATIO else _WARN
    share = "" if ratio is None else f" ({percent(ratio)})"
    return Text(f"over {FRAME_S * 1000:.0f} ms: {count(misses)}{share}", style)


def _audio(module: ModuleMetrics, interval_s: float | None) -> Iterator[Text]:
    if module.frames is not None:
        frames = amount(module.frames, interval_s, "frames")
        spoken_s = module.frames * FRAME_S
        if interval_s is None:
            yield Text(f"{frames} = {duration(spoken_s)}")
        else:
            yield Text(f"{frames} = {spoken_s / interval_s:.1f} live streams")
    for name, value in (("lag", module.lag_s), ("backlog", module.backlog_s)):
        if value is not None:
            style = _BAD if value >= _BAD_LAG_S else _WARN if value >= _WARN_LAG_S else ""
            # A backlog alone is no trouble: files are sent as fast as they are taken.
            yield Text(f"{name} {value:.2f} s", style if name == "lag" else "")


def _words(module: ModuleMetrics, interval_s: float | None) -> Iterator[Text]:
    if module.words is not None:
        yield Text(amount(module.words, interval_s))
    latency = module.word_latency
    if latency is not None and latency.count:
        yield Text(quantile(latency, 0.5, "latency "))
        yield Text(quantile(latency, 0.95))


def _traffic(module: ModuleMetrics, interval_s: float | None) -> Iterator[Text]:
    for name, number in (("received", module.received_bytes), ("sent", module.sent_bytes)):
        if number is None:
            continue
        said = size(int(number / (interval_s or 1))) if number else "0 B"
        yield Text(f"{said}{'/s' if interval_s else ''} {name}")


def _sessions(module: ModuleMetrics) -> Iterator[tuple[str, Iterable[Text]]]:
    """A row for each kind of sessions; since the start, because most intervals have none."""
    for kind in dict.fromkeys((*module.sessions, *module.sessions_ended)):
        began = module.sessions.get(kind)
        ends = [
            Text(f"{count(n)} {spelled(end)}")
            for end, n in sorted(module.sessions_ended.get(kind, {}).items(), key=lambda e: -e[1])
            if n
        ]
        if began or ends:
            yield f"{spelled(kind)}s", [Text(_UNKNOWN if began is None else count(began)), *ends]
    if module.sessions and not any(module.sessions.values()):
        yield "sessions", [Text("none yet", "dim")]


def _refusals(refusals: Counts) -> Iterator[Text]:
    if refusals and not any(refusals.values()):
        yield Text("none", "dim")
    for reason, number in refusals.items():
        if number:
            yield Text(f"{count(number)} {spelled(reason)}", _WARN)


def _chart(steps: Histogram, width: int, marks: charts.Marks) -> Iterator[Text]:
    margin = " " * _MARGIN
    title = f"steps by duration, each column up to so many ms; {marks.line} is real time"
    yield Text(margin + (title if steps.count else "no steps"), "dim")
    for line in charts.histogram(
        steps,
        width=width - _MARGIN,
        height=_CHART_HEIGHT,
        marks=marks,
        line_at=FRAME_S,
        label=_bound,
    ):
        yield Text.assemble(margin, line, no_wrap=True, overflow="ellipsis")


def _bound(bound_s: float) -> str:
    return f"{bound_s:g}s" if bound_s >= 1 else f"{bound_s * 1000:.4g}"


def _kyutai(scrape: Scrape, width: int, marks: charts.Marks) -> Iterator[Text]:
    kyutai = scrape.shown.kyutai
    yield Text(
        "This server has Kyutai's metrics only: nothing by module, no lanes, words, sessions or "
        "warm-up.",
        "dim",
    )
    if kyutai.open_channels is not None:
        yield from _row("channels", [Text(f"{count(kyutai.open_channels)} in use")], width)
    if kyutai.connections is not None:
        connections = amount(kyutai.connections, scrape.interval_s)
        yield from _row("connected", [Text(connections)], width)
    if kyutai.session_steps is not None:
        sessions = kyutai.session_steps
        parts = [Text(count(sessions.count))]
        if sessions.mean is not None:
            parts.append(Text(f"of {duration(sessions.mean * FRAME_S)} on average"))
        yield from _row("sessions", parts, width)
    if kyutai.steps is not None:
        parts = [Text(amount(kyutai.steps.count, scrape.interval_s))]
        parts += [Text(quantile(kyutai.steps, 0.5)), Text(quantile(kyutai.steps, 0.99))]
        yield from _row("steps", parts, width)
        yield from _chart(kyutai.steps, width, marks)


def _compact_module(module: ModuleMetrics, interval_s: float | None) -> Iterator[str]:
    name = one_line(module.name)
    if module.lanes is None or module.lanes_used is None:
        yield name
    else:
        yield f"{name} {count(module.lanes_used)}/{count(module.lanes)} lanes"
    yield _compact_steps(module.steps)
    yield _deadline_misses(module).plain
    if module.frames is not None:
        yield amount(module.frames, interval_s, "frames")
    if module.words is not None:
        yield amount(module.words, interval_s, "words")
    if module.lag_s is not None:
        yield f"lag {module.lag_s:.2f} s"
    yield from (trouble.plain for trouble in _troubles(module))


def _compact_kyutai(metrics: ServerMetrics) -> Iterator[str]:
    kyutai = metrics.kyutai
    if kyutai.open_channels is not None:
        yield f"{count(kyutai.open_channels)} channels in use"
    yield _compact_steps(kyutai.steps)


def _compact_steps(steps: Histogram | None) -> str:
    if steps is None:
        return "steps unknown"
    if not steps.count:
        return "no steps"
    return f"steps {quantile(steps, 0.5)} {quantile(steps, 0.99)}"


def _row(label: str, items: Sequence[Text], width: int) -> Iterator[Text]:
    indent = _MARGIN + _LABEL_WIDTH
    head = Text(" " * _MARGIN).append(label.ljust(_LABEL_WIDTH), "dim")
    for number, line in enumerate(flow(items, width - indent)):
        yield Text.assemble(head if number == 0 else " " * indent, line)


def flow(items: Iterable[Text], width: int) -> list[Text]:
    """Items beside each other, and on another line where there is no more room.

    Only an item that is wider than a line by itself is broken, between words where it has any.
    """
    lines: list[Text] = []
    for item in items:
        if not item:
            continue
        if lines and lines[-1].cell_len + _GAP + item.cell_len <= width:
            lines[-1].append(" " * _GAP).append_text(item)
            continue
        lines.append(Text().append_text(item))
    return lines
