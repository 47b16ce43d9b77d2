"""A real Prometheus on loopback with the shipped rules, always ended."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import http, loopback

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))

FASTER = 20
"""How much sooner than shipped rules react: all of their durations are divided by it."""

SCRAPE_INTERVAL_S = 0.5
"""Longer than the shipped one in relation: a scrape may take as long, on a machine that is busy."""

EVALUATION_INTERVAL_S = 5 / FASTER
JOB = "moshi-ctl"
OTHER_JOB = "prometheus"
"""Prometheus itself: a target that is none of ours, with metrics of a process."""

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 10.0

_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WINDOW = re.compile(r"(?<=\[)\d+(?:ms|[smhd])(?=\])")


def needs(binary: str) -> str:
    """The path of a program of the Debian package; skips the test where it is not installed."""
    path = shutil.which(binary)
    if path is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    return path


def rules() -> list[dict[str, Any]]:
    """The shipped rules, with group and file left out."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def faster(text: str) -> str:
    """A rule file whose windows and waiting times are `FASTER` times shorter.

    The expressions are otherwise those that are shipped: thresholds are absolute or per second, and
    stay.
    """
    document = yaml.safe_load(text)
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        rule["expr"] = _WINDOW.sub(lambda window: _shorter(window[0]), rule["expr"])
        for key in ("for", "keep_firing_for"):
            if key in rule:
                rule[key] = _shorter(rule[key])
    return str(yaml.safe_dump(document, sort_keys=False))


def _shorter(duration: str) -> str:
    match = re.fullmatch(r"(\d+)(ms|[smhd])", duration)
    assert match is not None, f"a duration with one unit: {duration}"
    return f"{round(int(match[1]) * _UNITS_S[match[2]] / FASTER * 1000)}ms"


@dataclass(frozen=True)
class Series:
    """A series that a query returned; one value where it asked for an instant."""

    labels: dict[str, str]
    values: list[float]

    @property
    def has_numbers(self) -> bool:
        return any(map(math.isfinite, self.values))


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    port: int

    def get(self, path: str, **parameters: str | float) -> Any:
        """What its API answers.

        Raises:
            AssertionError: When it refuses, with the reason.
        """
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=REQUEST_TIMEOUT_S) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expr: str) -> list[Series]:
        """Evaluates an expression now."""
        data = self.get("query", query=expr)
        if data["resultType"] == "scalar":
            return [Series({}, [float(data["result"][1])])]
        return [Series(one["metric"], [float(one["value"][1])]) for one in data["result"]]

    def query_range(self, expr: str, range_s: float, step_s: float) -> list[Series]:
        """Evaluates an expression over the time until now."""
        now = time.time()
        data = self.get("query_range", query=expr, start=now - range_s, end=now, step=step_s)
        return [
            Series(one["metric"], [float(value) for _, value in one["values"]])
            for one in data["result"]
        ]

    def label_values(self, label: str, selector: str) -> list[str]:
        """What Grafana offers for `label_values(selector, label)`."""
        values: list[str] = self.get(f"label/{label}/values", **{"match[]": selector})
        return values

    def alerts(self, instance: str) -> dict[str, dict[str, Any]]:
        """The alerts of a target that fire, by name, as they are sent on."""
        return {
            str(alert["labels"]["alertname"]): alert
            for alert in self.get("alerts")["alerts"]
            if alert["state"] == "firing" and alert["labels"].get("instance") == instance
        }

    def wait(self, what: str, happened: Callable[[], bool], timeout_s: float) -> None:
        """Waits until something happened that rules or scrapes bring about."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self._state()}"
            time.sleep(EVALUATION_INTERVAL_S)

    def _state(self) -> str:
        targets = self.get("targets")["activeTargets"]
        health = [(one["scrapeUrl"], one["health"], one["lastError"]) for one in targets]
        return f"targets: {health}\nalerts: {json.dumps(self.get('alerts'), indent=1)}"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Starts a Prometheus that scrapes `targets` and itself, with the shipped rules, `FASTER`."""
    program = needs("prometheus")
    (folder / "rules").mkdir(parents=True)
    for path in RULES:
        (folder / "rules" / path.name).write_text(faster(path.read_text()))
    scrape, evaluation = (
        f"{round(seconds * 1000)}ms" for seconds in (SCRAPE_INTERVAL_S, EVALUATION_INTERVAL_S)
    )
    port = free_port()
    config = {
        "global": {
            "scrape_interval": scrape,
            "scrape_timeout": scrape,
            "evaluation_interval": evaluation,
        },
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [
            {"job_name": JOB, "static_configs": [{"targets": list(targets)}]},
            {"job_name": OTHER_JOB, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, port, log)
        yield Prometheus(port)
    finally:
        loopback.end(process, END_TIMEOUT_S)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _is_ready(port):
        assert process.poll() is None, f"prometheus ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"not ready: {log.read_text()}"
        time.sleep(0.1)


def _is_ready(port: int) -> bool:
    try:
        return http.request(port, "GET", "/-/ready").status == 200
    except OSError:
        return False
