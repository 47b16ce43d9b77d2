"""The shipped rules and Prometheus's configuration, as `promtool` sees them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import catalogue
from support.prometheus import DEPLOY, faster, needs, rules

CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
UNIT_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = [rule for rule in rules() if "record" in rule]


def promtool(*arguments: str | Path) -> str:
    result = subprocess.run(
        [needs("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def unit_tests() -> list[dict[str, Any]]:
    return [test for path in UNIT_TESTS for test in yaml.safe_load(path.read_text())["tests"]]


def test_the_configuration_is_valid_and_finds_the_rules() -> None:
    said = promtool("check", "config", "--lint=all", "--lint-fatal", CONFIG)
    found = sum(int(number) for number in re.findall(r"(\d+) rules found", said))
    assert found == len(ALERTS) + len(RECORDED)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_unit_tests_say(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_shortened_rules_are_still_rules(tmp_path: Path) -> None:
    """They are what tests/test_monitoring.py loads."""
    text = faster((DEPLOY / "prometheus" / "rules" / "alerts.yml").read_text())
    (tmp_path / "rules.yml").write_text(text)
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")
    assert "[3000ms]" in text
    assert not re.search(r"\[\d+[smhd]\]", text)


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_each_alert_is_seen_to_fire_and_not_to_fire(alert: str) -> None:
    checks = [
        bool(check.get("exp_alerts"))
        for test in unit_tests()
        for check in test.get("alert_rule_test", [])
        if check["alertname"] == alert
    ]
    assert True in checks
    assert False in checks


@pytest.mark.parametrize("name", [rule["record"] for rule in RECORDED])
def test_each_recorded_series_is_computed(name: str) -> None:
    expected = [
        check
        for test in unit_tests()
        for check in test.get("promql_expr_test", [])
        if name in check["expr"] and check["exp_samples"]
    ]
    assert expected


def test_unit_tests_name_alerts_that_exist() -> None:
    named = {
        check["alertname"] for test in unit_tests() for check in test.get("alert_rule_test", [])
    }
    assert named == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_it_is_about_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (DEPLOY.parent / path).read_text(), flags=re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
    assert anchor == alert["alert"].lower()


def test_rules_ask_for_metrics_that_a_worker_has() -> None:
    known = catalogue.series() | {rule["record"] for rule in RECORDED} | {"up"}
    for rule in rules():
        unknown = catalogue.metrics_in(rule["expr"]) - known
        assert not unknown, rule
