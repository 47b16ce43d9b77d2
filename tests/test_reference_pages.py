"""The pages about metrics and limits say what the server does."""

from __future__ import annotations

import runpy
from pathlib import Path

from moshi_ctl import _native

ROOT = Path(__file__).parents[1]


def test_pages_are_what_the_code_says() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "reference_pages.py"))
    for path, page in script["PAGES"].items():
        assert path.read_text(encoding="utf-8") == page(), f"{path.name}: run `make docs`"


def test_a_limit_says_what_happens_and_has_its_unit_in_its_name() -> None:
    units = {"seconds": "_s", "MiB": "_mb", "KiB": "_kb"}
    for limit in _native.limits_table():
        assert limit["help"].endswith("."), limit
        assert limit["name"].endswith(units.get(limit["unit"], "")), limit


def test_names_follow_the_conventions() -> None:
    for metric in _native.metrics_table():
        name, kind = metric["name"], metric["kind"]
        assert metric["help"].endswith("."), name
        if name.startswith("asr_"):
            continue  # Kyutai's
        assert name.startswith(("moshi_", "warmup_", "process_")), name
        assert name.endswith("_total") == (kind == "counter") or name.endswith("_bytes_total"), name
        if kind == "histogram":
            assert name.endswith("_seconds"), name
