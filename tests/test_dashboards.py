"""The shipped dashboards: Grafana's schema, and what a person needs to read them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from support import catalogue, dashboards
from support.prometheus import DEPLOY, rules

pytest.importorskip("grafana_foundation_sdk.cog", reason="Grafana's types need Python 3.11")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import grafana_dashboards

GRID_COLUMNS = 24
NAMES = [path.name for path in dashboards.FILES]

# Of Prometheus's data source, which the schema's annotations know nothing of.
NOT_IN_THE_SCHEMA = ("titleFormat", "tagKeys")


@pytest.fixture(params=NAMES)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dashboards.load(request.param)


def test_the_files_are_what_the_code_builds() -> None:
    built = {
        name: grafana_dashboards.as_json(dashboard)
        for name, dashboard in grafana_dashboards.built().items()
    }
    shipped = {path.name: path.read_text() for path in dashboards.FILES}
    assert shipped == built, "run: make docs"


def test_grafana_s_own_types_read_and_write_a_file_unchanged(dashboard: dict[str, Any]) -> None:
    for annotation in dashboard["annotations"]["list"]:
        for field in NOT_IN_THE_SCHEMA:
            del annotation[field]
    register_default_plugins()
    parsed = Dashboard.from_json(json.loads(json.dumps(dashboard)))
    assert json.loads(JSONEncoder().encode(parsed)) == dashboard
    targets = [target for panel in parsed.panels or [] for target in getattr(panel, "targets", [])]
    assert {type(target).__module__.rpartition(".")[2] for target in targets} == {"prometheus"}


def test_there_is_one_for_each_question() -> None:
    assert {dashboards.load(name)["uid"] for name in NAMES} == {
        *("moshi-capacity", "moshi-latency", "moshi-warmup", "moshi-errors", "moshi-gpu"),
    }
    titles = {dashboards.load(name)["title"] for name in NAMES}
    assert len(titles) == len(NAMES)


def test_ids_are_unique(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboards.panels(dashboard):
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert references


def test_panels_fill_the_grid_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [
        {
            (column, line)
            for column in range(at["x"], at["x"] + at["w"])
            for line in range(at["y"], at["y"] + at["h"])
        }
        for at in places
    ]
    for one, other in combinations(cells, 2):
        assert not one & other
    covered = set().union(*cells)
    lines = {line for _, line in covered}
    assert lines == set(range(max(lines) + 1))
    assert covered == {(column, line) for column in range(GRID_COLUMNS) for line in lines}


def test_a_panel_says_what_it_shows_and_in_which_unit(dashboard: dict[str, Any]) -> None:
    assert dashboard["description"]
    for panel in dashboards.panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_what_is_compared_with_a_frame_s_time_has_a_line_there() -> None:
    latency = dashboards.load("latency.json")
    (steps,) = (panel for panel in latency["panels"] if panel["title"] == "Step duration")
    defaults = steps["fieldConfig"]["defaults"]
    assert [step["value"] for step in defaults["thresholds"]["steps"]] == [None, 0.08]
    assert defaults["custom"]["thresholdsStyle"]["mode"] == "line"
    assert defaults["unit"] == "s"
    assert "heatmap" in [panel["type"] for panel in latency["panels"]]


def test_variables_narrow_every_query(dashboard: dict[str, Any]) -> None:
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "module"]
    for name in ("job", "instance", "module"):
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
    # All jobs are all of ours: see tests/test_monitoring.py.
    assert "allValue" not in variables["job"]
    assert variables["instance"]["allValue"] == variables["module"]["allValue"] == dashboards.ALL
    for panel in dashboards.panels(dashboard):
        for target in panel["targets"]:
            # Every selector, and so every metric, of the expression.
            selectors = re.findall(r"\{([^}]*)\}", target["expr"])
            assert selectors
            for selector in selectors:
                assert 'job=~"$job", instance=~"$instance"' in selector, target["expr"]


def test_modules_can_be_chosen_where_a_metric_has_them() -> None:
    per_module = {
        name
        for metric in catalogue.table()
        if "module" in metric["labels"]
        for name in catalogue.names(metric)
    }
    for query in dashboards.queries():
        for metric, selector in re.findall(r"([\w:]+)\{([^}]*)\}", query.expr):
            assert ('module=~"$module"' in selector) == (metric in per_module), query


def test_dashboards_lead_to_each_other_and_mark_alerts(dashboard: dict[str, Any]) -> None:
    (link,) = dashboard["links"]
    assert (link["type"], link["tags"], link["includeVars"]) == ("dashboards", ["moshi-ctl"], True)
    assert "moshi-ctl" in dashboard["tags"]
    annotations = {one["name"]: one["expr"] for one in dashboard["annotations"]["list"]}
    assert set(annotations) == {"Critical alerts", "Warnings", "Starts"}
    severities = {rule["labels"]["severity"] for rule in rules() if "alert" in rule}
    marked = " ".join(annotations.values())
    assert all(f'severity="{severity}"' in marked for severity in severities)


def test_queries_ask_for_metrics_that_there_are() -> None:
    known = catalogue.series() | {"up", "ALERTS"}
    for query in dashboards.queries():
        unknown = catalogue.metrics_in(query.expr) - known
        assert not unknown, query


def test_all_metrics_of_a_worker_are_shown_somewhere() -> None:
    shown = " ".join(query.expr for query in dashboards.queries())
    left_out = {
        # The originals, for dashboards of others; ours have a module.
        *("asr_connect", "asr_open_channels", "asr_model_step_duration"),
        "asr_connection_num_steps",
        # Address space says nothing about memory in use.
        "process_virtual_memory_bytes",
    }
    missing = {
        metric["name"]
        for metric in catalogue.table()
        if not any(re.search(rf"\b{name}\b", shown) for name in catalogue.names(metric))
    }
    assert missing == left_out


def test_the_provisioned_data_source_knows_the_scrape_interval() -> None:
    grafana = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((grafana / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((grafana / "dashboards" / "moshi-ctl.yml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "$GRAFANA_DASHBOARDS_DIR"
