"""What the benchmarks share: building, running cases as processes, facts of the machine, tables.

Standard library only.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUST = HERE.parent / "rust"
RESULTS = HERE / "results"
RECORDING = HERE.parent / "assets" / "speech-long.wav"
SHAPE = "stt-1b"
FRAME_MS = 80.0
BYTES_PER_GB = 1e9
BYTES_PER_MB = 1e6

_BENCH_STEP = "moshi-ctl-bench-step"
_ROOFLINE = "moshi-ctl-roofline"


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        engine: "ours", "reference", "pytorch" or "moshi.cpp", which has one lane only.
        lanes: How many lanes there are.
        active: How many of them have audio; the first so many.
        warmup: Steps before the first that counts.
        steps: Steps that count.
        precision: Number format of the language model; the reference has f32 only.
        context: "empty" or "full": what the lanes have heard before.
    """

    engine: str
    lanes: int
    active: int
    warmup: int
    steps: int
    precision: str = "f32"
    context: str = "empty"

    def __str__(self) -> str:
        return (
            f"{self.engine:9} {self.precision:4} {self.active:2} of {self.lanes:2} lanes, "
            f"{self.context} context"
        )


@dataclass
class Measured:
    """What the runs of one case say together."""

    runs: list[dict[str, Any]] = field(default_factory=list)

    def medians(self, key: str) -> list[float]:
        """The median of each run, in milliseconds."""
        return [statistics.median(run[key]) for run in self.runs]

    def median(self, key: str = "step_ms") -> float:
        """The median of the runs' medians, in milliseconds."""
        return statistics.median(self.medians(key))

    def quietest(self) -> float:
        """The lowest of the runs' medians, in milliseconds: the run others disturbed least."""
        return min(self.medians("step_ms"))

    def percentile(self, percent: int) -> float:
        """What `percent` of 100 of all steps of all runs did not exceed, in milliseconds."""
        steps = sorted(ms for run in self.runs for ms in run["step_ms"])
        rank = -(-len(steps) * percent // 100)
        return float(steps[max(rank, 1) - 1])

    def load_s(self) -> float:
        """The median of the runs' loading times."""
        return float(statistics.median(run["load_s"] for run in self.runs))

    def highest(self, moment: str, what: str) -> int:
        """The most memory of a kind at a moment ("loaded" or "end") among the runs, in bytes."""
        return max(int((run[moment] or {}).get(what) or 0) for run in self.runs)

    def spread(self, digits: int = 0) -> str:
        """Median and spread of the runs' medians for a table."""
        low, high = min(self.medians("step_ms")), max(self.medians("step_ms"))
        return f"{self.median():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    def parts(self, digits: int = 0) -> str:
        """Codec and language model for a table."""
        return f"{self.median('codec_ms'):.{digits}f} + {self.median('lm_ms'):.{digits}f}"


class Bench:
    """Runs cases, each a process of its own, and keeps what they measured."""

    def __init__(
        self, weights: Path, pytorch: Path | None = None, moshi_cpp: Path | None = None
    ) -> None:
        """Measures with the random checkpoint in `weights`, writing it if it is not there.

        Args:
            weights: Folder of the checkpoint.
            pytorch: A Python that has PyTorch's `moshi`, for cases of that engine.
            moshi_cpp: What `moshi_cpp/CMakeLists.txt` builds, for cases of that engine.
        """
        self._weights = weights
        self._pytorch = pytorch
        self._moshi_cpp = moshi_cpp
        self._programs = build(_BENCH_STEP, _ROOFLINE)
        self.measured: dict[Case, Measured] = {}
        self.rooflines: list[dict[str, Any]] = []
        if not all((weights / f"{name}.safetensors").exists() for name in ("lm", "codec")):
            subprocess.run(self._bench_step("write"), check=True)  # noqa: S603

    def run(self, case: Case) -> None:
        """Measures `case` once more."""
        others, started = -foreign_cpu_s(), time.monotonic()
        run = json_line(self._command(case))
        others += foreign_cpu_s()
        run["other_cores"] = others / (time.monotonic() - started)
        self.measured.setdefault(case, Measured()).runs.append(run)
        print(f"{case}: {statistics.median(run['step_ms']):.1f} ms a step", flush=True)

    def roofline(self) -> None:
        """Measures the machine itself once more."""
        rates = json_line([str(self._programs[_ROOFLINE])])
        self.rooflines.append(rates)
        print(f"the machine: {rates['read_gb_per_s']['median']:.1f} GB/s", flush=True)

    def most_other_cores(self) -> float:
        """How many cores other programs took while the most disturbed case ran."""
        return max(float(run["other_cores"]) for m in self.measured.values() for run in m.runs)

    def raw(self, command: str) -> dict[str, Any]:
        """Everything that was measured, for the JSON results."""
        cases = [{**vars(case), "runs": m.runs} for case, m in self.measured.items()]
        return {
            "command": command,
            "machine": machine(),
            "rooflines": self.rooflines,
            "cases": cases,
        }

    def _command(self, case: Case) -> list[str]:
        numbers = ("lanes", "active", "warmup", "steps")
        options = [text for name in numbers for text in (f"--{name}", str(getattr(case, name)))]
        if case.engine == "pytorch":
            script = str(HERE / "pytorch_step.py")
            return [str(self._pytorch), script, *options, "--precision", case.precision]
        if case.engine == "moshi.cpp":
            files = ["--folder", str(self._weights), "--recording", str(RECORDING)]
            return [str(self._moshi_cpp), *files, *options, "--precision", case.precision]
        options += ["--context", case.context]
        if case.engine == "ours":
            options += ["--precision", case.precision]
        return [*self._bench_step(case.engine), *options]

    def _bench_step(self, mode: str) -> list[str]:
        program = str(self._programs[_BENCH_STEP])
        return [program, mode, "--shape", SHAPE, "--folder", str(self._weights)]


def json_line(command: list[str]) -> dict[str, Any]:
    """Runs a program and reads the JSON it prints."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def build(
    *programs: str, package: str = "moshi-ctl-reference", feature: str = "", below: str = ""
) -> dict[str, Path]:
    """Builds programs of a package and returns where they are.

    Args:
        programs: Their names.
        package: Where they are, among ours.
        feature: What they are built with besides.
        below: A folder in that of all build products, for features that exclude others.
    """
    cargo = os.environ.get("CARGO", "cargo")
    target = Path(os.environ.get("CARGO_TARGET_DIR", RUST / "target"), below)
    names = [text for program in programs for text in ("--bin", program)]
    options = ["--release", "--locked", "--target-dir", str(target), "-p", package, *names]
    options += ["--features", feature] if feature else []
    subprocess.run([cargo, "build", *options], cwd=RUST, check=True)  # noqa: S603
    return {program: target / "release" / program for program in programs}


def cache(shape: str = SHAPE) -> Path:
    """Where the weights of a shape stay between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "moshi-ctl" / "bench" / shape


def foreign_cpu_s() -> float:
    """Processor time spent so far by others than us and our finished children, in seconds."""
    if platform.system() != "Linux":
        return 0.0
    first_line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    ticks = [int(number) for number in first_line.split()[1:]]
    idle, guests = sum(ticks[3:5]), sum(ticks[8:10])
    busy = (sum(ticks) - idle - guests) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def command_line(**places: str) -> str:
    """The command that runs, without what concerns this machine only: where results go, and paths.

    Args:
        places: What stands for the value of an option, by the option's name.
    """
    said, option = [f"benchmarks/{Path(sys.argv[0]).name}"], ""
    for argument in sys.argv[1:]:
        for word in argument.split("=", 1):
            if is_option := word.startswith("--"):
                option = word[2:].replace("-", "_")
            if option != "results":
                said.append(word if is_option else places.get(option, word))
    return " ".join(said)


def machine() -> dict[str, str]:
    """What a reader needs to know of this machine, and nothing that names it."""
    facts = {"system": f"{platform.system()} {platform.machine()}", "cores": str(os.cpu_count())}
    if platform.system() != "Linux":
        return facts
    cpu: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    wanted = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    has = cpu.get("flags", "").split()
    kib = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1])
    facts["cpu"] = cpu.get("model name", "unknown")
    facts["instructions"] = " ".join(flag for flag in wanted if flag in has)
    facts["memory"] = f"{kib * 1024 / BYTES_PER_GB:.0f} GB"
    return facts


def machine_line(bench: Bench) -> str:
    """The machine, and how busy others kept it, as a sentence or two."""
    facts = ", ".join(f"{name}: {value}" for name, value in machine().items())
    others = f"Other programs took up to {bench.most_other_cores():.2f} cores meanwhile."
    return paragraph(f"Machine: {facts}. {others}")


def write_results(folder: Path, name: str, report: str, raw: dict[str, Any]) -> None:
    """Writes `name`.md for people and `name`.json with everything that was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(raw, indent=1) + "\n"
    (folder / f"{name}.json").write_text(written, encoding="utf-8")
    (folder / f"{name}.md").write_text(report, encoding="utf-8")


def paragraph(text: str) -> str:
    """Text with values put in, wrapped anew."""
    return textwrap.fill(" ".join(text.split()), 100, break_on_hyphens=False)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class Verdict:
    """What was promised, what came out, and whether that is enough."""

    what: str
    measured: float
    limit: float
    at_least: bool = False
    form: Callable[[float], str] = "{:.2f}".format

    @property
    def kept(self) -> bool:
        """Whether the promise was kept."""
        if self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit

    def row(self) -> list[str]:
        """For a table of limits."""
        sign = "≥" if self.at_least else "≤"
        kept = "yes" if self.kept else "NO"
        return [self.what, self.form(self.measured), f"{sign} {self.form(self.limit)}", kept]


def limits_table(verdicts: Iterable[Verdict]) -> str:
    """The promises as a Markdown table."""
    head = ("what", "measured", "limit", "kept")
    return table(head, (verdict.row() for verdict in verdicts))


def gigabytes(size: float) -> str:
    """Bytes for a table."""
    return f"{size / BYTES_PER_GB:.2f}"
