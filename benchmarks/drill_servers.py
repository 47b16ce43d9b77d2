"""The two servers of `reliability.py`, as processes with one configuration and the same weights."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from measuring import cache

from moshi_ctl import _native, shipped

# What the drills do to a server, its clients do in the tests too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import loopback
from support.crowd import Target

KEY = "benchmark"
ORIGINAL_VERSION = "0.6.4"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 15.0
LANES = 2

_READY_PATHS = {"ours": "/health/ready", "original": "/api/build_info"}
_SETTINGS = """\
authorized_ids = ["{key}"]
instance_name = "drills"
log_dir = "{folder}/logs"
static_dir = "{folder}/static"

# Every client gets a lane, whatever our worker would find of the machine; the original reads on.
[sizing]
real_time = false

"""


@dataclass
class Server:
    """A server that runs.

    Attributes:
        name: "ours" or "original".
        process: The process.
        port: Where it listens.
        started_s: When it was started.
    """

    name: str
    process: subprocess.Popen[bytes]
    port: int
    started_s: float

    @property
    def target(self) -> Target:
        """For the clients of the tests."""
        return Target(self.process.pid, self.port, KEY)

    def get(self, path: str, timeout_s: float = 2.0) -> tuple[int, bytes]:
        """Status and body of a GET; status 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether it says so, at the place that monitoring of this server asks."""
        return self.get(_READY_PATHS[self.name])[0] == 200

    def listens(self) -> bool:
        """Whether the port is open."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def used_lanes(self) -> int:
        """Lanes that are taken; -1 when it does not say."""
        status, body = self.get("/api/modules_info")
        return int(json.loads(body)[0]["used_slots"]) if status == 200 else -1

    def resident_bytes(self) -> int:
        """Memory; 0 when the process is gone."""
        with suppress(psutil.Error):
            return int(psutil.Process(self.process.pid).memory_info().rss)
        return 0


def until(is_so: Callable[[], bool], timeout_s: float, since_s: float | None = None) -> float:
    """Seconds until something is so, from `since_s` on; infinite when it never was."""
    begin_s = time.monotonic() if since_s is None else since_s
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline_s:
            return float("inf")
        time.sleep(0.005)
    return time.monotonic() - begin_s


@dataclass
class Servers:
    """What starts servers of one kind.

    Attributes:
        name: "ours" or "original".
        program: The command before its arguments.
        folder: Where configuration and logs go.
        faults: Our package with faults built in; None where there is none.
    """

    name: str
    program: list[str]
    folder: Path
    faults: Path | None = None

    def can_fail_on_demand(self) -> bool:
        """Whether `running` takes a fault."""
        return self.faults is not None

    @contextmanager
    def starting(
        self, *, fault: str | None = None, change: tuple[str, str] = ("", "")
    ) -> Iterator[Server]:
        """A process that has just been started; `change` replaces a text of its configuration."""
        config = self.folder / "config.toml"
        config.write_text(write_config(self.folder).replace(*change, 1), encoding="utf-8")
        port = free_port()
        environment = {name: v for name, v in os.environ.items() if name != "MOSHI_API_KEY"}
        if fault is not None:
            environment |= {"MOSHI_FAULT": fault, "PYTHONPATH": str(self.faults)}
        with (self.folder / "output.log").open("ab") as log:
            started_s = time.monotonic()
            process = subprocess.Popen(  # noqa: S603
                [
                    *self.program,
                    *("worker", "--config", str(config), "--cpu"),
                    *("--addr", "127.0.0.1", "--port", str(port)),
                ],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield Server(self.name, process, port, started_s)
        finally:
            loopback.end(process, END_TIMEOUT_S)

    @contextmanager
    def running(self, fault: str | None = None) -> Iterator[Server]:
        """A process that says it is ready."""
        with self.starting(fault=fault) as server:
            ready_s = until(lambda: server.is_ready() or server.ended(), START_TIMEOUT_S)
            if server.ended() or ready_s == float("inf"):
                log = (self.folder / "output.log").read_text(encoding="utf-8", errors="replace")
                raise SystemExit(f"{self.name}: the server does not start:\n{log[-2000:]}")
            # The original says so before it has warmed up.
            time.sleep(2.0 if self.name == "original" else 0.2)
            yield server


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path) -> str:
    """Tiny-random's language model with the codec of the real ones, the only one both can serve."""
    weights = cache("drills")
    paths = {
        f"{name}_file": weights / file
        for name, file in (
            ("lm_model", "lm.safetensors"),
            ("audio_tokenizer", "codec.safetensors"),
            ("text_tokenizer", "tokenizer.model"),
        )
    }
    tiny = shipped.path_of("tiny-random").read_text(encoding="utf-8")
    module = tiny[tiny.index("[modules.asr]") : tiny.index("# The codec's shape")]
    for key, path in paths.items():
        module = re.sub(rf"(?m)^{key} = .*$", f'{key} = "{path}"', module)
    module = re.sub(r"(?m)^batch_size = .*$", f"batch_size = {LANES}", module)
    module = re.sub(r"(?m)^audio_vocab_size = .*$", "audio_vocab_size = 2049", module)
    text = _SETTINGS.format(key=KEY, folder=folder) + module
    (folder / "static").mkdir(exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    if not all(path.exists() for path in paths.values()):
        weights.mkdir(parents=True, exist_ok=True)
        config = folder / "weights.toml"
        config.write_text(text, encoding="utf-8")
        _native.write_random_checkpoint(config, "asr", seed=1, precision="bf16", **paths)
    return text


def build_original(folder: Path) -> Path:
    """The original's program, built from the crate registry unless it is there."""
    program = folder / "bin" / "moshi-server"
    if program.exists():
        return program
    cargo = [os.environ.get("CARGO", "cargo"), "install", "moshi-server", "--locked"]
    options = ["--version", ORIGINAL_VERSION, "--root", str(folder), "-j", "2"]
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(folder / "target"),
        # It builds an old libopus, and links a Python that it does not use for these models.
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        "PYO3_PYTHON": os.environ.get("PYO3_PYTHON") or shutil.which("python3") or sys.executable,
    }
    print(f"building moshi-server {ORIGINAL_VERSION} into {folder} ...", flush=True)
    command = ["nice", "-n", "10", *cargo, *options]
    subprocess.run(command, env=environment, check=True)  # noqa: S603
    return program


@contextmanager
def both(original: Path, faults: Path | None) -> Iterator[list[Servers]]:
    """Ours and the original, with a folder each."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        yield [
            Servers("ours", [sys.executable, "-m", "moshi_ctl"], Path(first), faults),
            Servers("original", [str(original)], Path(second)),
        ]
