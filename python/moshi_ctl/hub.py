"""Model files from a hub: what `hf://org/repo/file` in a configuration means."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from moshi_ctl.env import HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, value_of
from moshi_ctl.errors import ModelFileError

_SCHEME = "hf://"


@dataclass(frozen=True)
class HubFile:
    """One file of one repository."""

    repository: str
    name: str

    def __str__(self) -> str:
        return f"{self.name!r} of repository {self.repository!r}"


def parse(value: str) -> HubFile | None:
    """What `value` names on the hub, or None when it is not an `hf://` reference.

    Raises:
        ModelFileError: When it is one but lacks a part.
    """
    if not value.startswith(_SCHEME):
        return None
    organisation, _, rest = value.removeprefix(_SCHEME).partition("/")
    repository, _, name = rest.partition("/")
    if not (organisation and repository and name):
        raise ModelFileError(
            f"{value!r} does not name a file on the hub",
            hint=f"write {_SCHEME}organisation/repository/file",
        )
    return HubFile(f"{organisation}/{repository}", name)


def fetch_all(values: Iterable[str], *, show_progress: bool) -> dict[str, Path]:
    """Makes every `hf://` reference among `values` a local file, downloading what is missing.

    Returns:
        The local path of each reference; values of other kinds are left out.

    Raises:
        ModelFileError: Names the file, its repository, what happened and what to do.
    """
    wanted = {value: file for value in values if (file := parse(value)) is not None}
    return {value: fetch(file, show_progress=show_progress) for value, file in wanted.items()}


def cached(file: HubFile) -> Path | None:
    """The local path of `file` if it was downloaded before."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        path = huggingface_hub.try_to_load_from_cache(file.repository, file.name)
    except errors.HFValidationError as error:
        raise ModelFileError(
            f"cannot look for {file}: {_first_line(error)}",
            hint=f"write {_SCHEME}organisation/repository/file",
        ) from error
    return Path(path) if isinstance(path, str) else None


def endpoint() -> str:
    """Where `hf://` files come from, without a name and password that its address may hold."""
    from huggingface_hub import constants

    return re.sub(r"//.*@", "//", constants.ENDPOINT)


def ask(*, timeout_s: float) -> int:
    """The HTTP status that the hub answers with.

    Args:
        timeout_s: How long connecting, and then the answer, may take.

    Raises:
        ModelFileError: When there is no answer, or none is to be asked for.
    """
    import huggingface_hub
    from huggingface_hub import constants

    try:
        return huggingface_hub.get_session().head(constants.ENDPOINT, timeout=timeout_s).status_code
    except Exception as error:  # the library raises its HTTP client's own errors too
        raise ModelFileError(
            f"{endpoint()} does not answer ({_network_reason(error)})",
            hint=f"check the network, the proxy settings and {HF_ENDPOINT.name}",
        ) from error


def size_of(file: HubFile, *, timeout_s: float) -> int | None:
    """Bytes of `file` on the hub, or None where the hub does not tell.

    Raises:
        ModelFileError: Says why it could not be downloaded, and what to do.
    """
    import huggingface_hub

    try:
        url = huggingface_hub.hf_hub_url(file.repository, file.name)
        return huggingface_hub.get_hf_file_metadata(url, timeout=timeout_s).size
    except Exception as error:  # noqa: BLE001 - the library raises its HTTP client's own errors too
        _explain(file, error)


def fetch(file: HubFile, *, show_progress: bool) -> Path:
    """The local path of `file`, downloaded into the hub cache if it is not there yet.

    An interrupted connection is taken up again where it broke off.

    Raises:
        ModelFileError: Says what happened and what to do.
    """
    # Imported here because the library reads the environment when it is imported, and `.env` has
    # to be in it by then.
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not show_progress:
        disable_progress_bars()
    if logging.getLogger().handlers:
        # Its own handler would say the same once more, on standard error.
        logging.getLogger(huggingface_hub.__name__).handlers.clear()
    try:
        return Path(huggingface_hub.hf_hub_download(file.repository, file.name))
    except Exception as error:  # noqa: BLE001 - the library raises its HTTP client's own errors too
        _explain(file, error)


def _explain(file: HubFile, error: Exception) -> NoReturn:
    message, hint = _diagnose(file, error)
    raise ModelFileError(f"cannot get {file}: {message}", hint=hint) from error


def _diagnose(file: HubFile, error: Exception) -> tuple[str, str]:
    """What went wrong with a download, and what to do about it."""
    from huggingface_hub import constants, errors

    address = endpoint()
    page = f"{address}/{file.repository}"
    # What the library concluded comes first, what made it conclude that comes after.
    causes = [error, error.__cause__, error.__context__]
    response = next(
        (cause.response for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None
    )
    status = response.status_code if response is not None else None

    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return (
            f"access to the repository has to be granted first (HTTP {status})",
            f"accept its licence at {page}, then set {HF_TOKEN.name} to a token of that account",
        )
    if status in (401, 403):
        doing = "was not accepted" if value_of(HF_TOKEN) else "is not set"
        return (
            f"access was denied (HTTP {status}); {HF_TOKEN.name} {doing}",
            f"check that {page} exists, and set {HF_TOKEN.name} to a token that may read it",
        )
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return (
            f"there is no such repository at {address}, or it is private",
            f"check its name; for a private one set {HF_TOKEN.name} to a token that may read it",
        )
    if any(isinstance(cause, errors.RemoteEntryNotFoundError) for cause in causes):
        return (
            "the repository has no such file",
            f"compare the name with the files listed at {page}/tree/main",
        )
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return (
            f"it is not in the cache ({constants.HF_HUB_CACHE}) and {HF_HUB_OFFLINE.name} is set",
            f"unset {HF_HUB_OFFLINE.name} for one start, or point {HF_HOME.name} at a copied cache",
        )
    if status is not None:
        return (
            f"{address} answered HTTP {status}",
            "try again later; if it stays, see whether the hub has an outage",
        )
    full = next((c for c in causes if isinstance(c, OSError) and c.errno == errno.ENOSPC), None)
    if full is not None:
        return (
            f"no space left for the cache at {constants.HF_HUB_CACHE}",
            f"free some, or set {HF_HOME.name} to a folder on a larger disk",
        )
    denied = next((c for c in causes if isinstance(c, PermissionError)), None)
    if denied is not None:
        return (
            f"the cache cannot be written: {denied}",
            f"set {HF_HOME.name} to a folder you may write to",
        )
    reason = next((c for c in reversed(causes) if c is not None), error)
    return (
        f"no complete answer from {address} ({type(reason).__name__}: {_first_line(reason)})",
        f"check the network, the proxy settings and {HF_ENDPOINT.name}",
    )


def _network_reason(error: BaseException) -> str:
    """What the system said; a client's own words may hold what an address hides."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    name = type(error).__name__
    return name if cause is None else f"{name}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no details"
