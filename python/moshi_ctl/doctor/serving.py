"""Checks of what a configuration needs: room, the hub, files, disk space, a folder for logs."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from moshi_ctl import config, hub, plan, shipped
from moshi_ctl.config import ModelFile
from moshi_ctl.devices import CPU
from moshi_ctl.doctor.findings import Finding, Situation, failure, ok, warning
from moshi_ctl.env import HF_HOME, HF_HUB_OFFLINE, HF_TOKEN
from moshi_ctl.errors import ModelFileError
from moshi_ctl.plan import ModulePlan, Wishes
from moshi_ctl.units import BYTES_PER_GB, counted, memory, size

_HUB_TIMEOUT_S: Final = 3.0
# For the sizes of all files together.
_SIZES_TIMEOUT_S: Final = 4.0
_SERVER_ERROR: Final = 500

# Where it is not known how much is to be downloaded.
_COMFORTABLE_BYTES: Final = 5 * BYTES_PER_GB


def configuration(situation: Situation) -> list[Finding]:
    """Whether the configuration can be used; keeps it for the checks that need one."""
    if situation.config_name is None:
        return []
    read = config.read(shipped.find(situation.config_name))
    situation.configuration = read
    served = ", ".join(f"{name} at {module.path}" for name, module in read.modules.items())
    return [ok("configuration", f"{read.path} ({served})")]


def lanes(situation: Situation) -> list[Finding]:
    """Whether the configuration's modules fit, and with how many lanes."""
    if situation.configuration is None:
        return []
    decided = plan.make(situation.configuration, situation.machine, Wishes(), only_plans=True)
    findings = []
    for device in decided.devices:
        if device.shortfall is None:
            findings += [_lanes(module) for module in device.modules]
        else:
            findings.append(failure("plan", device.shortfall.message, device.shortfall.hint))
    return findings + [warning("plan", one.message, one.hint) for one in decided.warnings]


def hub_access(situation: Situation) -> list[Finding]:
    """Whether files could be downloaded now."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return [ok("hub", f"offline by {HF_HUB_OFFLINE.name}")]
    token = "a token is set" if huggingface_hub.get_token() else f"{HF_TOKEN.name} is not set"
    try:
        status = hub.ask(timeout_s=_HUB_TIMEOUT_S)
    except ModelFileError as error:
        message, remedy = error.message, error.hint
    else:
        situation.hub_answers = status < _SERVER_ERROR
        if situation.hub_answers:
            return [ok("hub", f"{hub.endpoint()} answers; {token}")]
        message = f"{hub.endpoint()} answers HTTP {status}"
        remedy = "try again later; if it stays, see whether the hub has an outage"
    count = len(situation.missing)
    if count:
        files_are = counted(count, "file is", "files are")
        return [failure("hub", f"{message}; {files_are} to be downloaded", remedy)]
    return [warning("hub", f"{message}; files that are here already do without", remedy)]


def files(situation: Situation) -> list[Finding]:
    """Whether each file of the configuration is here, or can be had."""
    if situation.configuration is None:
        return []
    until = time.monotonic() + _SIZES_TIMEOUT_S
    sizes: dict[str, int | None] = {}
    findings = [_file(file, situation, sizes, until) for file in situation.configuration.files]
    known = [count for count in sizes.values() if count is not None]
    if len(known) == len(sizes) == len(situation.missing):
        situation.download_bytes = sum(known)
    return findings


def disk(situation: Situation) -> list[Finding]:
    """Whether what is to be downloaded has a place to go."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = _nearest(cache)
    free = shutil.disk_usage(place).free
    message = f"{size(free)} free for downloads to {cache}"
    needed = situation.download_bytes
    nothing = situation.configuration is not None and not situation.missing
    if nothing:
        return [ok("disk space", f"{message}; nothing is to be downloaded")]
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        report = warning if situation.configuration is None else failure
        remedy = f"set {HF_HOME.name} to a folder you may write to"
        return [report("disk space", f"{cache}: {place} cannot be written to", remedy)]
    remedy = f"free some, or set {HF_HOME.name} to a folder on a larger disk"
    if needed is not None:
        message += f", {size(needed)} to be downloaded"
        return [
            failure("disk space", message, remedy) if needed > free else ok("disk space", message)
        ]
    if free < _COMFORTABLE_BYTES:
        return [warning("disk space", f"{message}; models take several GB", remedy)]
    return [ok("disk space", message)]


def log_folder(situation: Situation) -> list[Finding]:
    """Whether the server could write its log files; it would serve without."""
    if situation.configuration is None:
        return []
    name = "log directory"
    folder = situation.configuration.log_dir
    remedy = "set log_dir of the configuration to a folder you may write to"
    if not folder.is_dir():
        place = _nearest(folder)
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return [ok(name, f"{folder}, which the server will make")]
        why = "cannot be written to" if place.is_dir() else "is not a folder"
        return [warning(name, f"{folder} cannot be made: {place} {why}", remedy)]
    try:
        # The system removes it, whatever happens; it has no name where that is possible.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        return [warning(name, f"{folder} cannot be written to: {why}", remedy)]
    return [ok(name, str(folder))]


def _lanes(module: ModulePlan) -> Finding:
    where = f"on {module.device} in {module.chosen.precision}, {memory(module.total_bytes)} in all"
    if module.wanted is None or module.lanes >= module.wanted:
        # As many as memory holds may be more than real time allows.
        most = "up to " if module.wanted is None and module.device == CPU else ""
        return ok("plan", f"{module.module}: {most}{counted(module.lanes, 'lane')} {where}")
    return warning(
        "plan",
        f"{module.module}: only {module.lanes} of {module.wanted} lanes fit {where}",
        f'write batch_size = {module.lanes} or "auto", or free memory; `moshi-ctl plan` shows '
        "what takes it",
    )


def _file(
    file: ModelFile, situation: Situation, sizes: dict[str, int | None], until: float
) -> Finding:
    """Whether a file is here, or can be had; what is asked of the hub is noted in `sizes`."""
    what = f"{file.key} of module {file.module}: {file.value}"
    reference = hub.parse(file.value)
    if reference is None:
        return _local_file(file, what)
    if reference not in situation.missing:
        return ok("files", f"{what} was downloaded")
    if not situation.hub_answers:
        return _later(what)
    if file.value not in sizes:
        left_s = until - time.monotonic()
        sizes[file.value] = None
        if left_s > 0:
            try:
                sizes[file.value] = hub.size_of(reference, timeout_s=min(left_s, _HUB_TIMEOUT_S))
            except ModelFileError as error:
                return failure("files", f"{what}: {error.message}", error.hint)
    count = sizes[file.value]
    return ok("files", f"{what} is to be downloaded{'' if count is None else f' ({size(count)})'}")


def _later(what: str) -> Finding:
    from huggingface_hub import constants

    if not constants.is_offline_mode():
        return ok("files", f"{what} is to be downloaded")
    return failure(
        "files",
        f"{what} was not downloaded, and {HF_HUB_OFFLINE.name} is set",
        f"unset {HF_HUB_OFFLINE.name} for one start, or point {HF_HOME.name} at a copied cache",
    )


def _local_file(file: ModelFile, what: str) -> Finding:
    path = Path(file.value)
    if path.is_file() and os.access(path, os.R_OK):
        return ok("files", f"{what} is here ({size(path.stat().st_size)})")
    if path.is_file():
        return failure("files", f"{what} cannot be read", "let this user read it")
    why = "is a folder" if path.is_dir() else "does not exist"
    remedy = f"put the file there, or correct {file.key} in the configuration"
    return failure("files", f"{what} {why}", remedy)


def _nearest(path: Path) -> Path:
    """The path itself, or what there is of those above it."""
    path = path.absolute()
    return next((one for one in (path, *path.parents) if one.exists()), path)
