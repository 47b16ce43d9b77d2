"""What `moshi-ctl bench` does: how many streams a model keeps in real time on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.table import Table

from moshi_ctl import _native, config, hub, interrupts, report, shipped
from moshi_ctl.config import Config
from moshi_ctl.errors import ModelFileError, UsageError
from moshi_ctl.units import BYTES_PER_GB, BYTES_PER_MB, counted

DEFAULT_LANES: Final = "1,2,4,8,12,16"
DEFAULT_STEPS: Final = 60

_MOST_DIGITS: Final = 9
_FRAME_MS: Final = 1e3 * _native.FRAME_SAMPLES / _native.SAMPLE_RATE_HZ

# Whose shape is measured when no configuration is given, and what its random weights are called.
_RANDOM_CONFIG: Final = "stt-1b-en_fr"
_RANDOM_MODULE: Final = "asr"
_RANDOM_FILES: Final = {
    "lm_model_file": "lm.safetensors",
    "audio_tokenizer_file": "codec.safetensors",
    "text_tokenizer_file": "tokenizer.model",
}
# The words a stream's tokens mean make no difference to a step.
_FILES_OF_A_STEP: Final = ("lm_model_file", "audio_tokenizer_file")
_RANDOM_SIZE: Final = "about 2.4 GB"
_RANDOM_SEED: Final = 1


class Context(str, Enum):
    """How much the streams have heard before they are measured."""

    EMPTY = "empty"
    FULL = "full"


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and how; the options of `moshi-ctl bench`."""

    lanes: tuple[int, ...]
    context: Context
    steps: int
    threads: int | None
    precision: str | None
    device: str | None
    as_json: bool


@dataclass(frozen=True)
class _Subject:
    """A module, and where its files are."""

    config: Path
    module: str
    files: dict[str, Path]
    has_random_weights: bool


def parse_lanes(text: str) -> tuple[int, ...]:
    """The numbers of lanes in `text`, which are separated by commas.

    Raises:
        UsageError: When one of them is not a positive number.
    """
    lanes = []
    for part in text.split(","):
        number = part.strip()
        # The extension knows the largest; here it only has to fit an integer.
        is_number = number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS
        if not is_number or int(number) == 0:
            raise UsageError(
                f"--lanes: {number!r} is no number of lanes",
                hint=f"write positive numbers with commas between, such as {DEFAULT_LANES}",
            )
        lanes.append(int(number))
    return tuple(lanes)


def default_random_folder() -> Path:
    """Where random weights stay between runs."""
    return Path.home() / ".cache" / "moshi-ctl" / "bench" / "stt-1b"


def run(config_path: Path, module: str | None, options: BenchOptions) -> None:
    """Measures a module of a configuration, downloading its files where they are missing.

    Raises:
        UsageError: When there is no such module, or several to choose from.
        ConfigError: When the configuration cannot be used.
        ModelFileError: When a file cannot be downloaded.
        WorkerError: When the model cannot be loaded or fails.
    """
    configuration = config.read(config_path, require_files=True)
    chosen = _module(configuration, module)
    values = [file.value for file in configuration.files if file.module == chosen]
    files = hub.fetch_all(values, show_progress=True)
    _run(_Subject(config_path, chosen, files, has_random_weights=False), options)


def run_with_random_weights(folder: Path, options: BenchOptions) -> None:
    """Measures a model in the shape of STT 1B, writing its weights to `folder` if need be.

    Raises:
        ModelFileError: When they cannot be written.
        WorkerError: When the model cannot be loaded or fails.
    """
    config_path = shipped.path_of(_RANDOM_CONFIG)
    paths = {key: folder / name for key, name in _RANDOM_FILES.items()}
    if not all(paths[key].is_file() for key in _FILES_OF_A_STEP):
        _write_random(config_path, folder, paths)
    configuration = config.read(config_path)
    files = {file.value: paths[file.key] for file in configuration.files}
    _run(_Subject(config_path, _RANDOM_MODULE, files, has_random_weights=True), options)


def _module(configuration: Config, wanted: str | None) -> str:
    names = list(configuration.modules)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return wanted
    what = f"there is no module {wanted!r}" if wanted else "there are several modules"
    raise UsageError(
        f"{configuration.path}: {what}", hint=f"choose one with --module: {', '.join(names)}"
    )


def _write_random(config_path: Path, folder: Path, paths: dict[str, Path]) -> None:
    _say(f"writing random weights in the shape of STT 1B to {folder} ({_RANDOM_SIZE}, once) ...")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What an interrupted run left behind.
        for leftover in folder.glob("*.partial"):
            leftover.unlink()
    except OSError as error:
        raise ModelFileError(
            f"{folder}: cannot be written: {error.strerror}",
            hint="choose another folder with --random-dir",
        ) from error
    with interrupts.ending_the_process():
        _native.write_random_checkpoint(
            config_path, _RANDOM_MODULE, seed=_RANDOM_SEED, precision="bf16", **paths
        )


def _run(subject: _Subject, options: BenchOptions) -> None:
    _say(f"loading {subject.config.stem} with {max(options.lanes)} lanes ...")
    measured = _native.bench(
        subject.config,
        subject.module,
        files={value: str(path) for value, path in subject.files.items()},
        lanes=list(options.lanes),
        full_context=options.context is Context.FULL,
        steps=options.steps,
        threads=options.threads,
        precision=options.precision,
        device=options.device,
        progress=lambda lanes: _say(f"measuring {counted(lanes, 'lane')} ..."),
    )
    results = {
        "config": subject.config.stem,
        "module": subject.module,
        "random_weights": subject.has_random_weights,
        "context": options.context.value,
        "frame_ms": _FRAME_MS,
        **measured,
        **_conclusions(measured["measurements"]),
    }
    if options.as_json:
        print(json.dumps(results, indent=2))
    else:
        _print_table(results)


def _conclusions(measurements: list[dict[str, Any]]) -> dict[str, Any]:
    """What the measurements, smallest number of lanes first, say together."""
    kept = [one["lanes"] for one in measurements if one["keeps_real_time"]]
    first, last = measurements[0], measurements[-1]
    further = last["lanes"] - first["lanes"]
    per_lane = None
    if further and first["resident_bytes"] and last["resident_bytes"]:
        per_lane = max(0, round((last["resident_bytes"] - first["resident_bytes"]) / further))
    return {
        "most_lanes_in_real_time": max(kept, default=0),
        # Nothing larger was tried, so the true number may be higher.
        "more_may_fit": last["keeps_real_time"],
        "resident_per_further_lane_bytes": per_lane,
    }


def _print_table(results: dict[str, Any]) -> None:
    console = report.console()
    weights = "random weights" if results["random_weights"] else "its weights"
    console.print(
        f"{results['config']}, {weights}: {results['precision']}, keys and values in "
        f"{results['kv_precision']}, {_place(results)}, {results['context']} context"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ["lanes", "median", "p95", "p99", "codec", "LM", "x real time", "keeps up"]
    is_on_card = _is_on_card(results)
    # Of the process; what is on a card is the same for every number of lanes.
    for head in heads if is_on_card else [*heads, "GB"]:
        table.add_column(head, justify="right", no_wrap=True)
    for one in results["measurements"]:
        parts = ("step_median_ms", "step_p95_ms", "step_p99_ms", "codec_median_ms", "lm_median_ms")
        table.add_row(
            str(one["lanes"]),
            *(f"{one[part]:.1f}" for part in parts),
            f"{one['real_time_factor']:.2f}",
            "yes" if one["keeps_real_time"] else "no",
            *(() if is_on_card else (_gigabytes(one["resident_bytes"]),)),
        )
    console.print(table)
    frame_ms = results["frame_ms"]
    console.print(
        f"Times in ms a step of {frame_ms:.0f} ms of audio ({results['steps']} steps each). Codec "
        f"and LM {_order(results)}. A number of lanes keeps up when 99 of "
        f"100 steps take no longer than {frame_ms:.0f} ms."
    )
    console.print(f"{_verdict(results)} Loaded in {results['load_s']:.1f} s.{_memory(results)}")


def _is_on_card(results: dict[str, Any]) -> bool:
    return results["card_bytes"] is not None


def _place(results: dict[str, Any]) -> str:
    """What computes."""
    if _is_on_card(results):
        return str(results["device"])
    return f"{results['threads']} threads, {results['instructions']}"


def _order(results: dict[str, Any]) -> str:
    """How the parts of a step share its time."""
    if _is_on_card(results):
        return "run one after the\nother: medians of both"
    return "run side by side:\nmedians of their shares"


def _verdict(results: dict[str, Any]) -> str:
    most = results["most_lanes_in_real_time"]
    if not most:
        return "None of these numbers of lanes keeps up."
    more = " (the most measured; more may fit)" if results["more_may_fit"] else ""
    return f"Keeps up with {counted(most, 'lane')}{more}."


def _memory(results: dict[str, Any]) -> str:
    if _is_on_card(results):
        lanes = counted(results["loaded_lanes"], "lane")
        return f" The card holds {results['card_bytes'] / BYTES_PER_GB:.2f} GB of it, for {lanes}."
    per_lane = results["resident_per_further_lane_bytes"]
    if per_lane is None:
        return ""
    # A ring takes memory as it fills.
    filled = "" if results["context"] == Context.FULL.value else ", more as it fills its context"
    return f" A further lane takes {per_lane / BYTES_PER_MB:.0f} MB{filled}."


def _gigabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / BYTES_PER_GB:.2f}"


def _say(message: str) -> None:
    """Progress, kept out of what a script reads."""
    print(message, file=sys.stderr, flush=True)
