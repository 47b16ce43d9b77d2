from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from chaos.clean_streams import FreshServers, Heard, speech_and_echo
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import Samples
from support import configs
from support.worker import KEY, Worker, worker

LANES = 16
SECOND_PATH = "/api/second"

Start = Callable[..., AbstractContextManager[Worker]]


@pytest.fixture(scope="session")
def fresh(tiny_dir: Path) -> FreshServers:
    """What servers hear that were just started."""
    return FreshServers(tiny_dir)


@pytest.fixture(scope="session")
def audio() -> Samples:
    """What clean streams say."""
    return speech_and_echo()


@pytest.fixture(scope="session")
def expected(fresh: FreshServers, audio: Samples) -> Heard:
    """What clean streams have to hear."""
    return fresh.hear(audio)


@pytest.fixture
def start(tiny_dir: Path, tmp_path: Path) -> Start:
    """Starts workers of the tiny model with lanes enough for clean streams and their neighbours.

    Keyword arguments are limits, as in the configuration's section, but for `lanes` of each module,
    `modules`, of which the second is at `SECOND_PATH`, `open_files`, the file descriptors that the
    process may have, and `env`, what its environment has besides.
    """

    @contextmanager
    def start(
        *,
        lanes: int = LANES,
        modules: int = 1,
        open_files: int | None = None,
        env: Mapping[str, str] | None = None,
        **limits: float,
    ) -> Iterator[Worker]:
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in limits.items())
        config = configs.tiny(
            tmp_path,
            ("batch_size = 4", f"batch_size = {lanes}"),
            ("[modules.asr]", f"[limits]\n{lines}\n[modules.asr]" if limits else "[modules.asr]"),
        )
        if modules == 2:
            text = config.read_text()
            module = text[text.index("[modules.asr]") :].replace("[modules.asr", "[modules.second")
            config.write_text(text + module.replace(DEFAULT_PATH, SECOND_PATH))
        all_env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY, **(env or {})}
        with worker(config, cwd=tmp_path, env=all_env, open_files=open_files) as started:
            yield started

    return start


@pytest.fixture(scope="package")
def crowded(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with lanes enough for clean streams and their neighbours, that goes through all."""
    folder = tmp_path_factory.mktemp("crowded")
    config = configs.tiny(folder, ("batch_size = 4", f"batch_size = {LANES}"))
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with worker(config, cwd=folder, env=env) as started:
        yield started
