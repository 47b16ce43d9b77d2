"""Model files with random weights, for trying a configuration that has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from moshi_ctl import _native, config, hub
from moshi_ctl.drafts import draft_of
from moshi_ctl.errors import ModelFileError, UsageError

_QUANTIZED = "q8"


def write_random(config_path: Path, *, seed: int, precision: str, overwrite: bool) -> list[Path]:
    """Writes every model file a configuration names, with random weights.

    Each file appears whole or not at all.

    Args:
        config_path: The configuration.
        seed: Another seed gives another model.
        precision: Number format of the language model: f32, f16 or bf16.
        overwrite: Whether files that are already there are replaced.

    Returns:
        The files written.

    Raises:
        UsageError: When a file belongs to a hub, or exists and is not to be replaced, or when the
            precision is none of the three.
        ModelFileError: When a file cannot be written.
    """
    if precision == _QUANTIZED:
        raise UsageError(
            f"random model files are not written in {_QUANTIZED}",
            hint="write bf16, then make it q8 with `moshi-ctl quantize`",
        )
    configuration = config.read(config_path)
    for file in configuration.files:
        _check_target(file, overwrite=overwrite)
    written: list[Path] = []
    for module in configuration.modules:
        targets = {
            file.key: Path(file.value) for file in configuration.files if file.module == module
        }
        with ExitStack() as stack:
            drafts = {
                key: stack.enter_context(_draft_of(target)) for key, target in targets.items()
            }
            _native.write_random_checkpoint(
                config_path, module, seed=seed, precision=precision, **drafts
            )
            for key, target in targets.items():
                drafts[key].replace(target)
        written.extend(targets.values())
    return written


def _check_target(file: config.ModelFile, *, overwrite: bool) -> None:
    if hub.parse(file.value) is not None:
        raise UsageError(
            f"{file.key} of module {file.module!r} is {file.value}, a file of a hub",
            hint="name local files in a copy of the configuration",
        )
    if Path(file.value).exists() and not overwrite:
        raise UsageError(f"{file.value} is already there", hint="add --force to replace it")


@contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """`draft_of`, in a folder that is made where it is missing."""
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = stack.enter_context(draft_of(target))
        except OSError as error:
            raise ModelFileError(
                f"{target}: cannot be written: {error.strerror}",
                hint="choose a folder that can be written to",
            ) from error
        yield draft
