"""How a plan looks: a memory bar and a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moshi_ctl import _native, report
from moshi_ctl.devices import Device
from moshi_ctl.gpu import Gpu, Gpus
from moshi_ctl.plan import DevicePlan, ModulePlan, Plan
from moshi_ctl.units import dotted, memory

_BAR_WIDTH: Final = 60
_LEGEND_WIDTH: Final = 80
_LIMITS: Final = {
    "batch_size": "batch_size",
    "memory": "memory",
    "program": "the program",
}

# What a device's memory is for: how it is marked on the bar, and in which style.
_MARKS: Final = {
    "other programs": ("·", "dim"),
    "weights": ("█", "blue"),
    "lanes": ("▓", "green"),
    "workspace": ("▒", "cyan"),
    "driver": ("▪", "magenta"),
    "left": (" ", ""),
    "reserve": ("░", "yellow"),
}
# Where the output's encoding has only letters.
_PLAIN_MARKS: Final = {
    name: (plain, style)
    for (name, (_, style)), plain in zip(_MARKS.items(), ".#+=: -", strict=True)
}
_Marks = Mapping[str, tuple[str, str]]


def warn_of(plan: Plan) -> None:
    """Writes what the user should know to standard error."""
    for warning in plan.warnings:
        report.warn(warning.message, hint=warning.hint)


def show(plan: Plan, console: Console) -> None:
    """Prints the whole decision."""
    marks = _PLAIN_MARKS if console.options.ascii_only else _MARKS
    for device in plan.devices:
        console.print(_device(device, plan, console, marks))


def in_words(module: ModulePlan) -> str:
    """What was decided for a module, and why, on one line."""
    chosen = module.chosen
    wanted = "" if module.wanted in (None, module.lanes) else f" of {module.wanted}"
    return (
        f"module {module.module} gets {module.lanes}{wanted} lanes on {module.device} "
        f"({module.device_reason}) in {_precision(module)} ({module.needs.reason}), limited by "
        f"{_LIMITS[module.limit]}: {memory(chosen.weights_bytes)} of weights, "
        f"{memory(chosen.lane_bytes)} a lane, {memory(module.total_bytes)} in all"
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """The whole decision for programs; sizes are bytes."""
    return {
        "config": str(plan.config),
        "fits": plan.fits,
        "driver_version": plan.machine.gpus.driver_version,
        "cuda_version": _version(plan.machine.gpus.cuda_version),
        "warnings": [{"message": w.message, "hint": w.hint} for w in plan.warnings],
        "gpus": [_gpu_json(card) for card in plan.machine.gpus.found],
        "devices": [_device_json(device) for device in plan.devices],
        "modules": {module.module: _module_json(module) for module in plan.modules},
    }


def _device(plan: DevicePlan, whole: Plan, console: Console, marks: _Marks) -> RenderableType:
    device = plan.device
    table = _table(plan)
    # As wide as it needs to be, whatever the terminal: a cell that is cut says nothing.
    table.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    parts: list[RenderableType] = [
        Text.assemble((device.name, "bold"), "  ", _title(device, whole.machine.gpus)),
        _bar(plan, marks),
        _legend(plan, marks),
        *_holders(device),
        Text(),
        table,
    ]
    parts.extend(_notes(module) for module in plan.modules)
    if whole.measures and plan.shortfall is None:
        parts.append(
            Text(
                "That is by memory. Before its port opens a worker measures how many lanes the\n"
                "device keeps in real time, and offers no more than that."
            )
        )
    return Group(*parts, Text())


def _title(device: Device, gpus: Gpus) -> str:
    facts = [device.title]
    if device.compute_capability is not None:
        facts.append(f"compute capability {_version(device.compute_capability)}")
        if not device.is_simulated:
            facts.append(f"driver {gpus.driver_version or 'unknown'}")
            facts.append(f"CUDA {_version(gpus.cuda_version) or 'unknown'}")
    return ", ".join(facts)


def _holders(device: Device) -> list[Text]:
    """Whose memory the other programs' is, where the driver tells it."""
    return [
        Text(f"  {memory(process.used_bytes)} held by process {process.pid} ({process.name})")
        for process in device.processes
        if process.used_bytes and process.name
    ]


def _segments(plan: DevicePlan) -> list[tuple[str, int]]:
    """What a device's memory is for, and its bytes."""
    fits = plan.shortfall is None
    weights = sum(module.chosen.weights_bytes for module in plan.modules)
    workspace = sum(module.chosen.workspace_bytes for module in plan.modules)
    lanes = sum(module.lanes * module.chosen.lane_bytes for module in plan.modules)
    taken = plan.device.total_bytes - plan.device.free_bytes
    left = plan.budget_bytes - weights - workspace - lanes
    segments = [("other programs", taken)]
    if fits:
        segments += [
            ("weights", weights),
            ("lanes", lanes),
            ("workspace", workspace),
            ("driver", plan.device_bytes),
        ]
    else:
        left = max(0, plan.device.free_bytes - plan.reserve_bytes)
    reserve = min(plan.reserve_bytes, plan.device.free_bytes)
    return [*segments, ("left", left), ("reserve", reserve)]


def _bar(plan: DevicePlan, marks: _Marks) -> Text:
    total = max(1, plan.device.total_bytes)
    bar = Text("[")
    shown = so_far = 0
    for name, count in _segments(plan):
        mark, style = marks[name]
        so_far += count
        end = round(_BAR_WIDTH * so_far / total)
        bar.append(mark * (end - shown), style)
        shown = max(shown, end)
    return bar.append(f"] {memory(plan.device.total_bytes)}")


def _legend(plan: DevicePlan, marks: _Marks) -> Text:
    lines = [Text()]
    for name, count in _segments(plan):
        if not count:
            continue
        mark, style = marks[name]
        entry = Text.assemble((mark, style), f" {name} {memory(count)}")
        if lines[-1] and len(lines[-1]) + 3 + len(entry) > _LEGEND_WIDTH:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(entry)
    return Text("\n").join(lines)


def _table(plan: DevicePlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for head in ("module", "lanes", "precision", "limited by"):
        table.add_column(head, no_wrap=True)
    for head in ("weights", "a lane", "in all"):
        table.add_column(head, no_wrap=True, justify="right")
    for module in plan.modules:
        table.add_row(
            module.module,
            _lanes(module),
            _precision(module),
            _LIMITS[module.limit],
            memory(module.chosen.weights_bytes),
            memory(module.chosen.lane_bytes),
            memory(module.total_bytes),
        )
    return table


def _precision(module: ModulePlan) -> str:
    chosen = module.chosen
    if chosen.kv_precision == chosen.precision:
        return chosen.precision
    return f"{chosen.precision}, kv {chosen.kv_precision}"


def _lanes(module: ModulePlan) -> Text:
    if module.wanted in (None, module.lanes):
        return Text(str(module.lanes))
    return Text(f"{module.lanes} of {module.wanted}", "bold yellow")


def _notes(module: ModulePlan) -> Text:
    reasons = (
        ("device", f"{module.device} ({module.device_reason})"),
        ("precision", f"{module.chosen.precision} ({module.needs.reason})"),
        ("sizes", module.needs.source),
        ("lanes by memory", _most_lanes(module)),
    )
    notes = Text.assemble((module.module, "bold"))
    for head, reason in reasons:
        notes.append(f"\n  {head}: {reason}")
    return notes


def _most_lanes(module: ModulePlan) -> str:
    """How many lanes memory would hold, whatever batch_size says."""
    lanes = module.lanes_by_precision
    most = ", ".join(
        f"{count}{'+' if count == _native.MAX_LANES else ''} in {name}"
        for name, count in lanes.items()
        if count is not None
    )
    missing = ", ".join(name for name, count in lanes.items() if count is None)
    return f"{most}; {missing} is not possible" if missing else most


def _device_json(plan: DevicePlan) -> dict[str, Any]:
    device = plan.device
    shortfall = plan.shortfall
    return {
        "device": device.name,
        "title": device.title,
        "compute_capability": _version(device.compute_capability),
        "simulated": device.is_simulated,
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes,
        "reserve_bytes": plan.reserve_bytes,
        "driver_bytes": plan.device_bytes,
        "budget_bytes": plan.budget_bytes,
        "shortfall": shortfall and {"message": shortfall.message, "hint": shortfall.hint},
    }


def _gpu_json(card: Gpu) -> dict[str, Any]:
    return {**asdict(card), "compute_capability": _version(card.compute_capability)}


def _module_json(module: ModulePlan) -> dict[str, Any]:
    chosen = module.chosen
    return {
        "path": module.path,
        "device": module.device,
        "device_reason": module.device_reason,
        "precision": chosen.precision,
        "kv_precision": chosen.kv_precision,
        "precision_reason": module.needs.reason,
        "sizes": module.needs.source,
        "wanted_lanes": "auto" if module.wanted is None else module.wanted,
        "lanes": module.lanes,
        "limit": module.limit,
        "lm_weights_bytes": chosen.lm_weights_bytes,
        "codec_weights_bytes": chosen.codec_weights_bytes,
        "workspace_bytes": chosen.workspace_bytes,
        "lane_bytes": chosen.lane_bytes,
        "total_bytes": module.total_bytes,
        "most_lanes_by_precision": dict(module.lanes_by_precision),
    }


def _version(version: tuple[int, int] | None) -> str | None:
    return None if version is None else dotted(version)
