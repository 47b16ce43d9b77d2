"""From a server that starts to one that has ended, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moshi_ctl import audio, microphone, report
from moshi_ctl.client import listen
from moshi_ctl.demo import model, server, vocabulary
from moshi_ctl.demo.view import View
from moshi_ctl.errors import UsageError
from moshi_ctl.protocol import Samples
from moshi_ctl.units import counted

_ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# What a shell says of a process that a signal ended.
_EXIT_CODE_OF_SIGNALS: Final = 128


@dataclass(frozen=True)
class Demo:
    """What the embedded model is to hear, and how.

    Attributes:
        file: An audio file instead of the bundled recording.
        mic: Whether to listen to the microphone instead.
        fast: Whether a recording comes as fast as the model takes it, not as it was spoken.
        words: Whether to list the words that it knows instead.
        precision: In which the language model is held; the device's if None.
        threads: Threads of a step; one per physical core if None.
    """

    file: Path | None = None
    mic: bool = False
    fast: bool = False
    words: bool = False
    precision: str | None = None
    threads: int | None = None

    def check(self) -> None:
        """Sees whether the wishes go together.

        Raises:
            UsageError: When they do not.
        """
        asked = {"--words": self.words, "--mic": self.mic, "--file": self.file is not None}
        chosen = [option for option, is_asked in asked.items() if is_asked]
        if len(chosen) > 1:
            raise UsageError(
                f"{' and '.join(chosen)}: one excludes the other", hint="leave out all but one"
            )
        if self.mic and self.fast:
            raise UsageError("--fast: nobody speaks any faster", hint="leave out --fast or --mic")

    @property
    def server_options(self) -> list[str]:
        """The options of the worker."""
        precision = [] if self.precision is None else ["--precision", self.precision]
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        return precision + threads


@dataclass(frozen=True)
class _Source:
    """Audio, and what it is called."""

    title: str
    samples: AsyncGenerator[Samples, None]


def run(demo: Demo) -> int:
    """Starts a server, shows what it hears, and ends it; or lists the words.

    Returns:
        The exit code: 0, or as a shell has it when a signal ended the demo.

    Raises:
        UsageError: When the wishes contradict each other.
        ModelFileError: When the embedded model is not there.
        AudioError: When the audio cannot be had.
        WorkerError: When the server does not start.
        ClientError: When the session breaks off.
    """
    demo.check()
    if demo.words:
        vocabulary.show(model.tokenizer())
        return 0
    try:
        return asyncio.run(_until_a_signal(demo))
    except KeyboardInterrupt:  # where signals cannot be waited for
        return _EXIT_CODE_OF_SIGNALS + signal.SIGINT


async def _until_a_signal(demo: Demo) -> int:
    with _cancelled_by_signals() as received:
        try:
            await _run(demo)
        except asyncio.CancelledError:
            if not received:
                raise
            report.console().print("interrupted; nothing is left running")
            return _EXIT_CODE_OF_SIGNALS + received[0]
    return 0


@contextlib.contextmanager
def _cancelled_by_signals() -> Iterator[list[int]]:
    """Cancels this task when a signal wants the process to end; says which came."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    received: list[int] = []

    def cancel(number: int) -> None:
        received.append(number)
        if task is not None:
            task.cancel()

    for number in _ENDING:
        # Windows' loops cannot wait for signals; Ctrl-C is a KeyboardInterrupt there.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, cancel, number)
    try:
        yield received
    finally:
        for number in _ENDING:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)


async def _run(demo: Demo) -> None:
    console = report.console()
    model.check()
    source = _source(demo)
    console.print("starting a server with the embedded model ...")
    async with server.serving(model.CONFIG, demo.server_options) as started:
        console.print(f"it listens on {started.url}; it hears {source.title}")
        console.print("")
        view = View(console)
        view.begin()
        async with (
            aclosing(source.samples) as samples,
            aclosing(listen(samples, started.url, key=started.key)) as events,
        ):
            try:
                async for event in events:
                    view.show(event)
            finally:
                view.end()
    console.print("")
    heard = counted(view.words, "word")
    console.print(f"{heard}. `moshi-ctl demo --words` lists those it knows; `--mic` hears you.")
    console.print("English and French: `moshi-ctl worker --config stt-1b-en_fr`; see README.md.")


def _source(demo: Demo) -> _Source:
    if demo.mic:
        title = f"the microphone {microphone.default().name!r}; Ctrl-C ends this"
        return _Source(title, microphone.samples())
    recording = audio.probe(demo.file or model.recording())
    blocks = audio.blocks(recording.path)
    title = f"{recording.path.name}, {recording.duration_s:.1f} s"
    if demo.fast:
        return _Source(title, audio.in_background(blocks))
    return _Source(f"{title}, as it was spoken", audio.paced(blocks))
