"""How many files and connections this process may have open."""

from __future__ import annotations

import contextlib
import sys

_ENOUGH = 65_536


def allow_as_many_as_possible() -> None:
    """Raises the limit of open files to what the system allows this process.

    Systems begin with 1,024 for the sake of old programs that cannot count further; a server takes
    one for each connection.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= enough:
        return
    # macOS says infinity and means less; then what there was stays.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
