"""The files of the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from moshi_ctl import config, env, paths, shipped
from moshi_ctl.errors import ModelFileError

CONFIG: Final = "demo"
"""The shipped configuration that serves it."""

_RECORDING: Final = "recording.flac"
_TOKENIZER_KEY: Final = "text_tokenizer_file"


def check() -> None:
    """Sees whether every file is there.

    Raises:
        ModelFileError: When one is not.
    """
    for path in _files().values():
        _check(path)


def recording() -> Path:
    """A recording of words that it knows.

    Raises:
        ModelFileError: When it is not there.
    """
    return _check(env.embedded_folder() / _RECORDING)


def tokenizer() -> Path:
    """The file with its words.

    Raises:
        ModelFileError: When it is not there.
    """
    return _check(_files()[_TOKENIZER_KEY])


def _files() -> dict[str, Path]:
    configuration = config.read(shipped.path_of(CONFIG))
    return {file.key: Path(file.value) for file in configuration.files}


def _check(path: Path) -> Path:
    if not paths.is_file(path):
        raise ModelFileError(
            f"the embedded model is incomplete: {path} is not there",
            hint=f"install moshi-ctl anew; {env.MOSHI_CTL_EMBEDDED.name} names another folder",
        )
    return path
