"""`moshi-ctl demo` as people run it: with the embedded model, a server and a session of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from moshi_ctl import audio, env
from moshi_ctl.protocol import Samples
from support import cli, fake_sounddevice, speech
from support.fake_sounddevice import FAULTS
from support.waiting import wait_until

WORD = re.compile(r"^ *(\d+\.\d\d)  (\S.*?)(?: +(\d+\.\d\d))?$", re.MULTILINE)
PAUSE = "(a pause)"
STARTS = "starting a server"
LISTENS = "it listens on ws://127.0.0.1:"
NEXT = "moshi-ctl worker --config stt-1b-en_fr"
FAILURE = 1
USAGE_ERROR = 2


def words(text: str) -> list[str]:
    """The words that were shown."""
    return [found[2] for found in WORD.finditer(text) if found[2] != PAUSE]


def recording() -> Samples:
    """The bundled recording."""
    return np.concatenate(list(audio.blocks(env.embedded_folder() / "recording.flac")))


def temporary(folder: Path) -> dict[str, str]:
    """An environment with a folder of its own for what is temporary."""
    (folder / "temporary").mkdir()
    return {"TMPDIR": str(folder / "temporary")}


def demo(
    folder: Path, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, and sees that it leaves nothing behind."""
    places = temporary(folder)
    ended = cli.run("demo", *arguments, cwd=folder, env={**places, **(env or {})})
    assert list(Path(places["TMPDIR"]).iterdir()) == []
    assert "Traceback" not in ended.stderr
    return ended


def succeeded(ended: subprocess.CompletedProcess[str]) -> str:
    """What it showed."""
    assert (ended.returncode, ended.stderr) == (0, "")
    assert LISTENS in ended.stdout
    assert NEXT in ended.stdout
    heard = words(ended.stdout)
    assert f"\n{len(heard)} word" in ended.stdout
    return ended.stdout


def refused(ended: subprocess.CompletedProcess[str], *said: str, code: int = FAILURE) -> None:
    """It gave up without starting anything, and said why and what to do."""
    assert ended.returncode == code, ended.stderr
    assert STARTS not in ended.stdout
    error, hint = ended.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    for each in said:
        assert each in ended.stderr


def test_the_recording_plays_to_its_end_as_it_was_spoken(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    shown = succeeded(demo(tmp_path))
    duration_s = audio.probe(env.embedded_folder() / "recording.flac").duration_s
    assert time.monotonic() - begin_s > duration_s
    assert f"recording.flac, {duration_s:.1f} s, as it was spoken" in shown
    assert words(shown)


def test_it_hears_the_same_however_fast_it_plays(tmp_path: Path) -> None:
    (tmp_path / "paced").mkdir()
    paced = words(succeeded(demo(tmp_path / "paced")))
    assert words(succeeded(demo(tmp_path, "--fast"))) == paced


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_a_file_of_another_rate(rate_hz: int, tmp_path: Path) -> None:
    path = speech.write(tmp_path / "mine.wav", speech.speech(2.0), rate_hz, channels=2)
    assert "it hears mine.wav, 2.0 s" in succeeded(demo(tmp_path, "--fast", "--file", path))


def test_what_is_no_recording_is_refused_before_anything_starts(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no sound at all")
    for name, path, said in (
        ("missing", tmp_path / "missing.wav", "missing.wav: no such file"),
        ("text", text, "text.wav: not readable as audio"),
    ):
        (tmp_path / name).mkdir()
        refused(demo(tmp_path / name, "--file", path), said)


def test_wishes_that_contradict_each_other(tmp_path: Path) -> None:
    for number, wishes in enumerate(
        (("--mic", "--file", "a.wav"), ("--words", "--mic"), ("--mic", "--fast"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        refused(demo(folder, *wishes), wishes[0].split()[0], code=USAGE_ERROR)


# The embedded model.


def embedded_copy(folder: Path, without: str = "") -> dict[str, str]:
    """An environment with the embedded model's files elsewhere, but for one."""
    elsewhere = folder / "embedded"
    elsewhere.mkdir()
    for path in env.embedded_folder().iterdir():
        if path.name != without:
            (elsewhere / path.name).symlink_to(path)
    return {"MOSHI_CTL_EMBEDDED": str(elsewhere)}


@pytest.mark.parametrize(
    "name", ["model.gguf", "codec.safetensors", "tokenizer.model", "recording.flac"]
)
def test_a_file_that_the_installation_lacks(name: str, tmp_path: Path) -> None:
    ended = demo(tmp_path, env=embedded_copy(tmp_path, without=name))
    refused(ended, "the embedded model is incomplete", f"{name} is not there", "MOSHI_CTL_EMBEDDED")


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    variables = embedded_copy(tmp_path, without="model.gguf")
    (tmp_path / "embedded" / "model.gguf").write_text("no model")
    ended = demo(tmp_path, env=variables)
    assert ended.returncode == FAILURE
    assert LISTENS not in ended.stdout
    assert f"{tmp_path}/embedded/model.gguf" in ended.stderr
    assert "error: the demo's server ended with exit code 1 instead of listening" in ended.stderr


def test_a_folder_is_found_from_where_it_was_named(tmp_path: Path) -> None:
    embedded_copy(tmp_path)
    assert words(succeeded(demo(tmp_path, "--fast", env={"MOSHI_CTL_EMBEDDED": "embedded"})))


def test_the_words_that_it_knows(tmp_path: Path) -> None:
    ended = demo(tmp_path, "--words")
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = [row.split() for row in ended.stdout.splitlines()]
    assert all(len(row) == len(rows[0]) >= 5 for row in rows[:-1])
    listed = [word for row in rows for word in row]
    assert listed == sorted(set(listed))
    assert len(listed) > 50
    heard = set(" ".join(words(succeeded(demo(tmp_path / "temporary", "--fast")))).split())
    assert heard & set(listed)


# Whatever else is set and runs.


def test_what_is_set_for_other_servers_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"MOSHI_API_KEY=theirs\nMOSHI_WARMUP=perhaps\n\xff\xfe\n")
    settings = {
        "MOSHI_API_KEY": "theirs,\u00e9",
        "BETTER_AUTH_SECRET": "short",
        "MOSHI_PER_BATCH_ITEM_MB": "1000000",
        "MOSHI_RESERVE_MB": "much",
        "MOSHI_WARMUP": "perhaps",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "nowhere",
        "HOME": str(tmp_path / "home"),
    }
    with ExitStack() as stack:
        # Where a server listens that is told nothing else. Whoever is there already does as well.
        with suppress(OSError):
            stack.enter_context(closing(socket.create_server(("0.0.0.0", 8080))))
        succeeded(demo(tmp_path, "--fast", env=settings))
    # Neither logs nor anything else.
    assert {path.name for path in tmp_path.iterdir()} == {".env", "temporary"}


# Microphones.


def test_the_microphone(tmp_path: Path) -> None:
    shown = succeeded(demo(tmp_path, "--mic", env=fake_sounddevice.hearing(tmp_path, recording())))
    assert f"it hears the microphone {fake_sounddevice.NAME!r}" in shown
    (tmp_path / "file").mkdir()
    played = succeeded(demo(tmp_path / "file", "--fast", "--file", tmp_path / "heard.wav"))
    assert words(shown) == words(played) != []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("not installed", ("sounddevice", "is not installed", "pip install 'moshi-ctl[mic]'")),
        ("no library", ("PortAudio library not found", "libportaudio2")),
        ("no device", ("no microphone can be used", "Error querying device -1", "connect one")),
    ],
)
def test_no_microphone(fault: str, said: Sequence[str], tmp_path: Path) -> None:
    refused(demo(tmp_path, "--mic", env=fake_sounddevice.faulty(tmp_path, fault)), *said)


def test_a_microphone_that_others_use(tmp_path: Path) -> None:
    assert "busy" in FAULTS
    ended = demo(tmp_path, "--mic", env=fake_sounddevice.faulty(tmp_path, "busy"))
    assert ended.returncode == FAILURE
    said = "error: the microphone 'busy' cannot be opened: Device unavailable"
    assert ended.stderr.startswith(said)


# However it ends, it takes its server along.


@contextmanager
def listening(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo with a microphone that hears the recording and then nothing, for ever."""
    variables = {
        **temporary(folder),
        **fake_sounddevice.hearing(folder, recording(), lasts=True),
    }
    process = subprocess.Popen(
        [*cli.COMMAND, "demo", "--mic"],
        cwd=folder,
        env=cli.environment(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    while text not in (line := process.stdout.readline()):
        assert line, "it ended"


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, STARTS),
        (signal.SIGTERM, STARTS),
        (signal.SIGHUP, LISTENS),
        (signal.SIGINT, PAUSE),
        (signal.SIGTERM, PAUSE),
    ],
)
def test_a_signal_ends_the_server_too(number: int, moment: str, tmp_path: Path) -> None:
    with listening(tmp_path) as process:
        until(process, moment)
        demo_itself = psutil.Process(process.pid)
        wait_until(demo_itself.children)
        servers = demo_itself.children(recursive=True)
        process.send_signal(number)
        out, err = process.communicate(timeout=cli.TIMEOUT_S)
    assert (process.returncode, err) == (128 + number, "")
    assert "interrupted; nothing is left running" in out
    assert servers
    assert not [server for server in servers if server.is_running()]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_no_server_outlives_a_demo_that_was_killed(tmp_path: Path) -> None:
    with listening(tmp_path) as process:
        until(process, LISTENS)
        [server] = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        try:
            wait_until(lambda: not server.is_running())
        finally:
            with suppress(psutil.NoSuchProcess):
                server.kill()


def test_somebody_who_does_not_want_to_wait(tmp_path: Path) -> None:
    with listening(tmp_path) as process:
        until(process, LISTENS)
        [server] = psutil.Process(process.pid).children()
        # One that hears no SIGTERM.
        server.suspend()
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=cli.TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGINT
    assert not server.is_running()


def test_a_server_that_dies(tmp_path: Path) -> None:
    with listening(tmp_path) as process:
        until(process, PAUSE)
        [server] = psutil.Process(process.pid).children()
        server.kill()
        _, err = process.communicate(timeout=cli.TIMEOUT_S)
    assert process.returncode == FAILURE
    assert "error: ws://127.0.0.1:" in err
    assert "the connection broke off" in err
    # What it said before.
    assert "listening on http://127.0.0.1:" in err
    assert "Traceback" not in err
    assert list((tmp_path / "temporary").iterdir()) == []


def test_output_that_nobody_reads_ends_the_server_too(tmp_path: Path) -> None:
    with listening(tmp_path) as process:
        until(process, LISTENS)
        servers = psutil.Process(process.pid).children()
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(cli.TIMEOUT_S) != 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert not [server for server in servers if server.is_running()]
