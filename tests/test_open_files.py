"""A worker may have as many connections as the system lets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="only Unix limits open files this way")

_RAISE = """
import resource, sys
from moshi_ctl import open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
open_files.allow_as_many_as_possible()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "after"), [(100, 200, 200), (200, 200, 200)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int, after: int) -> None:
    said = subprocess.run(
        [sys.executable, "-c", _RAISE, str(soft), str(hard)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert said.stdout.split() == [str(after), str(hard)]
