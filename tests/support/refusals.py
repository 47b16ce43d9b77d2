"""Workers that must not start."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from support import cli, loopback
from support.loopback import is_open
from support.scripted_server import closed_port

POLL_S = 0.02


def refusal(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str],
    code: int,
    timeout_s: float = cli.TIMEOUT_S,
) -> tuple[str, str | None]:
    """The message and hint of a worker that does not start.

    Unless `arguments` say where it listens, it is asked to on loopback, and watched: not for a
    moment may its port be open.
    """
    port = None if "-p" in arguments else closed_port()
    place = () if port is None else ("-a", "127.0.0.1", "-p", str(port))
    process = subprocess.Popen(
        [*cli.COMMAND, "worker", *map(str, arguments), *place],
        cwd=cwd,
        env=cli.environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + timeout_s
    try:
        while True:
            try:
                out, err = process.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired:
                assert port is None or not is_open(port), "it listens"
                assert time.monotonic() < deadline_s, "it does not end"
    finally:
        loopback.end(process, cli.TIMEOUT_S)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    assert process.returncode == code, err
    assert "Traceback" not in out + err
    assert "listening on" not in out + err
    lines = err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    hints = lines[lines.index(error) + 1 :]
    assert len(hints) <= 1, err
    assert all(hint.startswith("hint: ") for hint in hints), err
    return error, hints[0] if hints else None
