"""Whether a worker warms up: what the option, the variable and the configuration say together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from moshi_ctl import _native
from support import cli, configs
from support.exposition import samples
from support.plans import Command, Said
from support.worker import KEY, worker

USAGE_ERROR = 2

Serve: TypeAlias = Callable[..., tuple[Said, list[Any]]]


@pytest.fixture(name="serve")
def _serve(command: Command, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Runs a worker up to its server, which notes what it is told of the warm-up."""

    def run(*arguments: str) -> tuple[Said, list[Any]]:
        told: list[Any] = []
        monkeypatch.setattr(_native, "serve", lambda _, **options: told.append(options["warmup"]))
        command.set(MOSHI_CTL_TINY_DIR=str(tiny_dir), MOSHI_API_KEY=KEY)
        return command("worker", "--config", "tiny-random", "--cpu", *arguments), told

    return run


@pytest.mark.parametrize(
    ("arguments", "value", "expected"),
    [
        # The configuration says it.
        ([], None, None),
        ([], "", None),
        ([], "  ", None),
        ([], "off", False),
        ([], "0", False),
        ([], "False", False),
        ([], " no ", False),
        ([], "on", True),
        ([], "1", True),
        ([], "TRUE", True),
        ([], "yes", True),
        (["--no-warmup"], None, False),
        (["--no-warmup"], "off", False),
        # The option counts more.
        (["--no-warmup"], "on", False),
        (["--no-warmup"], "maybe", False),
    ],
)
def test_who_decides(
    arguments: list[str], value: str | None, expected: bool | None, command: Command, serve: Serve
) -> None:
    if value is not None:
        command.set(MOSHI_WARMUP=value)
    said, told = serve(*arguments)
    assert (said.code, told) == (0, [expected])


MEASURES = "Before its port opens a worker measures how many lanes"


@pytest.mark.parametrize(
    ("value", "measures"), [(None, True), ("on", True), ("off", False), ("0", False)]
)
def test_the_plan_promises_what_a_worker_does(
    value: str | None, measures: bool, command: Command, serve: Serve
) -> None:
    # Without a warm-up, nothing is measured either.
    if value is not None:
        command.set(MOSHI_WARMUP=value)
    said, _ = serve()
    assert (MEASURES in said.out) == measures
    assert (MEASURES in command("plan", "--config", "tiny-random", "--cpu").out) == measures
    said, _ = serve("--no-warmup")
    assert MEASURES not in said.out


@pytest.mark.parametrize("value", ["maybe", "2", "-1", "nan", "offf", "off!", "ни"])
def test_a_value_that_is_neither_on_nor_off(value: str, command: Command, serve: Serve) -> None:
    command.set(MOSHI_WARMUP=value)
    said, told = serve()
    assert (said.code, said.out, told) == (USAGE_ERROR, "", [])
    assert said.error == f"error: MOSHI_WARMUP: {value!r} is neither on nor off"
    assert said.hint == "hint: use on or off"
    assert len(said.err.splitlines()) == 2


def test_dot_env_may_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    # So that what the file sets is taken back.
    monkeypatch.setenv("MOSHI_WARMUP", "")
    del os.environ["MOSHI_WARMUP"]
    (tmp_path / ".env").write_text("MOSHI_WARMUP=off\n")
    _, told = serve()
    assert told == [False]


def test_the_option_takes_no_value(tmp_path: Path) -> None:
    result = cli.run("worker", "--config", "tiny-random", "--no-warmup=off", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (USAGE_ERROR, "")
    assert "--no-warmup" in result.stderr


# What becomes of it.


def started(
    config: str | Path, tiny_dir: Path, tmp_path: Path, *arguments: str, **variables: str
) -> tuple[str, dict[str, float]]:
    """What a worker logged until it listened, and the metrics of its module."""
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY, **variables}
    with worker(config, *arguments, cwd=tmp_path, env=env) as server:
        return "".join(server.log), samples(server, module="asr")


def configured(folder: Path, enabled: str) -> Path:
    return configs.shipped_copy(folder, "tiny-random", section=f"[warmup]\nenabled = {enabled}\n")


@pytest.mark.parametrize(
    ("enabled", "arguments", "variables"),
    [
        ("true", ["--no-warmup"], {}),
        ("true", [], {"MOSHI_WARMUP": "off"}),
        ("true", ["--no-warmup"], {"MOSHI_WARMUP": "on"}),
        ("false", [], {}),
    ],
)
def test_a_worker_that_does_not_warm_up(
    enabled: str,
    arguments: list[str],
    variables: dict[str, str],
    tiny_dir: Path,
    tmp_path: Path,
) -> None:
    config = configured(tmp_path, enabled)
    log, metrics = started(config, tiny_dir, tmp_path, *arguments, **variables)
    assert "warm-up skipped" in log
    assert "warm-up done" not in log
    assert metrics["warmup_skipped_total"] == 1
    assert metrics["warmup_success_total"] == metrics["warmup_failure_total"] == 0
    assert metrics["warmup_duration_seconds_count"] == 0


@pytest.mark.parametrize(
    ("enabled", "variables"), [("true", {}), ("false", {"MOSHI_WARMUP": "on"})]
)
def test_a_worker_that_warms_up(
    enabled: str, variables: dict[str, str], tiny_dir: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, enabled)
    log, metrics = started(config, tiny_dir, tmp_path, **variables)
    assert "warm-up done" in log
    assert "skipped" not in log
    assert metrics["warmup_success_total"] == metrics["warmup_duration_seconds_count"] == 1
    assert metrics["warmup_duration_seconds_sum"] > 0
    assert metrics["warmup_skipped_total"] == metrics["warmup_failure_total"] == 0
