"""The whole decision before anything starts: device, precision and lanes of each module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moshi_ctl import devices, env, hub, needs, paths, sizing
from moshi_ctl.config import Config, Module
from moshi_ctl.devices import CPU, Device, Machine
from moshi_ctl.errors import SizingError
from moshi_ctl.gpu import Problem
from moshi_ctl.needs import ModuleNeeds, Needs
from moshi_ctl.sizing import Demand
from moshi_ctl.units import BYTES_PER_MIB, counted, memory

DEFAULT_RESERVE_MIB: Final = 512.0
MOST_RESERVE_MIB: Final = 1_048_576.0

AUTO: Final = "auto"
"""The device that leaves the choice to the controller."""

# Of the processes that hold a card's memory, so many are named where it is short.
_HOLDERS_NAMED: Final = 3


@dataclass(frozen=True)
class Wishes:
    """What the command line says of the decision; None leaves it to others.

    Attributes:
        device: Of every module; "auto" leaves it to the controller, whatever the configuration
            says.
        precision: Of every language model; "auto" is the device's.
        kv_precision: Of their keys and values; "auto" is what goes with the precision.
        reserve_mib: MiB of each device's memory that are left free.
    """

    device: str | None = None
    precision: str | None = None
    kv_precision: str | None = None
    reserve_mib: float | None = None


@dataclass(frozen=True)
class ModulePlan:
    """What was decided for a module.

    Attributes:
        module: Its name.
        path: Where it is served.
        device: Where it runs.
        device_reason: Why there.
        wanted: How many lanes the configuration wants; None for as many as fit.
        lanes: How many it gets; 0 where not even one fits.
        limit: What keeps it from having more: `batch_size`, `memory`, or `program` for the most
            that this program serves.
        needs: What it takes up.
        lanes_by_precision: How many lanes would fit at most in each precision, with the other
            modules as decided; None where the device cannot do it, 0 where none fits.
    """

    module: str
    path: str
    device: str
    device_reason: str
    wanted: int | None
    lanes: int
    limit: str
    needs: ModuleNeeds
    lanes_by_precision: Mapping[str, int | None]

    @property
    def chosen(self) -> Needs:
        """What it takes up in the precision that was chosen."""
        return self.needs.chosen

    @property
    def total_bytes(self) -> int:
        """What it takes up with all its lanes."""
        return self.chosen.fixed_bytes + self.lanes * self.chosen.lane_bytes


@dataclass(frozen=True)
class DevicePlan:
    """What was decided for a device.

    Attributes:
        device: The device.
        reserve_bytes: What is left free of it.
        device_bytes: What it takes for itself.
        modules: What runs on it.
        shortfall: Why not even one lane of each module fits, and what would.
    """

    device: Device
    reserve_bytes: int
    device_bytes: int
    modules: tuple[ModulePlan, ...]
    shortfall: Problem | None

    @property
    def budget_bytes(self) -> int:
        """What its modules may take."""
        return max(0, self.device.free_bytes - self.reserve_bytes - self.device_bytes)


@dataclass(frozen=True)
class Plan:
    """The whole decision.

    Attributes:
        config: The configuration's file.
        machine: What there is.
        devices: What was decided, by device.
        warnings: What the user should know.
        measures: Whether lanes are measured before they are offered.
    """

    config: Path
    machine: Machine
    devices: tuple[DevicePlan, ...]
    warnings: tuple[Problem, ...]
    measures: bool

    @property
    def modules(self) -> tuple[ModulePlan, ...]:
        """What was decided for every module."""
        return tuple(module for device in self.devices for module in device.modules)

    @property
    def fits(self) -> bool:
        """Whether at least one lane of every module fits."""
        return all(device.shortfall is None for device in self.devices)

    def refuse_what_does_not_fit(self) -> None:
        """Keeps models from being loaded that have no room.

        Raises:
            SizingError: Says what is missing on the first such device, and what would fit.
        """
        for device in self.devices:
            if device.shortfall is not None:
                raise SizingError(device.shortfall.message, hint=device.shortfall.hint)

    def decisions(self) -> dict[str, dict[str, Any]]:
        """What the extension needs to know, by module."""
        return {
            module.module: {
                "device": module.device,
                "lanes": module.lanes,
                "precision": module.chosen.precision,
                "kv_precision": module.chosen.kv_precision,
            }
            for module in self.modules
        }


def make(
    configuration: Config,
    machine: Machine,
    wishes: Wishes,
    *,
    only_plans: bool,
) -> Plan:
    """Decides for every module of a configuration; loads nothing and downloads nothing.

    Args:
        configuration: The configuration.
        machine: What there is.
        wishes: What the command line says.
        only_plans: Whether devices may be chosen that this build cannot use.

    Raises:
        UsageError: When something is asked for that cannot be had.
        ModelFileError: When a model file's header cannot be read.
    """
    rules = needs.rules_from_environment(estimate=configuration.sizing.estimate)
    reserve_bytes = int(reserve_mib(configuration, wishes) * BYTES_PER_MIB)
    files = files_that_are_here(configuration)
    choices = {
        name: devices.choose(_device_wish(wishes, module), machine, only_plans=only_plans)
        for name, module in configuration.modules.items()
    }
    plans = []
    for name in dict.fromkeys(choice.device.name for choice in choices.values()):
        modules = {
            module: choice for module, choice in choices.items() if choice.device.name == name
        }
        device = next(iter(modules.values())).device
        of_modules = {
            module: needs.of_module(
                configuration,
                module,
                device,
                files,
                rules,
                precision=wishes.precision,
                kv_precision=wishes.kv_precision,
            )
            for module in modules
        }
        reasons = {module: choice.reason for module, choice in modules.items()}
        plans.append(_device_plan(configuration, device, reserve_bytes, of_modules, reasons))
    warnings = dict.fromkeys(warning for choice in choices.values() for warning in choice.warnings)
    return Plan(
        config=configuration.path,
        machine=machine,
        devices=tuple(plans),
        warnings=tuple(warnings),
        measures=configuration.warms_up and configuration.sizing.real_time,
    )


def files_that_are_here(configuration: Config) -> dict[str, Path]:
    """The files of a configuration that need no download, by what the configuration calls them."""
    found = {}
    for file in configuration.files:
        reference = hub.parse(file.value)
        path = Path(file.value) if reference is None else hub.cached(reference)
        if path is not None and paths.is_file(path):
            found[file.value] = path
    return found


def reserve_mib(configuration: Config | None, wishes: Wishes) -> float:
    """What is left free: the command line before the environment before the configuration.

    Raises:
        UsageError: When the environment says something that is no size.
    """
    if wishes.reserve_mib is not None:
        return wishes.reserve_mib
    said = env.number_of(env.MOSHI_RESERVE_MB, 0, MOST_RESERVE_MIB, "MiB")
    if said is not None:
        return said
    configured = None if configuration is None else configuration.sizing.reserve_mb
    return DEFAULT_RESERVE_MIB if configured is None else configured


def _device_wish(wishes: Wishes, module: Module) -> str | None:
    if wishes.device is None:
        return module.device
    return None if wishes.device == AUTO else wishes.device


def _device_plan(
    configuration: Config,
    device: Device,
    reserve_bytes: int,
    of_modules: Mapping[str, ModuleNeeds],
    reasons: Mapping[str, str],
) -> DevicePlan:
    device_bytes = max(of_module.chosen.device_bytes for of_module in of_modules.values())
    budget_bytes = max(0, device.free_bytes - reserve_bytes - device_bytes)
    demands = [
        _demand(module, of_module.chosen, configuration.modules[module].lanes)
        for module, of_module in of_modules.items()
    ]
    lanes = sizing.share_out(demands, budget_bytes)
    granted = lanes or [0] * len(demands)
    modules = []
    for index, (demand, count) in enumerate(zip(demands, granted, strict=True)):
        of_module = of_modules[demand.module]
        others_bytes = sum(
            other.bytes_with(max(1, got))
            for i, (other, got) in enumerate(zip(demands, granted, strict=True))
            if i != index
        )
        modules.append(
            ModulePlan(
                module=demand.module,
                path=configuration.modules[demand.module].path,
                device=device.name,
                device_reason=reasons[demand.module],
                wanted=demand.lanes,
                lanes=count,
                limit=_limit(demand, count),
                needs=of_module,
                lanes_by_precision={
                    name: None if one is None else _most(one, budget_bytes - others_bytes)
                    for name, one in of_module.by_precision.items()
                },
            )
        )
    shortfall = None
    if lanes is None:
        shortfall = _shortfall(device, reserve_bytes, device_bytes, demands, of_modules)
    return DevicePlan(device, reserve_bytes, device_bytes, tuple(modules), shortfall)


def _demand(module: str, of_module: Needs, lanes: int | None) -> Demand:
    return Demand(module, of_module.fixed_bytes, of_module.lane_bytes, lanes)


def _most(of_module: Needs, budget_bytes: int) -> int:
    """How many lanes of a module alone fit."""
    granted = sizing.share_out([_demand("", of_module, None)], budget_bytes)
    return granted[0] if granted else 0


def _limit(demand: Demand, lanes: int) -> str:
    if lanes < demand.most_lanes:
        return "memory"
    return "batch_size" if demand.lanes is not None else "program"


def _shortfall(
    device: Device,
    reserve_bytes: int,
    device_bytes: int,
    demands: list[Demand],
    of_modules: Mapping[str, ModuleNeeds],
) -> Problem:
    """Why nothing fits, and what would."""
    needed = device_bytes + sizing.least_bytes(demands)
    names = ", ".join(demand.module for demand in demands)
    several = len(demands) > 1
    message = (
        f"module{'s' if several else ''} {names}: one lane{' each' if several else ''} needs "
        f"{memory(needed)}, but {device.name} ({device.title}) has {memory(device.free_bytes)} "
        f"free, and {memory(reserve_bytes)} are to stay free"
    )
    ways = []
    budget_bytes = max(0, device.free_bytes - reserve_bytes - device_bytes)
    smaller = _precisions_that_fit(demands, of_modules, budget_bytes)
    if smaller:
        ways.append(f"use --precision {' or '.join(smaller)}")
    missing = needed - (device.free_bytes - reserve_bytes)
    if reserve_bytes >= missing:
        reserve_mib = (reserve_bytes - missing) // BYTES_PER_MIB
        ways.append(f"keep less in reserve with --reserve-mb {reserve_mib}")
    holders = [
        f"process {process.pid} ({process.name or 'unknown'}) holds {memory(process.used_bytes)}"
        for process in device.processes
        if process.used_bytes
    ]
    held = f" ({', '.join(holders[:_HOLDERS_NAMED])})" if holders else ""
    ways.append(f"free {memory(missing)} more{held}")
    if device.name != CPU:
        ways.append("run on the CPU with --device cpu")
    return Problem(message, "; or ".join(ways))


def _precisions_that_fit(
    demands: list[Demand], of_modules: Mapping[str, ModuleNeeds], budget_bytes: int
) -> list[str]:
    """The precisions that --precision could give all modules of a device, with their lanes."""
    fitting = []
    for precision in next(iter(of_modules.values())).by_precision:
        others = [of_modules[demand.module].by_precision[precision] for demand in demands]
        changed = [
            _demand(demand.module, other, demand.lanes)
            for demand, other in zip(demands, others, strict=True)
            if other is not None
        ]
        lanes = sizing.share_out(changed, budget_bytes)
        if len(changed) == len(demands) and lanes:
            counts = [counted(count, "lane") for count in lanes]
            if len(demands) > 1:
                counts = [
                    f"{demand.module} {count}"
                    for demand, count in zip(demands, counts, strict=True)
                ]
            fitting.append(f"{precision} ({', '.join(counts)})")
    return fitting
