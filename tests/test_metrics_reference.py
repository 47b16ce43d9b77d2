"""The page about metrics says what the server does."""

from __future__ import annotations

import runpy
from pathlib import Path

from moshi_ctl import _native

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_catalogue_says() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "metrics_reference.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run `make docs`"


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
