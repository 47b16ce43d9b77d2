"""A worker process of its own, always ended."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import cli, loopback, safetensors

KEY = "test-key"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0

_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")


@dataclass
class Worker:
    """A running worker.

    Attributes:
        process: The process.
        port: Where it listens.
        log: What it wrote so far, line by line.
    """

    process: subprocess.Popen[str]
    port: int = 0
    log: list[str] = field(default_factory=list)
    _ready: threading.Event = field(default_factory=threading.Event)

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/asr-streaming"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.http}{path}", timeout=10) as response:  # noqa: S310
            return str(response.read().decode())

    def modules(self) -> list[dict[str, Any]]:
        modules: list[dict[str, Any]] = json.loads(self.get("/api/modules_info"))
        return modules

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(END_TIMEOUT_S)

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if (match := _LISTENING.search(line)) is not None:
                self.port = int(match[1])
                self._ready.set()
        self._ready.set()

    def wait_until_it_listens(self, timeout_s: float) -> None:
        reader = threading.Thread(target=self._read_log, daemon=True)
        reader.start()
        assert self._ready.wait(timeout_s), f"not listening: {self.log}"
        assert self.port, f"ended instead of listening: {''.join(self.log)}"


@contextmanager
def worker(
    config: Path | str,
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    device: str | None = "cpu",
    address_space_bytes: int | None = None,
) -> Iterator[Worker]:
    """Starts a worker on a free loopback port; `env` replaces the default key.

    Without a `device` the worker chooses, and says so.
    """
    on_device = [] if device is None else ["--device", device]
    process = subprocess.Popen(
        [
            *cli.command(address_space_bytes),
            "worker",
            "--config",
            str(config),
            "-a",
            "127.0.0.1",
            "-p",
            "0",
            *on_device,
            *arguments,
        ],
        cwd=cwd,
        env=cli.environment({"MOSHI_API_KEY": KEY} if env is None else env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    started = Worker(process)
    try:
        started.wait_until_it_listens(start_timeout_s)
        yield started
    finally:
        loopback.end(process, END_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()


def fail_to_warm_up(demo_dir: Path, folder: Path, port: int) -> None:
    """Runs a worker of the demo whose weights are too large, in an empty folder, to its end."""
    for path in demo_dir.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            (folder / path.name).symlink_to(path)
    safetensors.fill_with_largest(demo_dir / "model.safetensors", folder / "model.safetensors")
    ended = cli.run(
        *("worker", "--config", "demo", "--device", "cpu", "-a", "127.0.0.1", "-p", str(port)),
        # q8 refuses such numbers before, and every precision those that are not finite.
        *("--precision", "f32"),
        cwd=folder,
        env={"MOSHI_CTL_DEMO_DIR": str(folder), "MOSHI_API_KEY": KEY},
    )
    assert ended.returncode == 1
    assert "error: module asr: warm-up failed: " in ended.stderr
    assert "hint: " in ended.stderr
    assert "listening" not in ended.stdout
