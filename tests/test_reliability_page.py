"""The page about reliability names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
SOURCES = {path.name: path for path in (ROOT / "rust" / "server").glob("*/*.rs")}
ROWS = [
    row.split("|")[1:3]
    for row in PAGE.read_text(encoding="utf-8").partition("## Drills")[0].splitlines()
    if row.startswith("|") and ": `" in row
]


@pytest.mark.parametrize(("promise", "tests"), ROWS, ids=lambda cell: cell.strip()[:40])
def test_each_promise_has_tests_that_exist(promise: str, tests: str) -> None:
    file, names = re.fullmatch(r" `([\w/.]+)`: (.+) ", tests).groups()  # type: ignore[union-attr]
    path = SOURCES[file] if file.endswith(".rs") else ROOT / "tests" / file
    source = path.read_text(encoding="utf-8")
    found = re.findall(r"`(\w+)`", names)
    assert found, promise
    for name in found:
        assert re.search(rf"\b(fn|def) {name}\(", source), name


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 32
