from __future__ import annotations

import pytest

from moshi_ctl import units


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 KiB"),
        (1023 * 1024, "1023 KiB"),
        (512 * 2**20, "512 MiB"),
        (int(199.75 * 2**20), "199.8 MiB"),
        (2**30 - 1, "1024 MiB"),
        (2**30, "1.00 GiB"),
        (80 * 2**30, "80.00 GiB"),
    ],
)
def test_memory(count: int, written: str) -> None:
    assert units.memory(count) == written
