"""`make docs`: writes `docs/metrics.md`, the table of every metric, from the server's catalogue."""

from __future__ import annotations

import argparse
from pathlib import Path

from moshi_ctl import _native

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

_HEAD = """\
# Metrics

What a worker says at `/metrics`, in Prometheus's text format. Written by `make docs` from the
server's own catalogue (`rust/server/src/metrics/catalogue.rs`): change it there.

Names and units follow Prometheus's conventions; the `asr_*` ones are those of Kyutai's server.
Series of labels with known values exist from the start, at 0. A histogram `X` is `X_bucket`,
`X_sum` and `X_count`. Configuration for Prometheus, rules and dashboards:
[deploy/](../python/moshi_ctl/deploy/README.md).

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = []
    for metric in _native.metrics_table():
        labels = ", ".join(f"`{label}`" for label in metric["labels"])
        rows.append(f"| `{metric['name']}` | {metric['kind']} | {labels} | {metric['help']} |\n")
    return _HEAD + "".join(rows)


def main() -> None:
    """Writes the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
