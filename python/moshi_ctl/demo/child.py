"""`python -m moshi_ctl.demo.child ARGUMENTS`: `moshi-ctl ARGUMENTS`, only while its parent lives.

The parent keeps our standard input open and says nothing there; the system closes it even when the
parent was killed and could end nobody.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

from moshi_ctl.cli import main

_STANDARD_INPUT: Final = 0


def _end_with_parent() -> None:
    # Not `sys.stdin`, whose lock nobody may hold when the interpreter ends.
    while os.read(_STANDARD_INPUT, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main()
