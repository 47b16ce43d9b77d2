"""How a plan looks: a memory bar and a table for people, JSON for programs."""

from __future__ import annotations

from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moshi_ctl import report
from moshi_ctl.devices import CPU, Device
from moshi_ctl.gpu import GpuProcess, Gpus
from moshi_ctl.plan import DevicePlan, ModulePlan, Plan
from moshi_ctl.units import size

_BAR_WIDTH: Final = 60
_LIMITS: Final = {
    "batch_size": "batch_size",
    "memory": "memory",
    "program": "the program",
}


def show(plan: Plan, console: Console) -> None:
    """Prints the whole decision; warnings go to standard error."""
    for warning in plan.warnings:
        report.warn(warning.message, hint=warning.hint)
    for device in plan.devices:
        console.print(_device(device, plan))


def as_json(plan: Plan) -> dict[str, Any]:
    """The whole decision for programs; sizes are bytes."""
    return {
        "config": str(plan.config),
        "fits": plan.fits,
        "driver_version": plan.machine.gpus.driver_version,
        "cuda_version": _version(plan.machine.gpus.cuda_version),
        "warnings": [{"message": w.message, "hint": w.hint} for w in plan.warnings],
        "devices": [_device_json(device) for device in plan.devices],
        "modules": {module.module: _module_json(module) for module in plan.modules},
    }


def _device(plan: DevicePlan, whole: Plan) -> RenderableType:
    device = plan.device
    parts: list[RenderableType] = [
        Text.assemble((device.name, "bold"), "  ", _title(device, whole.machine.gpus)),
        _bar(plan),
        _legend(plan),
        Text(),
        _table(plan),
    ]
    for module in plan.modules:
        parts.extend(_notes(module))
    if device.name == CPU and whole.measures and plan.shortfall is None:
        parts.append(
            Text("Before lanes are offered they are measured: no more than real time allows.")
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


def _segments(plan: DevicePlan) -> list[tuple[str, str, str, int]]:
    """Name, mark, style and bytes of what a device's memory is for."""
    fits = plan.shortfall is None
    weights = sum(module.chosen.weights_bytes for module in plan.modules)
    workspace = sum(module.chosen.workspace_bytes for module in plan.modules)
    lanes = sum(module.lanes * module.chosen.lane_bytes for module in plan.modules)
    taken = plan.device.total_bytes - plan.device.free_bytes
    left = plan.device.free_bytes - plan.reserve_bytes - weights - workspace - lanes
    segments = [("other programs", "·", "dim", taken)]
    if fits:
        segments += [
            ("weights", "█", "blue", weights),
            ("lanes", "▓", "green", lanes),
            ("workspace", "▒", "cyan", workspace),
        ]
    else:
        left = max(0, plan.device.free_bytes - plan.reserve_bytes)
    reserve = min(plan.reserve_bytes, plan.device.free_bytes)
    return [*segments, ("left", " ", "", left), ("reserve", "░", "yellow", reserve)]


def _bar(plan: DevicePlan) -> Text:
    total = max(1, plan.device.total_bytes)
    bar = Text("[")
    shown = so_far = 0
    for _, mark, style, count in _segments(plan):
        so_far += count
        end = round(_BAR_WIDTH * so_far / total)
        bar.append(mark * (end - shown), style)
        shown = max(shown, end)
    return bar.append(f"] {size(plan.device.total_bytes)}")


def _legend(plan: DevicePlan) -> Text:
    legend = Text()
    for name, mark, style, count in _segments(plan):
        if count:
            legend.append("   " if legend else "")
            legend.append(f"{mark} ", style).append(f"{name} {size(count)}")
    return legend


def _table(plan: DevicePlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for head in ("module", "lanes", "precision", "limit"):
        table.add_column(head, no_wrap=True)
    for head in ("weights", "a lane", "in all"):
        table.add_column(head, no_wrap=True, justify="right")
    for module in plan.modules:
        table.add_row(
            module.module,
            str(module.lanes) if module.wanted in (None, module.lanes) else _fewer(module),
            _precision(module),
            _LIMITS[module.limit] if module.lanes else "nothing fits",
            size(module.chosen.weights_bytes),
            size(module.chosen.lane_bytes),
            size(module.total_bytes),
        )
    return table


def _precision(module: ModulePlan) -> str:
    chosen = module.chosen
    if chosen.kv_precision == chosen.precision:
        return chosen.precision
    return f"{chosen.precision}, kv {chosen.kv_precision}"


def _fewer(module: ModulePlan) -> Text:
    return Text(f"{module.lanes} of {module.wanted}", "bold yellow")


def _notes(module: ModulePlan) -> list[Text]:
    most = " · ".join(
        f"{name} {'no' if lanes is None else lanes}"
        for name, lanes in module.lanes_by_precision.items()
    )
    return [
        Text.assemble(
            (module.module, "bold"),
            f": {module.device} ({module.device_reason}); {module.chosen.precision} "
            f"({module.needs.reason}); sizes {module.needs.source}",
        ),
        Text(f"  at most lanes by memory: {most}"),
    ]


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
        "budget_bytes": plan.budget_bytes,
        "processes": [_process_json(process) for process in device.processes],
        "shortfall": shortfall and {"message": shortfall.message, "hint": shortfall.hint},
    }


def _process_json(process: GpuProcess) -> dict[str, Any]:
    return {"pid": process.pid, "name": process.name, "used_bytes": process.used_bytes}


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
    return None if version is None else ".".join(map(str, version))
