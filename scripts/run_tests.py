"""`make test`: all tests of both languages, one summary at the end, failure if any failed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FEATURES = "moshi-ctl-extension/cuda,moshi-ctl-reference/cuda"

# What the two runners say at the end of a group of tests.
_CARGO = re.compile(
    r"^test result: \w+\. (?P<passed>\d+) passed; (?P<failed>\d+) failed; (?P<skipped>\d+) ignored"
)
_PYTEST = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")
_PYTEST_LAST_LINE = re.compile(r"^=*\s?(\d+ \w+,? )+in [\d.]+s")
_MEANING = {"error": "failed", "errors": "failed", "xpassed": "failed", "xfailed": "passed"}


@dataclass
class Count:
    """How many tests did what."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, kind: str, number: int) -> None:
        """Counts `number` more tests that `kind`."""
        setattr(self, kind, getattr(self, kind) + number)

    def __add__(self, other: Count) -> Count:
        return Count(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def main() -> None:
    """Runs both suites even when the first one fails."""
    rust_code, rust = _run(
        [
            *("cargo", "test", "--locked", "--release", "--workspace", "--no-fail-fast"),
            *("--manifest-path", "rust/Cargo.toml", "--features", FEATURES),
        ],
        _count_cargo,
    )
    python_code, python = _run([sys.executable, "-m", "pytest"], _count_pytest)
    print(f"\nRust:   {rust}\nPython: {python}", flush=True)
    if not (rust.passed and python.passed):
        print("one of the suites ran no test", flush=True)
    print(f"{rust + python}", flush=True)
    sys.exit(1 if rust_code or python_code or not (rust.passed and python.passed) else 0)


def _run(command: list[str], count_line: Callable[[str, Count], None]) -> tuple[int, Count]:
    """Runs a suite, showing what it writes, and counts its tests."""
    print(f"$ {' '.join(command)}", flush=True)
    count = Count()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            count_line(line, count)
    return process.returncode, count


def _count_cargo(line: str, count: Count) -> None:
    if (match := _CARGO.match(line)) is not None:
        for kind, number in match.groupdict().items():
            count.add(kind, int(number))


def _count_pytest(line: str, count: Count) -> None:
    if _PYTEST_LAST_LINE.match(line):
        for number, kind in _PYTEST.findall(line):
            count.add(_MEANING.get(kind, kind), int(number))


if __name__ == "__main__":
    main()
