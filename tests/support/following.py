"""A command that goes on until it is told to end, and what it writes meanwhile."""

from __future__ import annotations

import fcntl
import os
import pty
import queue
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from support import cli

TIMEOUT_S = 30.0


@dataclass
class Following:
    """A running command.

    Attributes:
        process: The process.
        lines: What it wrote to standard output, line by line, None at its end.
    """

    process: subprocess.Popen[str]
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def next_line(self) -> str:
        line = self.lines.get(timeout=TIMEOUT_S)
        assert line is not None, f"it ended: {self.process.stderr and self.process.stderr.read()}"
        return line

    def until(self, is_it: Callable[[str], bool]) -> str:
        """The first line from here on of which this is so; the test's time limit is TIMEOUT_S."""
        seen = []
        for _ in range(1000):
            seen.append(self.next_line())
            if is_it(seen[-1]):
                return seen[-1]
        raise AssertionError(f"never came: {seen}")

    def interrupt(self) -> tuple[int, str]:
        """Presses Ctrl-C; the exit code and standard error."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(TIMEOUT_S)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()

    def read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.put(line)
        self.lines.put(None)


@contextmanager
def following(*arguments: str | Path, cwd: Path) -> Iterator[Following]:
    """`moshi-ctl` with its standard output in a pipe."""
    with subprocess.Popen(
        [*cli.COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=cli.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        followed = Following(process)
        assert process.stdout is not None
        reader = threading.Thread(target=followed.read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            yield followed
        finally:
            process.kill()
            reader.join(TIMEOUT_S)


@dataclass
class OnTerminal:
    """A command that runs on a terminal.

    Attributes:
        process: The process.
        written: All that it wrote so far, with whatever moves the cursor.
    """

    process: subprocess.Popen[bytes]
    written: str = ""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def until(self, text: str) -> str:
        """What was written up to now, once `text` was."""
        with self._changed:
            self._changed.wait_for(lambda: text in self.written or self._ended, TIMEOUT_S)
            assert text in self.written, self.written
            return self.written

    def interrupt(self) -> int:
        """Presses Ctrl-C; the exit code, once all was written."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(TIMEOUT_S)
        with self._changed:
            self._changed.wait_for(lambda: self._ended, TIMEOUT_S)
        return code

    def read(self, terminal: int) -> None:
        while True:
            try:
                block = os.read(terminal, 65_536)
            except OSError:  # How a terminal says that nobody writes to it any more.
                block = b""
            with self._changed:
                self.written += block.decode(errors="replace")
                self._ended = not block
                self._changed.notify_all()
            if not block:
                return


@contextmanager
def on_terminal(
    *arguments: str | Path, cwd: Path, columns: int = 80, lines: int = 50
) -> Iterator[OnTerminal]:
    """`moshi-ctl` with a terminal of this size, in colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {name: value for name, value in cli.environment().items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [*cli.COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**env, "TERM": "xterm-256color"},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = OnTerminal(process)
    reader = threading.Thread(target=shown.read, args=(ours,), daemon=True)
    reader.start()
    try:
        yield shown
    finally:
        process.kill()
        process.wait(TIMEOUT_S)
        reader.join(TIMEOUT_S)
        os.close(ours)
