"""`make docs`: writes the pages of `docs/` that are tables of what the server's code defines."""

from __future__ import annotations

import argparse
from pathlib import Path

from moshi_ctl import _native

DOCS = Path(__file__).resolve().parents[1] / "docs"

_METRICS = """\
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

_LIMITS = """\
# Limits

What a worker bears of its clients and of its models: the section `[limits]` of a configuration.
Written by `make docs` from the server's own list (`rust/server/src/limits/mod.rs`): change it
there.

Every key may be left out. The defaults are safe for a server that strangers can reach, and large
enough that no client in the field is known to meet them. What is not here has no limit but the
machine's: see [SECURITY.md](../SECURITY.md).

```toml
[limits]
message_mb = 4
connections_per_address = 64
```

| key | default | unit | what is limited, and what happens beyond |
|---|---|---|---|
"""


def metrics() -> str:
    """The page about metrics."""
    rows = []
    for metric in _native.metrics_table():
        labels = ", ".join(f"`{label}`" for label in metric["labels"])
        rows.append(f"| `{metric['name']}` | {metric['kind']} | {labels} | {metric['help']} |\n")
    return _METRICS + "".join(rows)


def limits() -> str:
    """The page about limits."""
    rows = []
    for limit in _native.limits_table():
        default = limit["default"]
        shown = str(default).lower() if isinstance(default, bool) else f"{default:,.10g}"
        rows.append(f"| `{limit['name']}` | {shown} | {limit['unit']} | {limit['help']} |\n")
    return _LIMITS + "".join(rows)


PAGES = {DOCS / "metrics.md": metrics, DOCS / "limits.md": limits}
"""Where each page is, and what writes it."""


def main() -> None:
    """Writes the pages."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
