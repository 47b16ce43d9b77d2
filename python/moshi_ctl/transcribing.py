"""What `moshi-ctl transcribe` does: where the words go, and what is shown meanwhile."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from moshi_ctl import audio, subtitles
from moshi_ctl.client import Transcript, transcribe_file
from moshi_ctl.errors import MoshiCtlError, UsageError
from moshi_ctl.protocol import Word


class Format(str, Enum):
    """How a transcript is written."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"

    @property
    def suffix(self) -> str:
        """The usual suffix of a file of this format."""
        return ".txt" if self is Format.TEXT else f".{self.value}"


@dataclass(frozen=True)
class Job:
    """An audio file and where its transcript goes; None is standard output."""

    source: Path
    target: Path | None


def plan(files: Sequence[Path], output: Path | None, form: Format) -> list[Job]:
    """Which transcript goes where.

    Raises:
        UsageError: When several transcripts would end up in one place that holds one.
    """
    if output is None:
        if len(files) > 1 and form in (Format.SRT, Format.VTT):
            raise UsageError(
                f"{len(files)} files would make one {form.value} stream of several",
                hint="add --output FOLDER to get a file for each",
            )
        return [Job(file, None) for file in files]
    if len(files) == 1 and not output.is_dir():
        return [Job(files[0], output)]
    if output.is_file():
        raise UsageError(
            f"--output {output} is one file, but there are {len(files)} to transcribe",
            hint="name a folder",
        )
    jobs = [Job(file, output / f"{file.stem}{form.suffix}") for file in files]
    targets = [job.target for job in jobs]
    for job in jobs:
        if targets.count(job.target) > 1:
            raise UsageError(
                f"several transcripts would be written to {job.target}",
                hint="give the audio files different names, or transcribe them one by one",
            )
    return jobs


def run(
    jobs: Sequence[Job], *, url: str, key: str | None, ca: Path | None = None, form: Format
) -> None:
    """Transcribes one file after the other.

    Raises:
        MoshiCtlError: What stopped it; transcripts finished before are written.
    """
    for job in jobs:
        title = f"{job.source}:" if len(jobs) > 1 and job.target is None else None
        _run(job, url=url, key=key, ca=ca, form=form, title=title)


def render(transcript: Transcript, source: Path, form: Format) -> str:
    """A transcript as the text of a file of format `form`."""
    match form:
        case Format.TEXT:
            return f"{transcript.text}\n"
        case Format.JSON:
            document = {
                "file": str(source),
                "duration": round(transcript.duration_s, 3),
                "words": [asdict(word) for word in transcript.words],
            }
            return f"{json.dumps(document, ensure_ascii=False)}\n"
        case Format.SRT:
            return subtitles.to_srt(transcript.words)
        case Format.VTT:
            return subtitles.to_vtt(transcript.words)


def _run(
    job: Job, *, url: str, key: str | None, ca: Path | None, form: Format, title: str | None
) -> None:
    source = audio.probe(job.source)
    words_to = sys.stdout if job.target is None and form is Format.TEXT else None
    if words_to and title:
        print(title, flush=True)
    with _view(source, words_to) as view:
        transcript = asyncio.run(
            transcribe_file(
                source.path,
                url,
                key=key,
                ca=ca,
                on_word=view.add_word,
                on_progress=view.set_done,
            )
        )
    if job.target is not None:
        _write(job.target, render(transcript, source.path, form))
    elif words_to is None:
        sys.stdout.write(render(transcript, source.path, form))
        sys.stdout.flush()


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MoshiCtlError(
            f"{target}: cannot be written: {error.strerror}", hint="choose another --output"
        ) from error


class _View(Protocol):
    """What is shown while a file is transcribed."""

    def add_word(self, word: Word) -> None: ...
    def set_done(self, done_s: float) -> None: ...


@contextmanager
def _view(source: audio.AudioFile, words_to: TextIO | None) -> Iterator[_View]:
    if words_to is not None and not words_to.isatty():
        with _progress_on(Console(stderr=True), source) as bar:
            yield _Stream(words_to, bar)
            words_to.write("\n")
            words_to.flush()
    elif words_to is not None:
        with _Screen(Console(file=words_to, highlight=False, soft_wrap=True), source) as screen:
            yield screen
    else:
        with _progress_on(Console(stderr=True), source) as bar:
            yield bar


class _Bar:
    """A progress bar, on a terminal; otherwise nothing."""

    def __init__(self, progress: Progress, source: audio.AudioFile) -> None:
        self._progress = progress
        self._task = progress.add_task(source.path.name, total=source.duration_s or None)

    def add_word(self, word: Word) -> None:
        pass

    def set_done(self, done_s: float) -> None:
        self._progress.update(self._task, completed=done_s)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def _progress_on(console: Console, source: audio.AudioFile) -> Iterator[_Bar]:
    with _progress(console) as progress:
        yield _Bar(progress, source)


class _Stream:
    """Words as they come, on one line, for a pipe or a file."""

    def __init__(self, stream: TextIO, bar: _Bar) -> None:
        self._stream = stream
        self._separator = ""
        self.set_done = bar.set_done

    def add_word(self, word: Word) -> None:
        self._stream.write(f"{self._separator}{word.text.strip()}")
        self._stream.flush()
        self._separator = " "


class _Screen:
    """Words as they come above a progress bar, both on one terminal."""

    def __init__(self, console: Console, source: audio.AudioFile) -> None:
        self._console = console
        self._progress = _progress(console)
        self._bar = _Bar(self._progress, source)
        self._line = ""
        self._live = Live(self, console=console, transient=True)
        self.set_done = self._bar.set_done

    def __enter__(self) -> _Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._console.print(Text(self._line))

    def add_word(self, word: Word) -> None:
        text = word.text.strip()
        if self._line and len(self._line) + 1 + len(text) > shutil.get_terminal_size().columns:
            # Emptied first: printing redraws what is below.
            line, self._line = self._line, ""
            self._console.print(Text(line))
        self._line = f"{self._line} {text}".strip()

    def __rich__(self) -> Group:
        return Group(Text(self._line), self._progress.get_renderable())
