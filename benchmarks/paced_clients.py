#!/usr/bin/env python3
"""Does a worker keep up with many live streams for minutes?

Starts a worker (random weights, q8, one lane per client) and connects clients that speak in real
time: 80 ms of audio every 80 ms, each at its own moment within a frame. For every step that comes
back a client notes its lag: the audio it has sent less the audio the model has taken. Writes
`results/paced_clients.md` and `results/paced_clients.json`; exits with 1 where the lag grows, a
step takes too long or a client fails.

Needs an environment with moshi-ctl, e.g. the one `make setup` prints; 3 GB of disk for the weights.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import (
    RESULTS,
    Verdict,
    cache,
    command_line,
    gigabytes,
    limits_table,
    machine,
    paragraph,
    table,
    write_results,
)
from paced_stream import FRAME_S, Stream, run_streams
from prometheus_client.parser import text_string_to_metric_families

from moshi_ctl import _native, config, shipped

KEY = "benchmark"
LEAST_PERCENT_WITHIN = 99.0
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 20.0
STEP_METRIC = "asr_model_step_duration"
# Frames that may be on their way more at the end than at the beginning.
MOST_GROWTH_S = FRAME_S
# A fit over minutes is steadier than its ends: a second in an hour.
MOST_SLOPE_S_PER_MIN = 1 / 60

_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
_FILES = {
    "lm_model_file": "lm.safetensors",
    "audio_tokenizer_file": "codec.safetensors",
    "text_tokenizer_file": "tokenizer.model",
}


@dataclass
class Server:
    """A worker that listens.

    Attributes:
        process: The process.
        port: Where it listens.
        ready_s: How long it took until then.
    """

    process: subprocess.Popen[str]
    port: int
    ready_s: float

    def metrics(self) -> str:
        """What `/metrics` says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def memory(self) -> dict[str, int]:
        """Resident memory, in bytes; Linux only."""
        names = {"VmRSS": "resident_bytes", "VmHWM": "peak_resident_bytes"}
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
        fields = (line.partition(":") for line in lines)
        return {
            names[name]: 1024 * int(value.split()[0]) for name, _, value in fields if name in names
        }

    def cpu_s(self) -> float:
        """Processor time it has taken, in seconds; Linux only."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return 0.0
        # proc_pid_stat(5): the name before may hold blanks.
        fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_config(folder: Path, name: str, lanes: int) -> Path:
    """A shipped configuration with random weights of its shape and so many lanes."""
    source = shipped.path_of(name)
    weights = cache("stt-1b" if name == "stt-1b-en_fr" else name)
    weights.mkdir(parents=True, exist_ok=True)
    # The file names of tiny-random want it; the others do not mind.
    os.environ.setdefault("MOSHI_CTL_TINY_DIR", str(weights))
    paths = {key: weights / file for key, file in _FILES.items()}
    if not all(path.exists() for path in paths.values()):
        print(f"writing random weights to {weights} ...", flush=True)
        _native.write_random_checkpoint(source, "asr", seed=1, precision="bf16", **paths)
    text = source.read_text(encoding="utf-8")
    settings = {
        **{key: f'"{path}"' for key, path in paths.items()},
        "log_dir": f'"{folder / "logs"}"',
        "static_dir": f'"{folder / "static"}"',
        "batch_size": str(lanes),
    }
    for key, value in settings.items():
        text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        if count != 1:
            raise SystemExit(f"{source.name}: expected one line with {key}, found {count}")
    # Every client gets a lane, whatever the worker itself would find of the machine.
    text = text.replace("[modules.asr]\n", "[sizing]\nreal_time = false\n\n[modules.asr]\n", 1)
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    config.read(path, require_files=True)
    return path


@contextmanager
def serving(configuration: Path, precision: str) -> Iterator[Server]:
    """Runs a worker on a free loopback port."""
    command = [sys.executable, "-m", "moshi_ctl", "worker", "--config", str(configuration)]
    command += ["--cpu", "--addr", "127.0.0.1", "--port", "0"]
    command += ["--precision", precision]
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603
        command,
        env={**os.environ, "MOSHI_API_KEY": KEY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log: list[str] = []
    ready = threading.Event()

    def read() -> None:
        # To the end, so that the server never waits for somebody to read its log.
        for line in process.stdout or ():
            log.append(line)
            if _LISTENING.search(line):
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        in_time = ready.wait(START_TIMEOUT_S)
        found = _LISTENING.search("".join(log))
        if not in_time or found is None:
            raise SystemExit(f"the worker does not listen:\n{''.join(log)}")
        yield Server(process, int(found[1]), time.monotonic() - started)
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def step_buckets(metrics: str) -> dict[float, float]:
    """Steps per upper bound of their duration in seconds, as the server counts them."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == f"{STEP_METRIC}_bucket"
    }


def percent_within(buckets: dict[float, float], most_s: float) -> float:
    """How many of 100 steps took at most `most_s`, which is the bound of a bucket or just above."""
    within = max(count for bound, count in buckets.items() if bound <= most_s)
    return 100 * within / buckets[float("inf")]


@dataclass(frozen=True)
class Lag:
    """How far behind one client's stream was, in seconds of audio.

    Attributes:
        first_s: Median of the first part.
        last_s: Median of the last part.
        most_s: The most at any time.
        slope_s_per_min: Of a straight line through all of it.
    """

    first_s: float
    last_s: float
    most_s: float
    slope_s_per_min: float

    @classmethod
    def of(cls, stream: Stream) -> Lag:
        """Compares the first and the last minute, or halves of a shorter run."""
        times = [time_s for time_s, _ in stream.lags]
        lags = [lag_s for _, lag_s in stream.lags]
        part_s = min(60.0, times[-1] / 2)
        first = [lag_s for time_s, lag_s in stream.lags if time_s <= part_s]
        last = [lag_s for time_s, lag_s in stream.lags if time_s >= times[-1] - part_s]
        slope = statistics.linear_regression(times, lags).slope
        return cls(statistics.median(first), statistics.median(last), max(lags), 60 * slope)


def verdicts(streams: list[Stream], buckets: dict[float, float]) -> list[Verdict]:
    """What was promised, and what came out."""
    lags = [Lag.of(stream) for stream in streams]
    growth = max(lag.last_s - lag.first_s for lag in lags)
    slope = max(lag.slope_s_per_min for lag in lags)
    unanswered = max(stream.sent_frames - stream.taken_frames for stream in streams)

    def seconds(value: float) -> str:
        return f"{value:.3f} s"

    return [
        Verdict("steps within a frame, by the server's count", percent_within(buckets, FRAME_S),
                LEAST_PERCENT_WITHIN, at_least=True, form="{:.1f} %".format),
        Verdict("most growth of a lag, first to last part", growth, MOST_GROWTH_S, form=seconds),
        Verdict("most slope of a lag, a minute", slope, MOST_SLOPE_S_PER_MIN, form=seconds),
        Verdict("frames without an answer at the end", unanswered, 2, form="{:.0f}".format),
    ]  # fmt: skip


def report(raw: dict[str, Any], streams: list[Stream], judged: list[Verdict]) -> str:
    """The results for people."""
    rows = []
    for number, stream in enumerate(streams, start=1):
        lag = Lag.of(stream)
        cells = (lag.first_s, lag.last_s, lag.most_s, lag.slope_s_per_min)
        answer = (stream.answer_percentile_ms(50), stream.answer_percentile_ms(99))
        late = stream.late_percentile_ms(99)
        numbers = (*(f"{cell:.3f}" for cell in cells), *(f"{ms:.0f}" for ms in (*answer, late)))
        rows.append([str(number), str(stream.taken_frames), *numbers])
    head = (
        "client|steps|lag, first s|lag, last s|most s|slope s/min|answer p50 ms|p99 ms|late p99 ms"
    )
    bounds = {float(bound): count for bound, count in raw["step_buckets"].items()}
    total = bounds[float("inf")]
    shares = [
        ["all" if bound == float("inf") else f"{1e3 * bound:.0f}", f"{100 * count / total:.2f} %"]
        for bound, count in sorted(bounds.items())
    ]
    facts = ", ".join(f"{name}: {value}" for name, value in machine().items())
    memory = raw["server_memory"]
    method = f"""
        {raw["clients"]} clients for {raw["seconds"]} s, each sending 80 ms of audio every 80 ms at
        its own moment within a frame, to a worker with the configuration {raw["config"]}, random
        weights, precision {raw["precision"]}, {raw["clients"]} lanes. The lag is the audio a client
        has sent less the audio the model has taken, when a step comes back; its first and last part
        are a minute, or half of a shorter run. An answer is the time from sending the end of a
        frame to its step; late is a client's own delay in sending. Client processes took
        {raw["client_cores"]:.2f} cores, the server {raw["server_cores"]:.2f}."""
    server = f"""
        Listening {raw["ready_s"]:.1f} s after its start. Resident at the end:
        {gigabytes(memory.get("resident_bytes", 0))} GB, at its highest
        {gigabytes(memory.get("peak_resident_bytes", 0))} GB. Steps, of {total:.0f}, that took at
        most so many milliseconds:"""
    return f"""# Live clients in real time

Written by `benchmarks/paced_clients.py`; to repeat: `{raw["command"]}`.

{paragraph(method)}

{paragraph(f"Machine: {facts}.")}

## Limits

{limits_table(judged)}

## Server

{paragraph(server)}

{table(["ms", "steps"], shares)}

## Clients

{table(head.split("|"), rows)}
"""


def main() -> int:
    """Measures, writes the results, says whether the worker kept up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1, help="to spread the clients over")
    parser.add_argument("--config", default="stt-1b-en_fr", help="a shipped configuration")
    parser.add_argument("--precision", default="q8", help="auto: as the worker chooses")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if min(arguments.clients, arguments.processes) < 1 or arguments.seconds < 2:
        parser.error("at least 1 client, 1 process and 2 seconds")
    clients = range(arguments.clients)
    processes = min(arguments.processes, arguments.clients)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_config(Path(scratch), arguments.config, arguments.clients)
        with (
            serving(path, arguments.precision) as server,
            ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        ):
            print(
                f"listening after {server.ready_s:.1f} s; {arguments.seconds} s to go", flush=True
            )
            url = f"ws://127.0.0.1:{server.port}/api/asr-streaming"
            started, cpu_s = time.monotonic(), -server.cpu_s()
            runs = [
                pool.submit(
                    run_streams, url, KEY, list(clients[n::processes]), arguments.clients,
                    arguments.seconds,
                )
                for n in range(processes)
            ]  # fmt: skip
            streams = [stream for run in runs for stream in run.result().streams]
            elapsed_s = time.monotonic() - started
            cpu_s += server.cpu_s()
            client_cpu_s = sum(run.result().cpu_s for run in runs)
            buckets = step_buckets(server.metrics())
            memory = server.memory()

    streams.sort(key=lambda stream: stream.number)
    raw = {
        "command": command_line(),
        "machine": machine(),
        "config": arguments.config,
        "precision": arguments.precision,
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "ready_s": server.ready_s,
        "server_memory": memory,
        "server_cores": cpu_s / elapsed_s,
        "client_cores": client_cpu_s / elapsed_s,
        "step_buckets": {str(bound): count for bound, count in buckets.items()},
        "streams": [{**asdict(Lag.of(stream)), **stream.thinned()} for stream in streams],
    }
    judged = verdicts(streams, buckets)
    written = report(raw, streams, judged)
    write_results(arguments.results, "paced_clients", written, raw)
    print(f"\n{written}")
    return 0 if all(verdict.kept for verdict in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
