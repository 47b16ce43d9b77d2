from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from moshi_ctl import env
from support import cli
from support.plans import Command
from support.worker import KEY, Worker, worker

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell starts in its background ignores Ctrl-C, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model files of the tiny-random configuration."""
    folder = tmp_path_factory.mktemp("tiny-random")
    result = cli.run(
        "random-checkpoint",
        "--config",
        "tiny-random",
        cwd=folder,
        env={"MOSHI_CTL_TINY_DIR": str(folder)},
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def server(tiny_dir: Path) -> Iterator[Worker]:
    """A worker with the tiny model that asks for `support.worker.KEY`."""
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with worker("tiny-random", cwd=tiny_dir, env=env) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in env.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """`moshi-ctl` in this process, in an empty folder, on a machine without cards."""
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)
