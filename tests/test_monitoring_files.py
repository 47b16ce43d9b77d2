"""`moshi-ctl monitoring`: who installed a wheel gets rules and dashboards too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.plans import Command
from support.prometheus import DEPLOY


def test_they_are_those_of_the_repository(command: Command, tmp_path: Path) -> None:
    said = command("monitoring", "new/watching").out
    target = tmp_path / "new" / "watching"
    written = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
    ours = {path.relative_to(DEPLOY.resolve()) for path in DEPLOY.resolve().rglob("*.*")}
    assert written == {path for path in ours if path.parts[:2] != ("prometheus", "tests")}
    assert {path.suffix for path in written} == {".json", ".md", ".yml"}
    for path in written:
        assert (target / path).read_bytes() == (DEPLOY / path).read_bytes()
        assert f"new/watching/{path}" in said
    assert json.loads((target / "grafana/dashboards/capacity.json").read_text())["panels"]
    scraped = yaml.safe_load((target / "prometheus/prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["job_name"] == "moshi-ctl"
    assert list((target / "prometheus").glob(scraped["rule_files"][0]))


def test_an_empty_folder_will_do(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert command("monitoring", "empty").code == 0
    assert (tmp_path / "empty" / "README.md").is_file()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_that_is_there_is_touched(kind: str, command: Command, tmp_path: Path) -> None:
    target = tmp_path / "there"
    if kind == "folder":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    refused = command("monitoring", "there")
    assert refused.code == 2
    assert "there: there is something already" in refused.err
    assert "hint: name a folder that is not there yet" in refused.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_where_nothing_can_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = command("monitoring", "file/below")
    assert refused.code == 2
    assert "file/below: cannot be written" in refused.err
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
