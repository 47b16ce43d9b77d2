"""`make demo`: a small random model hears a bundled recording through a real server."""

from __future__ import annotations

import argparse
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
RECORDING = ROOT / "assets" / "speech.wav"
COMMAND = [sys.executable, "-m", "moshi_ctl"]
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 15.0

_LISTENING = re.compile(r"listening on (http://\S+)")


def main() -> None:
    """Makes a model, serves it, transcribes with it, and always ends the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True, help="where the model is kept")
    folder: Path = parser.parse_args().model_dir
    # A supervisor's SIGTERM has to end the server too.
    signal.signal(signal.SIGTERM, _terminate)
    # The key of somebody's .env is for their own server.
    environment = {**os.environ, "MOSHI_CTL_TINY_DIR": str(folder), "MOSHI_API_KEY": "demo"}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write_model(folder, environment)
        with _server(folder, environment) as address:
            _say(f"a server listens on {address}; streaming {RECORDING.name} to it ...")
            _say("")
            _transcribe(address, folder, environment)
    except subprocess.CalledProcessError as error:
        _say(f"the demo failed: a command ended with exit code {error.returncode}, see above")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("interrupted; nothing is left running")
        sys.exit(130)
    _say("")
    _say(
        "These are the words of an UNTRAINED model: its weights are random numbers. They show that"
    )
    _say("sound goes in and words with times come out, not what was said. README.md tells how to")
    _say("serve a real model.")


def _write_model(folder: Path, environment: dict[str, str]) -> None:
    _say(f"writing a small model with random weights to {folder} ...")
    subprocess.run(
        # Anew every time: it takes no time, and an older one may be of another shape.
        [*COMMAND, "random-checkpoint", "--config", "tiny-random", "--force"],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        check=True,
    )


@contextmanager
def _server(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Runs a server on a free loopback port and gives its address."""
    process = subprocess.Popen(
        [*COMMAND, "worker", "--config", "tiny-random", "--addr", "127.0.0.1", "--port", "0"],
        env=environment,
        # Not in the folder of the user's .env.
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C is for us alone; we end the server afterwards.
        start_new_session=True,
    )
    try:
        yield _address(process)
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    """Waits until the server listens, which it does only when the model is loaded and warm."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    seen: list[str] = []
    while True:
        try:
            line = lines.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            line = ""
        if not line:
            _say("".join(seen))
            raise subprocess.CalledProcessError(process.poll() or 1, COMMAND)
        seen.append(line)
        if (match := _LISTENING.search(line)) is not None:
            return match[1]


def _read(stream: IO[str] | None, lines: queue.Queue[str]) -> None:
    # To the end, so that the server never waits for somebody to read its log.
    for line in stream or ():
        lines.put(line)
    lines.put("")


def _transcribe(address: str, folder: Path, environment: dict[str, str]) -> None:
    url = address.replace("http://", "ws://")
    subprocess.run(
        [*COMMAND, "transcribe", str(RECORDING), "--url", url],
        env=environment,
        cwd=folder,
        check=True,
    )


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
