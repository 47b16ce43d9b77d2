"""The shipped dashboards, and their queries as Grafana sends them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support.prometheus import DEPLOY, SCRAPE_INTERVAL_S

FOLDER = DEPLOY / "grafana" / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))

RANGE_S = 30.0
STEP_S = 1.0
ALL = ".*"


@dataclass(frozen=True)
class PanelQuery:
    """One query of a panel.

    Attributes:
        instant: Asked for the latest values only.
    """

    dashboard: str
    panel: str
    expr: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}: {self.expr}"


def load(name: str) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return dashboard


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All panels but the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> Iterator[PanelQuery]:
    for path in FILES:
        dashboard = load(path.name)
        for panel in panels(dashboard):
            for target in panel["targets"]:
                instant = bool(target.get("instant"))
                yield PanelQuery(path.stem, panel["title"], target["expr"], instant)


def substituted(expr: str, chosen: Mapping[str, str]) -> str:
    """An expression with Grafana's variables filled in, and with `chosen` for ours.

    `$__rate_interval` is what Grafana makes of the panel's step and the data source's scrape
    interval.
    """
    rate_interval_s = max(STEP_S + SCRAPE_INTERVAL_S, 4 * SCRAPE_INTERVAL_S)
    values = {
        "__rate_interval": f"{round(rate_interval_s * 1000)}ms",
        "__interval": f"{round(STEP_S * 1000)}ms",
        "__range": f"{round(RANGE_S)}s",
        **chosen,
    }
    return re.sub(r"\$(\w+)", lambda variable: values[variable[1]], expr)


def literally(value: str) -> str:
    """A chosen value as Grafana puts it into a regular expression in a string."""
    return re.escape(value).replace("\\", "\\\\")
