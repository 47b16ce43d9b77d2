"""`moshi-ctl metrics`: what is shown of a server, once and until Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from moshi_ctl.client import AsrClient
from moshi_ctl.monitoring import documents, exposition, server_metrics
from moshi_ctl.monitoring.scrapes import Outage, Scrape
from moshi_ctl.monitoring.view import View, compact_line
from moshi_ctl.protocol import FRAME_SAMPLES, Step, Word
from support import cli, expositions, speech
from support.expositions import Module
from support.following import following, on_terminal
from support.plans import Command
from support.scripted_server import Reply, closed_port, scripted_server
from support.worker import KEY, Worker

URL = "http://127.0.0.1:8080"

BUSY = Module(
    steps_s=[0.035] * 150 + [0.045] * 47 + [0.095] * 2 + [0.3],
    frames=2400,
    words=250,
    latencies_s=[0.65] * 100,
    received_bytes=18_432_000,
    sent_bytes=40_000,
    refusals={"full": 3, "unauthorized": 1},
    sessions={"stream": 131, "file": 10},
    ended={("stream", "completed"): 110, ("stream", "lost"): 3, ("file", "completed"): 10},
)


def scrape(text: str, at_s: float = 0.0, previous: Scrape | None = None) -> Scrape:
    metrics = server_metrics.read(exposition.parse(text))
    return Scrape(URL, expositions.START_UNIX_S + 11_520 + at_s, at_s, metrics, previous)


def rendered(view: View, width: int = 80, encoding: str = "utf-8") -> str:
    class Stream(io.StringIO):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    stream = Stream()
    Console(file=stream, width=width, highlight=False, markup=False).print(view)
    return stream.getvalue()


def rows(text: str) -> dict[str, str]:
    """The labelled lines of a picture."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := re.match(r"  (\w+) +(.*)", line):
            found.setdefault(match[1], match[2].strip())
    return found


def test_once_in_eighty_columns() -> None:
    text = rendered(View(scrape(expositions.server(BUSY, errors=2) + expositions.gpu())))
    lines = text.splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    assert f"moshi-ctl 0.2.0 (25fb8a160e55) at {URL}   ready   up 3 h 12 min" in lines[0]
    assert "memory 2.00 GiB   CPU time 1 h 12 min   threads 12   open files 34 of 1,024" in text
    assert "cuda:0 NVIDIA L4   [███░░░░░░░] 6.00 GiB of 24.00 GiB   busy 43 %   68 W" in text
    assert "2 errors logged" in text
    assert "since the server's start" in text
    assert "asr   batched_asr at /api/asr-streaming   cuda:0   bf16   warmed up in 1.24 s" in lines
    shown = rows(text)
    assert shown["lanes"].endswith("] 12 of 64 used")
    # The median is the 100th of 200: 100 / 150 of the way from 30 to 40 ms. The 198th is halfway
    # from 90 to 100 ms, as the first of two.
    assert shown["steps"] == "200   p50 37 ms   p99 95 ms   over 80 ms: 3 (1.5 %)"
    assert shown["audio"] == "2,400 frames = 3 min 12 s   lag 0.00 s   backlog 0.00 s"
    assert shown["words"] == "250   latency p50 650 ms   p95 695 ms"
    assert shown["traffic"] == "18.43 MB received   40.00 kB sent"
    assert shown["streams"] == "131   110 completed   3 lost"
    assert shown["files"] == "10   10 completed"
    assert shown["refused"] == "1 unauthorized   3 full"
    assert "model" not in shown


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_nothing_is_cut_or_wrapped_in_any_width(width: int) -> None:
    text = expositions.server(BUSY, Module("asr-en", lanes_used=64, kv_precision="q8"))
    lines = rendered(View(scrape(text + expositions.gpu())), width).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    # What does not fit goes on another line; nothing is lost.
    flat = " ".join(" ".join(lines).split())
    for said in ("12 of 64 used", "64 of 64 used", "over 80 ms: 3 (1.5 %)", "61 °C", "kv q8"):
        assert said in flat
    assert "…" not in flat


def test_the_chart_shows_where_steps_are_and_where_real_time_ends() -> None:
    lines = rendered(View(scrape(expositions.server(BUSY)))).splitlines()
    title = next(i for i, line in enumerate(lines) if "steps by duration" in line)
    columns, axis = lines[title + 1 : title + 5], lines[title + 6]
    line_at = columns[0].index("┊")
    assert all(row[line_at] == "┊" for row in columns)
    # Bars stand above the ends of their buckets' names.
    assert columns[0][axis.index("40")] == "█"
    assert columns[-1][axis.index("50")] in "▁▂▃▄▅▆▇█"
    assert axis.index("80") < line_at < axis.index("100")
    # A single step is seen, however many others there are.
    assert columns[-1][axis.index("500")] == "▁"
    assert columns[-1][axis.index("20")] == " "


def test_letters_only_where_the_output_has_no_others() -> None:
    text = rendered(View(scrape(expositions.server(BUSY))), encoding="ascii")
    assert text.isascii()
    assert "[######........................] 12 of 64 used" in text
    assert "| is real time" in text


def test_what_the_interval_shows() -> None:
    before = scrape(expositions.server(BUSY, cpu_s=10.0))
    later = Module(
        steps_s=[*BUSY.steps_s, *[0.055] * 25],
        frames=BUSY.frames + 75,
        words=BUSY.words + 5,
        latencies_s=[*BUSY.latencies_s, 1.1],
        received_bytes=BUSY.received_bytes + 2_000_000,
        sent_bytes=BUSY.sent_bytes,
        refusals=BUSY.refusals,
        sessions=BUSY.sessions,
        ended=BUSY.ended,
    )
    text = rendered(View(scrape(expositions.server(later, cpu_s=13.0), 2.0, before)))
    assert "of the 2.0 s since the previous scrape" in text
    assert "CPU 1.50 cores" in text
    shown = rows(text)
    assert shown["steps"] == "12.5/s   p50 55 ms   p99 60 ms   over 80 ms: 0 (0 %)"
    assert shown["audio"].startswith("37.5 frames/s = 3.0 live streams")
    assert shown["words"] == "2.5/s   latency p50 1.12 s   p95 1.24 s"
    assert shown["traffic"] == "1.00 MB/s received   0 B/s sent"
    # Those are since the start.
    assert shown["streams"] == "131   110 completed   3 lost"


def test_troubles_are_said() -> None:
    module = Module(alive=0, step_running_s=75, lag_s=3.21, warmup="failure", warmup_s=0.3)
    text = rendered(View(scrape(expositions.server(module, ready=0, lines_dropped=1))))
    assert "not ready" in text
    assert "its loop has ended" in text
    assert "a step has been running for 1 min 15 s" in text
    assert "lag 3.21 s" in text
    assert "failed after 300 ms" in text
    assert "1 log line lost" in text


def test_a_name_cannot_move_the_cursor() -> None:
    module = Module("a\\n\x1b[2Jb", path="/x\x1b]0;title\x07", device="\x1b[31mcuda:0")
    text = expositions.server(module) + expositions.gpu(name="\x1b[5mcard")
    said = rendered(View(scrape(text))) + compact_line(scrape(text))
    assert "\x1b" not in said
    assert "a \\x1b[2Jb" in said


def test_an_outage_is_shown_above_what_was_said_last() -> None:
    outage = Outage(URL, "connection refused", None, 12.3)
    text = rendered(View(scrape(expositions.server(BUSY)), outage))
    assert text.startswith(f"{URL}   not reachable for 12 s: connection refused")
    assert "what it said last" in text
    assert "12 of 64 used" in text
    assert rendered(View(None, outage)).count("\n") == 1


def test_kyutais_server_is_shown_as_far_as_it_tells() -> None:
    text = rendered(View(scrape(expositions.kyutai([0.035] * 90 + [0.2] * 10))))
    assert "Kyutai's metrics only" in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    shown = rows(text)
    assert shown["channels"] == "3 in use"
    assert shown["connected"] == "7"
    # 250 frames of 80 ms.
    assert shown["sessions"] == "2   of 20 s on average"
    assert shown["steps"] == "100   p50 36 ms   p99 >80 ms"


SHAPE_OF_HISTOGRAM = {
    "count": int, "sum": float, "mean": float, "p50": float, "p90": float, "p95": float,
    "p99": float, "buckets": list,
}  # fmt: skip
SHAPE_OF_SERVER: dict[str, Any] = {
    "url": str,
    "time_unix_seconds": float,
    "error": None,
    "ready": bool,
    "build_info": {"version": str, "git_hash": str, "rustc_version": str, "target": str},
    "modules": {
        "asr": {
            "type": str, "path": str, "device": str, "precision": str, "kv_precision": str,
            "warmup": {"result": str, "runs": int, "duration_seconds": float},
            "lanes": int, "lanes_used": int, "model_loop_alive": bool, "overloaded": bool,
            "step_running_seconds": int,
            "step_duration_seconds": SHAPE_OF_HISTOGRAM, "deadline_misses_total": int,
            "deadline_miss_ratio": float, "frames_total": int, "lag_seconds": int,
            "backlog_seconds": int, "words_total": int, "word_latency_seconds": SHAPE_OF_HISTOGRAM,
            "received_bytes_total": int, "sent_bytes_total": int,
            "refusals_total": dict.fromkeys(expositions.REASONS, int),
            "sessions_total": {"stream": int, "file": int},
            "sessions_ended_total": {
                "file": {"completed": int}, "stream": {"completed": int, "lost": int},
            },
        },
    },
    "gpus": list,
    "process": {
        "cpu_seconds_total": float, "resident_memory_bytes": int, "virtual_memory_bytes": int,
        "open_fds": int, "max_fds": int, "threads": int, "start_time_seconds": int,
    },
    "log_messages_total": {"error": int, "info": int},
    "log_lines_dropped_total": int,
    "asr_connect": int,
    "asr_open_channels": int,
    "asr_model_step_duration": SHAPE_OF_HISTOGRAM,
    "asr_connection_num_steps": SHAPE_OF_HISTOGRAM,
    "interval": {
        "seconds": float, "restarted": bool, "process_cpu_cores": float,
        "modules": {
            "asr": {
                "steps_per_second": float, "step_duration_seconds": SHAPE_OF_HISTOGRAM,
                "deadline_misses": int, "deadline_miss_ratio": float, "frames_per_second": float,
                "words_per_second": float, "word_latency_seconds": SHAPE_OF_HISTOGRAM,
                "received_bytes_per_second": float, "sent_bytes_per_second": float,
                "refusals": dict.fromkeys(expositions.REASONS, int),
                "sessions": {"stream": int, "file": int},
                "sessions_ended": {
                    "file": {"completed": int}, "stream": {"completed": int, "lost": int},
                },
            },
        },
    },
}  # fmt: skip


def shape_differences(value: Any, shape: Any, at: str = "") -> list[str]:
    """Where a document is not of this shape; a whole number may stand for another."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict) or value.keys() != shape.keys():
            keys = value.keys() if isinstance(value, dict) else value
            return [f"{at}: {keys} instead of {shape.keys()}"]
        return [
            difference
            for key in shape
            for difference in shape_differences(value[key], shape[key], f"{at}.{key}")
        ]
    if shape is None:
        return [] if value is None else [f"{at}: {value}"]
    kinds = (int, float) if shape is float else (shape,)
    wrong = type(value) not in kinds
    return [f"{at}: {value!r} is no {shape.__name__}"] if wrong else []


def test_the_json_has_a_shape_that_programs_can_rely_on() -> None:
    text = expositions.server(BUSY, cpu_s=10.5)
    later = documents.of_scrape(scrape(expositions.server(BUSY, cpu_s=11.75), 2.0, scrape(text)))
    empty = {"mean": None, **dict.fromkeys(documents.QUANTILES)}
    asr = later["interval"]["modules"]["asr"]
    for name in ("step_duration_seconds", "word_latency_seconds"):
        assert {key: asr[name][key] for key in empty} == empty
        asr[name].update(dict.fromkeys(empty, 0.0))
    assert asr["deadline_miss_ratio"] is None
    asr["deadline_miss_ratio"] = 0.0
    assert shape_differences(later, SHAPE_OF_SERVER) == []

    first = documents.of_scrape(scrape(text + expositions.gpu()))
    assert first["interval"] is None
    assert first["gpus"] == [
        {
            "device": "cuda:0", "name": "NVIDIA L4", "uuid": "GPU-0a1b",
            "memory_used_bytes": 6 * 2**30, "memory_total_bytes": 24 * 2**30,
            "utilization_ratio": 0.43, "power_watts": 68.4, "temperature_celsius": 61,
        }
    ]  # fmt: skip
    steps = first["modules"]["asr"]["step_duration_seconds"]
    assert steps["buckets"][5] == {"le": 0.03, "count": 0}
    assert steps["buckets"][-1] == {"le": None, "count": 200}
    assert steps["p50"] == pytest.approx(0.03 + 0.01 * 100 / 150)
    assert first["modules"]["asr"]["deadline_miss_ratio"] == 0.015


def test_the_json_says_null_where_there_is_nothing_and_never_nan() -> None:
    kyutai = documents.of_scrape(scrape(expositions.kyutai([])))
    outage = documents.of_outage(Outage(URL, "connection refused", "start one", 1.5), 12.0)
    nan = documents.of_scrape(scrape('moshi_lanes{module="asr"} NaN\nmoshi_ready +Inf\n'))
    for document in (kyutai, outage, nan):
        json.loads(json.dumps(document, allow_nan=False))
        assert document.keys() == SHAPE_OF_SERVER.keys()
    assert kyutai["modules"] == {}
    assert kyutai["ready"] is None
    assert kyutai["asr_connect"] == 7
    assert kyutai["asr_model_step_duration"]["p99"] is None
    module = nan["modules"]["asr"]
    assert module.keys() == SHAPE_OF_SERVER["modules"]["asr"].keys()
    assert module["lanes"] is None
    assert module["step_duration_seconds"] is None
    assert module["warmup"] == {"result": None, "runs": None, "duration_seconds": None}
    assert outage["error"] == {
        "message": "connection refused", "hint": "start one", "lasts_seconds": 1.5,
    }  # fmt: skip


def test_the_command_prints_once(command: Command) -> None:
    with scripted_server(metrics=expositions.server(BUSY)) as server:
        for url in (server.url, f"127.0.0.1:{server.port}", f"ws://127.0.0.1:{server.port}/api/x"):
            said = command("metrics", url)
            assert (said.code, said.err) == (0, "")
            assert f"at {server.url}" in said.out
            assert "12 of 64 used" in said.out
        as_json = command("metrics", server.url, "--json")
        assert as_json.code == 0
        assert json.loads(as_json.out)["modules"]["asr"]["words_total"] == 250


@pytest.mark.parametrize(
    ("reply", "error", "hint"),
    [
        (Reply("", status=404), "there are no metrics (HTTP 404)", "check host and port"),
        (Reply("<p>Hello</p>\n"), "what answers there are no metrics", "check host and port"),
        (Reply("go_threads 9\n"), "neither moshi-ctl's nor Kyutai's", "check host and port"),
    ],
)
def test_other_servers_are_refused_with_a_hint(
    reply: Reply, error: str, hint: str, command: Command
) -> None:
    with scripted_server(metrics=reply) as server:
        for more in ([], ["--json"], ["--watch"], ["--watch", "--json"]):
            said = command("metrics", server.url, *more)
            assert (said.code, said.out) == (1, "")
            assert f"{server.url}/metrics: " in said.error
            assert error in said.error
            assert hint in said.hint


def test_where_nobody_listens(command: Command) -> None:
    said = command("metrics", f"127.0.0.1:{closed_port()}")
    assert said.code == 1
    assert "connection refused" in said.error
    assert "moshi-ctl worker" in said.hint


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["ftp://host"], "'ftp://host' is not the address of a server"),
        (["host", "--every", "2"], "--every: nothing is repeated"),
        (["host", "--watch", "--every", "0"], "--every: '0' is out of range"),
        (["host", "--watch", "--every", "nan"], "--every: 'nan' is not a number"),
    ],
)
def test_usage_errors(arguments: list[str], error: str, command: Command) -> None:
    said = command("metrics", *arguments)
    assert (said.code, said.out) == (2, "")
    assert error in said.error
    assert said.hint


def test_a_watch_in_a_pipe_goes_on_through_an_outage_and_a_restart(tmp_path: Path) -> None:
    with (
        scripted_server(metrics=expositions.server(BUSY)) as server,
        following("metrics", server.url, "--watch", "--every", "0.1", cwd=tmp_path) as watch,
    ):
        first = watch.next_line()
        assert re.match(r"\d\d:\d\d:\d\d ready \| since the start \| asr 12/64 lanes, ", first)
        assert "2,400 frames" in first
        second = watch.next_line()
        assert re.search(r"\| last \d\.\d s \| asr 12/64 lanes, no steps, .*0\.0 frames/s", second)
        server.stop()
        assert "not reachable for 0 s: connection refused" in watch.until(
            lambda line: "not reachable" in line
        )
        again = Module(steps_s=[0.015] * 10, lanes_used=1)
        server.serves(metrics=expositions.server(again, start_unix_s=expositions.START_UNIX_S + 60))
        server.start()
        back = watch.until(lambda line: "not reachable" not in line)
        # Ten steps are fewer than before; all of them are new.
        assert "restarted, since then | asr 1/64 lanes, steps p50 15 ms" in back
        # Something else answers for a while: no reason to give up either.
        server.serves(metrics=Reply("<html></html>\n"))
        watch.until(lambda line: "are no metrics" in line)
        server.serves(metrics=expositions.server(again))
        watch.until(lambda line: "asr 1/64 lanes" in line)
        assert watch.interrupt() == (0, "")


def test_a_watch_may_begin_before_the_server(tmp_path: Path) -> None:
    port = closed_port()
    with following(
        "metrics", f"127.0.0.1:{port}", "-w", "--every", "0.1", "--json", cwd=tmp_path
    ) as watch:
        document = json.loads(watch.next_line())
        assert document["error"]["message"] == "connection refused"
        assert document["modules"] is None
        with scripted_server(metrics=expositions.server(BUSY)) as server:
            server.stop()
            server.port = port
            server.start()
            document = json.loads(watch.until(lambda line: json.loads(line)["error"] is None))
            assert document["interval"] is None
            later = json.loads(watch.next_line())
            assert later["interval"]["modules"]["asr"]["frames_per_second"] == 0
            assert watch.interrupt() == (0, "")


def test_a_reader_may_leave(tmp_path: Path) -> None:
    with (
        scripted_server(metrics=expositions.server(BUSY)) as server,
        subprocess.Popen(
            [*cli.COMMAND, "metrics", server.url, "-w", "--every", "0.1"],
            cwd=tmp_path,
            env=cli.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(cli.TIMEOUT_S) == 1
        assert process.stderr.read() == ""


def test_a_terminal_shows_one_picture_that_stays_in_place(tmp_path: Path) -> None:
    with scripted_server(metrics=expositions.server(BUSY)) as server:
        with on_terminal("metrics", server.url, "-w", "--every", "0.1", cwd=tmp_path) as shown:
            shown.until("since the previous scrape")
            server.stop()
            shown.until("not reachable for")
            assert shown.interrupt() == 0
        text = shown.written
        assert "\x1b[2K" in text  # lines are drawn over
        assert "\x1b[1;36m" in text  # in colours
        assert text.rstrip().endswith("\x1b[?25h")  # and the cursor is back
        assert "Traceback" not in text
        assert "Aborted" not in text


def test_it_agrees_with_what_a_client_counted(server: Worker, command: Command) -> None:
    def asked() -> dict[str, Any]:
        said = command("metrics", server.url, "--json")
        assert said.code == 0, said.err
        module: dict[str, Any] = json.loads(said.out)["modules"]["asr"]
        return module

    def when_nobody_talks() -> dict[str, Any]:
        # A session ends a moment after its client.
        for _ in range(200):
            module = asked()
            if module["lanes_used"] == 0:
                return module
            time.sleep(0.05)
        raise AssertionError("lanes stay in use")

    async def talk(frames: int) -> tuple[int, dict[str, Any]]:
        """How many words came with so many frames, and what was shown before the end."""
        words = steps = 0
        async with AsrClient(server.url, key=KEY) as asr:
            await asr.send_audio(speech.speech()[: frames * FRAME_SAMPLES])
            async for event in asr:
                words += isinstance(event, Word)
                steps += isinstance(event, Step)
                if steps == frames:
                    break
            return words, await asyncio.to_thread(asked)

    frames = 30
    before = when_nobody_talks()
    words, during = asyncio.run(asyncio.wait_for(talk(frames), 60))
    after = when_nobody_talks()
    assert words > 0
    # The server says everything that is asked of it here.
    assert [key for key, value in after.items() if value in (None, {})] == []
    assert (during["lanes_used"], during["lanes"]) == (1, 4)
    assert after["frames_total"] - before["frames_total"] == frames
    assert after["words_total"] - before["words_total"] == words
    assert after["received_bytes_total"] - before["received_bytes_total"] > frames * FRAME_SAMPLES
    streams = [each["sessions_total"]["stream"] for each in (before, after)]
    assert streams[1] - streams[0] == 1
    assert after["step_duration_seconds"]["p50"] > 0
    assert after["warmup"]["result"] == "succeeded"
    head = "asr   batched_asr at /api/asr-streaming   cpu   q8   warmed up in "
    lines = command("metrics", server.url).out.splitlines()
    assert [line for line in lines if line.startswith(head)], lines
