"""What the demo shows of what is heard: words with their times, and pauses."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.style import Style

from moshi_ctl.client import SpeechEvent
from moshi_ctl.protocol import FRAME_S, EndWord, Step, Word

PAUSE_HEAD: Final = 2
"""The semantic VAD head that says "they have finished"; see the configuration."""

PAUSE_PROBABILITY: Final = 0.5
"""Above which it probably has."""

# More than text comes later than what the heads say.
_TEXT_DELAY_S: Final = 1.0

_TIME_WIDTH: Final = 8
_WORD_WIDTH: Final = 16
_QUIET: Final = Style(dim=True)


class View:
    """A line for each word, written as it becomes known, and one for the pause after words.

    Attributes:
        words: How many words there were.
    """

    def __init__(self, console: Console) -> None:
        self.words = 0
        self._console = console
        self._line_is_open = False
        self._awaits_pause = False
        self._pause_s: float | None = None

    def begin(self) -> None:
        """Says what the columns are."""
        head = f"{'from':>{_TIME_WIDTH}}  {'word':{_WORD_WIDTH}}{'to (seconds)':>{_TIME_WIDTH}}"
        self._console.print(head, style=_QUIET)

    def show(self, event: SpeechEvent) -> None:
        """Shows what was heard just now."""
        match event:
            case Word():
                if self._pause_s is not None and event.start_time < self._pause_s:
                    self._end_line()
                else:
                    self.end()
                word = event.text.strip()
                self._write(f"{event.start_time:{_TIME_WIDTH}.2f}  {word:{_WORD_WIDTH}}", end="")
                self.words += 1
                self._line_is_open = True
                self._awaits_pause = self._pause_s is None
            case EndWord() if self._line_is_open:
                self._write(f"{event.stop_time:{_TIME_WIDTH}.2f}", end="")
                self._end_line()
            case Step():
                now_s = (event.step_idx + 1) * FRAME_S
                if self._awaits_pause and _says_pause(event):
                    # Once after each word: what the model thinks of one silence may change.
                    self._awaits_pause = False
                    self._pause_s = now_s
                elif self._pause_s is not None and now_s >= self._pause_s + _TEXT_DELAY_S:
                    self.end()

    def end(self) -> None:
        """Ends a line that is open, and shows the pause that was noticed meanwhile."""
        self._end_line()
        if self._pause_s is not None:
            pause = f"{self._pause_s:{_TIME_WIDTH}.2f}  (a pause)"
            self._pause_s = None
            self._console.print(pause, style=_QUIET)

    def _end_line(self) -> None:
        if self._line_is_open:
            self._write("")
            self._line_is_open = False

    def _write(self, text: str, end: str = "\n") -> None:
        self._console.print(text, end=end)


def _says_pause(step: Step) -> bool:
    return len(step.prs) > PAUSE_HEAD and step.prs[PAUSE_HEAD] > PAUSE_PROBABILITY
