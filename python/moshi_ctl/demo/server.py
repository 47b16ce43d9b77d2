"""A server of the demo's own: on a free port of loopback, with a key and a folder of its own."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from moshi_ctl import env, shipped
from moshi_ctl.errors import ClientError, WorkerError

START_TIMEOUT_S: Final = 120.0
END_TIMEOUT_S: Final = 15.0

_LISTENING: Final = re.compile(r"listening on http(://\S+)")
_MOST_LINE_BYTES: Final = 2**20
_KEPT_LINES: Final = 40

# What is set for servers that somebody runs is not for this one; what says how to compute is.
_FOR_US: Final = (
    env.MOSHI_INSTRUCTIONS,
    env.CUDA_VISIBLE_DEVICES,
    env.CUDA_DEVICE_ORDER,
    env.NO_COLOR,
)


@dataclass(frozen=True)
class Server:
    """A server that listens.

    Attributes:
        url: Its address, without a path.
        key: The key it asks for.
    """

    url: str
    key: str


@asynccontextmanager
async def serving(config_name: str, options: Sequence[str]) -> AsyncIterator[Server]:
    """Runs a worker until it is left, however that happens; shows what it said when it failed.

    Args:
        config_name: The shipped configuration that it serves.
        options: Options of the worker.

    Raises:
        WorkerError: When it does not come to listen.
    """
    key = secrets.token_urlsafe()
    with tempfile.TemporaryDirectory(prefix="moshi-ctl-demo-") as name:
        folder = Path(name)
        config = _write_config(config_name, folder)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moshi_ctl.demo.child", "worker", "--config", str(config)),
            *("--addr", "127.0.0.1", "--port", "0", *options),
            env=_environment(key),
            # Where no `.env` is.
            cwd=folder,
            # It ends when this does, however that happens.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_MOST_LINE_BYTES,
            # Ctrl-C is for us alone; we end the server afterwards.
            start_new_session=True,
        )
        reader = _Reader(process)
        reading = asyncio.create_task(reader.run())
        try:
            yield Server(await reader.url(), key)
        except (ClientError, WorkerError):
            for line in reader.said:
                print(line, file=sys.stderr)
            raise
        finally:
            await _end(process)
            # Its output ends with it, unless it gave that to somebody who goes on.
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@dataclass
class _Reader:
    """Reads what a worker says to its end, so that it never waits for somebody to do so.

    Attributes:
        process: The worker.
        said: The last lines.
    """

    process: asyncio.subprocess.Process
    said: collections.deque[str] = field(
        default_factory=lambda: collections.deque(maxlen=_KEPT_LINES)
    )
    _listening: asyncio.Future[str | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def run(self) -> None:
        stdout = self.process.stdout
        while stdout is not None and (line := await stdout.readline()):
            text = line.decode(errors="replace").rstrip()
            self.said.append(text)
            match = _LISTENING.search(text)
            if match is not None and not self._listening.done():
                self._listening.set_result(f"ws{match[1]}")
        if not self._listening.done():
            self._listening.set_result(None)

    async def url(self) -> str:
        """Where it listens, which it does only when its model is loaded and warm."""
        try:
            url = await asyncio.wait_for(asyncio.shield(self._listening), START_TIMEOUT_S)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise WorkerError(
                f"the demo's server does not listen after {START_TIMEOUT_S:.0f} s",
                hint="see what it said above",
            ) from error
        if url is None:
            code = await self.process.wait()
            raise WorkerError(
                f"the demo's server ended with exit code {code} instead of listening",
                hint="see what it said above",
            )
        return url


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):  # one that ended just now
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
    except (TimeoutError, asyncio.TimeoutError):
        pass
    finally:
        # Also when somebody does not want to wait any longer.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _write_config(name: str, folder: Path) -> Path:
    """A shipped configuration whose server writes nothing elsewhere."""
    import tomlkit

    document = tomlkit.parse(shipped.path_of(name).read_text(encoding="utf-8"))
    document["log_dir"] = str(folder / "logs")
    document["static_dir"] = str(folder / "static")
    path = folder / f"{name}.toml"
    path.write_text(tomlkit.dumps(document), encoding="utf-8")
    return path


def _environment(key: str) -> dict[str, str]:
    not_for_us = {variable.name for variable in env.VARIABLES if variable not in _FOR_US}
    kept = {name: value for name, value in os.environ.items() if name not in not_for_us}
    # Its working directory is another one.
    embedded = str(env.embedded_folder().absolute())
    return {**kept, env.MOSHI_CTL_EMBEDDED.name: embedded, env.MOSHI_API_KEY.name: key}
