"""A worker process of its own, always ended."""

from __future__ import annotations

import json
import re
import signal
import ssl
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

_LISTENING = re.compile(r"listening on (https?)://127\.0\.0\.1:(\d+)")


@dataclass
class Worker:
    """A running worker.

    Attributes:
        process: The process.
        port: Where it listens.
        log: What it wrote so far, line by line.
        scheme: How it is asked: `http`, or `https` where it has a certificate.
        trust: The certificates that its own is checked with.
    """

    process: subprocess.Popen[str]
    port: int = 0
    log: list[str] = field(default_factory=list)
    scheme: str = "http"
    trust: ssl.SSLContext | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_over: bool = False

    @property
    def http(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.http.replace('http', 'ws')}/api/asr-streaming"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(  # noqa: S310
            f"{self.http}{path}", timeout=10, context=self.trust
        ) as response:
            return str(response.read().decode())

    def modules(self) -> list[dict[str, Any]]:
        modules: list[dict[str, Any]] = json.loads(self.get("/api/modules_info"))
        return modules

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(END_TIMEOUT_S)

    def until(self, text: str, timeout_s: float = END_TIMEOUT_S, *, after: int = 0) -> str:
        """The first line of its log with this text, from line `after` on; waits for it."""

        def found() -> str | None:
            return next((line for line in self.log[after:] if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._is_over, timeout_s)
            line = found()
        assert line is not None, f"never said {text!r}: {''.join(self.log)}"
        return line

    def read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.log.append(line)
                if (match := _LISTENING.search(line)) is not None:
                    self.scheme, self.port = match[1], int(match[2])
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wait_until_it_listens(self, timeout_s: float) -> None:
        with self._changed:
            known = self._changed.wait_for(lambda: self.port or self._is_over, timeout_s)
        assert known, f"not listening: {self.log}"
        assert self.port, f"ended instead of listening: {''.join(self.log)}"


@contextmanager
def worker(
    config: Path | str,
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    device: str | None = "cpu",
    port: int = 0,
    address_space_bytes: int | None = None,
    open_files: int | None = None,
) -> Iterator[Worker]:
    """Starts a worker on loopback, on a free port by default; `env` replaces the default key.

    Without a `device` the worker chooses, and says so.
    """
    with starting(
        config,
        *arguments,
        cwd=cwd,
        env=env,
        device=device,
        port=port,
        address_space_bytes=address_space_bytes,
        open_files=open_files,
    ) as started:
        started.wait_until_it_listens(start_timeout_s)
        yield started


@contextmanager
def starting(
    config: Path | str,
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    device: str | None = "cpu",
    port: int = 0,
    address_space_bytes: int | None = None,
    open_files: int | None = None,
) -> Iterator[Worker]:
    """A `worker` that does not listen yet."""
    on_device = [] if device is None else ["--device", device]
    process = subprocess.Popen(
        [
            *cli.command(address_space_bytes, open_files),
            "worker",
            "--config",
            str(config),
            "-a",
            "127.0.0.1",
            "-p",
            str(port),
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
    reader = threading.Thread(target=started.read_log, daemon=True)
    reader.start()
    try:
        yield started
    finally:
        # One that was stopped would not hear that it is to end.
        process.send_signal(signal.SIGCONT)
        loopback.end(process, END_TIMEOUT_S)
        reader.join(END_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()


def fail_to_warm_up(tiny_dir: Path, folder: Path, port: int) -> None:
    """Runs a worker of the tiny model whose weights are huge, in an empty folder, to its end."""
    for path in tiny_dir.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            (folder / path.name).symlink_to(path)
    safetensors.fill_with_huge_numbers(tiny_dir / "model.safetensors", folder / "model.safetensors")
    ended = cli.run(
        *(
            "worker",
            "--config",
            "tiny-random",
            "--device",
            "cpu",
            "-a",
            "127.0.0.1",
            "-p",
            str(port),
        ),
        # q8 refuses such numbers before.
        *("--precision", "f32"),
        cwd=folder,
        env={"MOSHI_CTL_TINY_DIR": str(folder), "MOSHI_API_KEY": KEY},
    )
    assert ended.returncode == 1
    assert "error: module asr: warm-up failed: " in ended.stderr
    assert "hint: " in ended.stderr
    assert "listening" not in ended.stdout
