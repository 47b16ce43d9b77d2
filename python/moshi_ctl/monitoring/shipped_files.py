"""`moshi-ctl monitoring`: the configuration of Prometheus and Grafana that comes with moshi-ctl."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from moshi_ctl import paths
from moshi_ctl.errors import UsageError

README: Final = Path("README.md")

# Unit tests of the rules are for those who change them.
_NOT_SHIPPED: Final = shutil.ignore_patterns("tests")


def write(target: Path) -> list[Path]:
    """Writes rules, dashboards and their README to a folder that appears whole or not at all.

    Returns:
        The files, by their place in `target`.

    Raises:
        UsageError: When there is something at `target` already, or nothing can be written there.
    """
    source = Path(str(files("moshi_ctl") / "deploy"))
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UsageError(
                f"{target}: there is something already", hint="name a folder that is not there yet"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".moshi-ctl-") as folder:
            draft = Path(folder) / "files"
            shutil.copytree(source, draft, ignore=_NOT_SHIPPED)
            if paths.is_folder(target):
                target.rmdir()
            draft.rename(target)
    except OSError as error:
        raise UsageError(
            f"{target}: cannot be written: {error.strerror or error}",
            hint="name a folder in a place that this user can write to",
        ) from error
    written = (path.relative_to(target) for path in target.rglob("*") if path.is_file())
    return sorted(written)
