"""`make fuzz`: every fuzz target for a while, from its seeds and from what it found before.

    python scripts/fuzz.py [--seconds 60] [TARGET...]

Needs a nightly Rust toolchain and cargo-fuzz. What a target finds is kept outside the repository;
an input that fails is named at the end, with what to do about it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUZZ = ROOT / "rust" / "fuzz"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moshi-ctl" / "fuzz"

# The longest input that is worth its time, in bytes.
MAX_BYTES: Mapping[str, int] = {
    "message": 8192,
    "ogg_opus": 16384,
    "audio_file": 32768,
    "config": 8192,
    "tokenizer": 4096,
    "token": 2048,
    "checkpoint": 4096,
}

# Of which no input may take more.
MEMORY_MB = 2048
ALLOCATION_MB = 512
TIMEOUT_S = 10

_EXECUTIONS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_WRITTEN = re.compile(r"Test unit written to (\S+)")


@dataclass(frozen=True)
class Result:
    """How a target fared."""

    target: str
    executions: int
    failing_input: str | None
    exit_code: int

    def __str__(self) -> str:
        state = "ok" if self.exit_code == 0 else f"FAILED (exit code {self.exit_code})"
        return f"{self.target:<11} {self.executions:>10,} executions  {state}"


def main() -> None:
    """Runs the targets one after another, all of them even when one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(MAX_BYTES)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    options = parser.parse_args()
    if unknown := sorted(set(options.targets) - set(MAX_BYTES)):
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(MAX_BYTES)}")
    if options.seconds < 1:
        parser.error(f"--seconds: {options.seconds} is not at least 1")
    for command, hint in [
        (["cargo", "+nightly", "--version"], "rustup toolchain install nightly"),
        (["cargo", "+nightly", "fuzz", "--version"], "cargo install cargo-fuzz"),
    ]:
        if not _works(command):
            sys.exit(f"error: `{' '.join(command)}` does not work\nhint: {hint}")
    build = subprocess.run(["cargo", "+nightly", "fuzz", "build"], cwd=FUZZ, check=False)
    if build.returncode:
        sys.exit(f"error: the targets do not build (exit code {build.returncode}), see above")
    results = [_run(target, options.seconds) for target in options.targets or MAX_BYTES]
    print()
    for result in results:
        print(result)
    for result in results:
        if result.failing_input is not None:
            print(
                f"\n{result.target} failed on {result.failing_input}\n"
                f"hint: once it is put right, keep the input as rust/fuzz/regressions/"
                f"{result.target}/WHAT_IT_IS: `cargo test` runs what is there"
            )
    sys.exit(any(result.exit_code for result in results))


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, cwd=FUZZ, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _run(target: str, seconds: int) -> Result:
    corpus, failures = CACHE / "corpus" / target, CACHE / "failures" / target
    for folder in (corpus, failures):
        folder.mkdir(parents=True, exist_ok=True)
    # The first folder is where new inputs go; the others are only read.
    folders = [corpus, FUZZ / "seeds" / target, FUZZ / "regressions" / target]
    if target == "config":
        folders.append(ROOT / "configs")
    command = [
        *("cargo", "+nightly", "fuzz", "run", target),
        *(str(folder) for folder in folders if folder.is_dir()),
        "--",
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES[target]}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-malloc_limit_mb={ALLOCATION_MB}",
        f"-timeout={TIMEOUT_S}",
        f"-artifact_prefix={failures}/",
        "-print_final_stats=1",
    ]
    print(f"$ {' '.join(command)}", flush=True)
    output = []
    with subprocess.Popen(
        command, cwd=FUZZ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            output.append(line)
            # What it tries all the time is of no interest.
            if not line.startswith(("#", "\tNEW_FUNC")):
                print(line, end="", flush=True)
    text = "".join(output)
    executions = _EXECUTIONS.search(text)
    written = _WRITTEN.search(text)
    return Result(
        target,
        int(executions[1]) if executions else 0,
        written[1] if written else None,
        process.returncode,
    )


if __name__ == "__main__":
    main()
