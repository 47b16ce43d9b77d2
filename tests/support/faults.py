"""Workers whose model fails on purpose: `make faults` builds them, and nobody ships them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PACKAGE = Path(sys.prefix, "faults")

needs_faults = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="no build whose model can be made to fail: make faults"
)


def failing(fault: str) -> dict[str, str]:
    """The environment of a worker with a fault, like `panic@10`.

    Steps are counted from 1 after the warm-up, those of all lanes together.
    """
    return {"PYTHONPATH": str(PACKAGE), "MOSHI_FAULT": fault}
