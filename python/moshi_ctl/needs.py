"""What a module takes up on a device, by precision: computed, or by rules of thumb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moshi_ctl import _native, env
from moshi_ctl.config import Config
from moshi_ctl.devices import Device
from moshi_ctl.units import BYTES_PER_MIB

# Where the estimate is off: what patched servers in the field have used.
DEFAULT_LANE_MIB: Final = 400.0
DEFAULT_PARAMS_BILLIONS: Final = 7.0

# Bytes of a parameter; q8 has a scale of two bytes for each 32.
_PARAMETER_BYTES: Final[Mapping[str, float]] = {"f32": 4, "f16": 2, "bf16": 2, "q8": 34 / 32}

_MOST_LANE_MIB: Final = 1_000_000
_MOST_PARAMS_BILLIONS: Final = 10_000


@dataclass(frozen=True)
class Rules:
    """What replaces parts of the computation.

    Attributes:
        estimate: Whether needs are computed from the shapes of models.
        lane_mib: What a lane takes; None leaves it to the computation.
        params_billions: Parameters of a language model; None leaves them to the computation.
    """

    estimate: bool = True
    lane_mib: float | None = None
    params_billions: float | None = None


@dataclass(frozen=True)
class Needs:
    """What a module takes up in one precision, in bytes.

    Attributes:
        precision: Of the weights.
        kv_precision: Of keys and values.
        lm_weights_bytes: The language model's weights.
        codec_weights_bytes: The codec's weights.
        workspace_bytes: What a step works in.
        device_bytes: What the device takes for itself, once for all models of a process.
        lane_bytes: What each lane takes once it has heard a whole context.
    """

    precision: str
    kv_precision: str
    lm_weights_bytes: int
    codec_weights_bytes: int
    workspace_bytes: int
    device_bytes: int
    lane_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Of both models."""
        return self.lm_weights_bytes + self.codec_weights_bytes

    @property
    def fixed_bytes(self) -> int:
        """Without any lane, and without the device's own."""
        return self.weights_bytes + self.workspace_bytes


@dataclass(frozen=True)
class ModuleNeeds:
    """What a module takes up on a device, in each precision.

    Attributes:
        chosen: The precision that policy or a wish chose.
        reason: Why.
        by_precision: All that the device can do, by name; None where it cannot.
        source: Where the numbers come from.
    """

    chosen: Needs
    reason: str
    by_precision: Mapping[str, Needs | None]
    source: str


def rules_from_environment(*, estimate: bool) -> Rules:
    """What environment variables say, beside what the configuration says of the estimate.

    Raises:
        UsageError: Names the variable whose value makes no sense, and what would.
    """
    return Rules(
        estimate=env.switch_of(env.MOSHI_MEMORY_ESTIMATE, default=estimate),
        lane_mib=env.number_of(env.MOSHI_PER_BATCH_ITEM_MB, 1, _MOST_LANE_MIB, "MiB"),
        params_billions=env.number_of(
            env.MOSHI_MODEL_PARAMS_BILLIONS, 0.001, _MOST_PARAMS_BILLIONS, "billions"
        ),
    )


def of_module(
    configuration: Config,
    module: str,
    device: Device,
    files: Mapping[str, Path],
    rules: Rules,
    *,
    precision: str | None,
    kv_precision: str | None,
) -> ModuleNeeds:
    """What a module takes up on `device`.

    Args:
        configuration: The configuration.
        module: Which of its modules.
        device: Where it is to run.
        files: Those of the module's files that are here; their headers are read.
        rules: What replaces parts of the computation.
        precision: Of the weights; None leaves it to the configuration and the policy.
        kv_precision: Of keys and values, likewise.

    Raises:
        UsageError: When the device cannot do what is asked for.
        ModelFileError: When a file's header cannot be read, or is another model's.
    """
    facts = _native.memory_needs(
        configuration.path,
        module,
        files={value: str(path) for value, path in files.items()},
        device=device.name,
        compute_capability=device.compute_capability,
        precision=precision,
        kv_precision=kv_precision,
    )
    by_precision = {
        name: None if entry is None else _replaced(_computed(name, entry), facts, rules)
        for name, entry in facts["by_precision"].items()
    }
    chosen = by_precision[facts["precision"]]
    if chosen is None:
        raise AssertionError(f"{facts['precision']} was chosen, but has no needs")
    return ModuleNeeds(chosen, facts["reason"], by_precision, _source(facts, rules))


def _computed(precision: str, entry: dict[str, Any]) -> Needs:
    return Needs(
        precision=precision,
        kv_precision=entry["kv_precision"],
        lm_weights_bytes=entry["lm_weights_bytes"],
        codec_weights_bytes=entry["codec_weights_bytes"],
        workspace_bytes=entry["workspace_bytes"],
        device_bytes=entry["device_bytes"],
        lane_bytes=entry["lane_bytes"],
    )


def _replaced(needs: Needs, facts: dict[str, Any], rules: Rules) -> Needs:
    params = rules.params_billions
    lane_mib = rules.lane_mib
    if not rules.estimate:
        in_file = facts["parameters_in_file"]
        params = params or (in_file / 1e9 if in_file else DEFAULT_PARAMS_BILLIONS)
        lane_mib = lane_mib or DEFAULT_LANE_MIB
        needs = replace(needs, codec_weights_bytes=0, workspace_bytes=0, device_bytes=0)
    if params is not None:
        weights = int(params * 1e9 * _PARAMETER_BYTES[needs.precision])
        needs = replace(needs, lm_weights_bytes=weights)
    if lane_mib is not None:
        needs = replace(needs, lane_bytes=int(lane_mib * BYTES_PER_MIB))
    return needs


def _source(facts: dict[str, Any], rules: Rules) -> str:
    in_file = facts["parameters_in_file"]
    if rules.estimate:
        source = (
            "computed from the file's header"
            if in_file
            else "computed from the model's shape (its file is not here)"
        )
    else:
        source = "by rules of thumb (the estimate is off)"
        if rules.params_billions is None and not in_file:
            source += (
                f": the file is not here, {DEFAULT_PARAMS_BILLIONS:g} billion parameters assumed"
            )
    said = [
        f"{variable.name} = {value:g}"
        for variable, value in (
            (env.MOSHI_MODEL_PARAMS_BILLIONS, rules.params_billions),
            (env.MOSHI_PER_BATCH_ITEM_MB, rules.lane_mib),
        )
        if value is not None
    ]
    return ", ".join([source, *said])
