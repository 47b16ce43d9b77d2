# The interface of the compiled half, checked against the built module by tests/test_native.py and
# by `make lint`. Errors are those of moshi_ctl.errors.

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

__all__ = [
    "ACCELERATORS",
    "FRAME_SAMPLES",
    "MAX_LANES",
    "MAX_THREADS",
    "SAMPLE_RATE_HZ",
    "bench",
    "build_info",
    "cuda_obstacle",
    "device_name",
    "limits_table",
    "log",
    "memory_needs",
    "metrics_table",
    "processor",
    "quantize",
    "read_config",
    "serve",
    "start_logging",
    "stop_logging",
    "write_random_checkpoint",
]

ACCELERATORS: tuple[str, ...]
SAMPLE_RATE_HZ: int
FRAME_SAMPLES: int
MAX_LANES: int
MAX_THREADS: int

def bench(
    config_path: str | PathLike[str],
    module: str,
    *,
    files: dict[str, str | PathLike[str]],
    lanes: list[int],
    full_context: bool,
    steps: int,
    threads: int | None,
    precision: str | None,
    device: str | None,
    progress: Callable[[int], object],
) -> dict[str, Any]: ...
def build_info() -> dict[str, str]: ...
def cuda_obstacle() -> str | None: ...
def device_name(name: str) -> str: ...
def limits_table() -> list[dict[str, Any]]: ...
def log(level: str, target: str, message: str, *, on_console: bool = True) -> None: ...
def memory_needs(
    config_path: str | PathLike[str],
    module: str,
    *,
    files: dict[str, str | PathLike[str]],
    device: str,
    compute_capability: tuple[int, int] | None,
    precision: str | None,
    kv_precision: str | None,
) -> dict[str, Any]: ...
def metrics_table() -> list[dict[str, Any]]: ...
def processor(threads: int | None) -> dict[str, Any]: ...
def quantize(source: str | PathLike[str], target: str | PathLike[str]) -> dict[str, int]: ...
def read_config(path: str | PathLike[str], *, require_files: bool) -> dict[str, Any]: ...
def serve(
    config_path: str | PathLike[str],
    *,
    addr: str,
    port: int,
    threads: int | None,
    decisions: dict[str, dict[str, Any]],
    files: dict[str, str | PathLike[str]],
    read_keys: Callable[[], Mapping[str, Any]],
    tls_cert: str | PathLike[str] | None,
    tls_key: str | PathLike[str] | None,
    warmup: bool | None,
    gpu_readings: Callable[[], list[dict[str, Any]]] | None,
) -> None: ...
def start_logging(
    *,
    log_dir: str | PathLike[str],
    instance_name: str,
    level: str,
    log_format: str,
    silent: bool,
    max_file_bytes: int,
    max_files: int,
    otlp_endpoint: str | None,
) -> None: ...
def stop_logging() -> None: ...
def write_random_checkpoint(
    config_path: str | PathLike[str],
    module: str,
    *,
    lm_model_file: str | PathLike[str],
    audio_tokenizer_file: str | PathLike[str],
    text_tokenizer_file: str | PathLike[str],
    seed: int,
    precision: str,
) -> None: ...
