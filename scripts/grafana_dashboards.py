"""`make docs`: writes deploy/grafana/dashboards from the modules in scripts/dashboards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard, RowPanel

from dashboards.capacity import capacity
from dashboards.errors import errors
from dashboards.gpu import gpu
from dashboards.latency import latency
from dashboards.warmup import warmup

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards"


def built() -> dict[str, Dashboard]:
    """The dashboards, by the names of their files."""
    every = (capacity(), latency(), warmup(), errors(), gpu())
    return {f"{str(one.uid).removeprefix('moshi-')}.json": one for one in every}


def as_json(dashboard: Dashboard) -> str:
    """What Grafana reads; the same for the same dashboard."""
    return JSONEncoder(indent=2, sort_keys=True).encode(dashboard) + "\n"


def sketch(dashboard: Dashboard) -> str:
    """The dashboard as lines of text: rows, and where each panel is with what it asks."""
    lines = [f"{dashboard.title}: {dashboard.description}"]
    for panel in dashboard.panels or []:
        if isinstance(panel, RowPanel):
            lines.append(f"  {panel.title}")
            continue
        if (at := panel.grid_pos) is not None:
            columns = f"{at.x:>2}-{at.x + at.w:<2}"
            lines.append(f"    {columns} y={at.y:<2} h={at.h} {panel.type_val:14} {panel.title}")
        lines += [f"      {getattr(target, 'expr', target)}" for target in panel.targets or []]
    return "\n".join(lines)


def main() -> None:
    """Writes the files, or shows what is in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sketch", action="store_true", help="print the panels; write nothing")
    if parser.parse_args().sketch:
        print("\n\n".join(sketch(one) for one in built().values()))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, dashboard in built().items():
        (FOLDER / name).write_text(as_json(dashboard))
        print(FOLDER / name, file=sys.stderr)


if __name__ == "__main__":
    main()
