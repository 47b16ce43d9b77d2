"""What `moshi-ctl fit` does: a copy of a configuration with what was planned for it."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moshi_ctl.config import Config
from moshi_ctl.devices import CPU
from moshi_ctl.drafts import draft_of
from moshi_ctl.errors import ConfigError, UsageError
from moshi_ctl.plan import ModulePlan, Plan

_AUTO: Final = "auto"
_BYTE_ORDER_MARK: Final = "\ufeff"


def write(configuration: Config, plan: Plan, target: Path, *, overwrite: bool) -> list[str]:
    """Writes the configuration to `target` with the planned lanes and precisions.

    Everything else stays: comments, order, `$NAME`. The file appears whole or not at all.

    Returns:
        What is different, a line each.

    Raises:
        UsageError: When `target` is there and is not to be replaced, or is the configuration or a
            folder.
        SizingError: When nothing fits.
        ConfigError: When it cannot be written, or the configuration cannot be taken apart.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    plan.refuse_what_does_not_fit()
    _refuse_target(target, configuration.path, overwrite=overwrite)
    # As bytes: the ends of lines stay what they are.
    text = configuration.path.read_bytes().decode("utf-8")
    mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
    try:
        document = tomlkit.parse(text.removeprefix(mark))
    except TOMLKitError as error:
        raise ConfigError(
            f"cannot be changed without losing its form: {error}",
            file=str(configuration.path),
            hint="write it more plainly there, or take over what `moshi-ctl plan` prints by hand",
        ) from error
    changes = []
    for module in plan.modules:
        table = document["modules"][module.module]
        for key, value in _values(module, table).items():
            before = table.get(key)
            if before != value:
                table[key] = value
                was = "not set" if before is None else repr(before)
                changes.append(f"modules.{module.module}.{key}: {was} -> {value!r}")
    fitted = tomlkit.dumps(document)
    if text.count("\r\n") == text.count("\n"):  # Lines that are new end otherwise.
        fitted = fitted.replace("\r\n", "\n").replace("\n", "\r\n")
    _write_whole(target, mark + fitted, like=configuration.path)
    return changes


def _values(module: ModulePlan, table: Mapping[str, Any]) -> dict[str, int | str]:
    """What was planned, by the keys that `table` is to say it with."""
    # On a CPU memory holds more than real time allows, which only the worker can measure.
    stays_automatic = module.wanted is None and module.device == CPU
    values: dict[str, int | str] = {"batch_size": _AUTO if stays_automatic else module.lanes}
    # Kyutai's name for the precision stays the name for it where it is used.
    if "dtype_override" in table:
        values["dtype_override"] = module.chosen.precision
    if "dtype_override" not in table or table.get("precision", _AUTO) != _AUTO:
        values["precision"] = module.chosen.precision
    values["kv_precision"] = module.chosen.kv_precision
    return values


def _refuse_target(target: Path, source: Path, *, overwrite: bool) -> None:
    try:
        if not target.exists():
            return
        is_source = target.samefile(source)
    except OSError as error:
        raise _cannot_be_written(target, error) from error
    if is_source:
        raise UsageError(
            f"{target} is the configuration itself", hint="name another file with --out"
        )
    if target.is_dir():
        raise UsageError(f"{target} is a folder", hint="name a file in it with --out")
    if not overwrite:
        raise UsageError(f"{target} is already there", hint="add --force to replace it")


def _cannot_be_written(target: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot be written: {error.strerror}",
        file=str(target),
        hint="name a file in a folder that can be written to with --out",
    )


def _write_whole(target: Path, text: str, *, like: Path) -> None:
    """Writes a file that whoever may not read `like` may not read either."""
    try:
        with draft_of(target) as draft:
            draft.write_bytes(text.encode("utf-8"))
            draft.chmod(like.stat().st_mode | stat.S_IWUSR)
            draft.replace(target)
    except OSError as error:
        raise _cannot_be_written(target, error) from error
