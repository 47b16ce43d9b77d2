"""What `moshi-ctl fit` does: a copy of a configuration with what was planned for it."""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

from moshi_ctl.config import Config
from moshi_ctl.errors import ConfigError, UsageError
from moshi_ctl.plan import Plan


def write(configuration: Config, plan: Plan, target: Path, *, overwrite: bool) -> list[str]:
    """Writes the configuration to `target` with the planned lanes and precisions.

    Everything else stays: comments, order, `$NAME`. The file appears whole or not at all.

    Returns:
        What is different, a line each.

    Raises:
        UsageError: When `target` is there and is not to be replaced, or is the configuration.
        SizingError: When nothing fits.
        ConfigError: When it cannot be written.
    """
    import tomlkit

    plan.refuse_what_does_not_fit()
    if target.exists():
        if target.samefile(configuration.path):
            raise UsageError(
                f"{target} is the configuration itself", hint="name another file with --out"
            )
        if not overwrite:
            raise UsageError(f"{target} is already there", hint="add --force to replace it")
    document = tomlkit.parse(configuration.path.read_text(encoding="utf-8"))
    changes = []
    for module in plan.modules:
        table = document["modules"][module.module]
        values: dict[str, int | str] = {"batch_size": module.lanes}
        # What the configuration leaves to the machine is written down; dtype_override says the
        # same as precision.
        if "dtype_override" not in table:
            values["precision"] = module.chosen.precision
        if table.get("kv_precision", "auto") == "auto":
            values["kv_precision"] = module.chosen.kv_precision
        for key, value in values.items():
            before = table.get(key)
            if before != value:
                table[key] = value
                was = "not set" if before is None else repr(before)
                changes.append(f"modules.{module.module}.{key}: {was} -> {value!r}")
    _write_whole(target, tomlkit.dumps(document))
    return changes


def _write_whole(target: Path, text: str) -> None:
    try:
        with NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            draft = Path(file.name)
        try:
            draft.write_text(text, encoding="utf-8", newline="")
            draft.chmod(0o644)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}",
            file=str(target),
            hint="choose a folder that can be written to",
        ) from error
