"""The configurations that come with moshi-ctl."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from moshi_ctl import paths
from moshi_ctl.errors import ConfigError, UsageError

_SUFFIX = ".toml"


def _folder() -> Path:
    return Path(str(files("moshi_ctl") / "configs"))


def names() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in _folder().glob(f"*{_SUFFIX}"))


def path_of(name: str) -> Path:
    """The file of the configuration called `name`, with or without its suffix.

    Raises:
        UsageError: When there is none.
    """
    stem = name.removesuffix(_SUFFIX)
    if stem not in names():
        raise UsageError(
            f"no configuration called {name!r} is shipped",
            hint=f"choose one of {', '.join(names())}",
        )
    return _folder() / f"{stem}{_SUFFIX}"


def summary(name: str) -> str:
    """The first sentence of the comment a configuration opens with."""
    opening: list[str] = []
    for line in path_of(name).read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        opening.append(text)
    return " ".join(opening).split(". ")[0].rstrip(".") + "."


def find(value: str) -> Path:
    """What `--config VALUE` means: a file, or else the name of a shipped configuration.

    Raises:
        ConfigError: When it is neither.
    """
    path = Path(value)
    if paths.is_file(path):
        return path
    if path.name == value and value.removesuffix(_SUFFIX) in names():
        return path_of(value)
    what = "is a folder" if paths.is_folder(path) else "no such file"
    raise ConfigError(
        what,
        file=value,
        hint=f"give the path of a TOML file, or the name of a shipped one: {', '.join(names())}",
    )
