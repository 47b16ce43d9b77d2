"""Words with times, as SubRip (SRT) and WebVTT subtitles."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final

from moshi_ctl.protocol import Word

LINE_CHARACTERS: Final = 42
"""The longest line; the usual limit of broadcasters."""

CUE_LINES: Final = 2
CUE_CHARACTERS: Final = LINE_CHARACTERS * CUE_LINES
MAX_CUE_S: Final = 6.0
"""The longest a cue may last, in seconds."""

PAUSE_S: Final = 0.8
"""A silence this long, in seconds, starts a new cue."""

MIN_CUE_S: Final = 1.0
"""How long a cue stays at least, in seconds, where the next one leaves room."""

# What the end of a word is taken to be when the server has not said.
_WORD_S: Final = 0.4
# A sentence that ends earlier than this many characters stays with the next one.
_SENTENCE_CHARACTERS: Final = LINE_CHARACTERS // 2
_SENTENCE_ENDS: Final = (".", "?", "!", "…")


@dataclass(frozen=True)
class Cue:
    """A piece of text and when to show it, in seconds."""

    start_s: float
    stop_s: float
    text: str

    @property
    def lines(self) -> list[str]:
        """The text in lines; a word too long for one keeps a line of its own."""
        return textwrap.wrap(
            self.text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False
        )


def cues(words: Iterable[Word]) -> list[Cue]:
    """Groups words into cues that can be read: by pauses, sentence ends, length and duration."""
    grouped = [_cue(group) for group in _groups([word for word in words if word.text.strip()])]
    return [
        replace(cue, stop_s=_shown_until(cue, following))
        for cue, following in zip_longest(grouped, grouped[1:])
    ]


def to_srt(words: Iterable[Word]) -> str:
    """The words as a SubRip file."""
    blocks = (
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.stop_s, ',')}\n{_join(cue.lines)}\n"
        for number, cue in enumerate(cues(words), start=1)
    )
    return "\n".join(blocks)


def to_vtt(words: Iterable[Word]) -> str:
    """The words as a WebVTT file."""
    blocks = (
        f"{_clock(cue.start_s, '.')} --> {_clock(cue.stop_s, '.')}\n{_escape(_join(cue.lines))}\n"
        for cue in cues(words)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def _groups(words: Sequence[Word]) -> Iterator[list[Word]]:
    group: list[Word] = []
    for word in words:
        if group and _starts_cue(group, word):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _starts_cue(group: Sequence[Word], word: Word) -> bool:
    text = _text(group)
    return (
        word.start_time - _stop_s(group[-1]) >= PAUSE_S
        or _stop_s(word) - group[0].start_time > MAX_CUE_S
        or len(textwrap.wrap(f"{text} {word.text.strip()}", LINE_CHARACTERS)) > CUE_LINES
        or (text.endswith(_SENTENCE_ENDS) and len(text) >= _SENTENCE_CHARACTERS)
    )


def _cue(group: Sequence[Word]) -> Cue:
    return Cue(group[0].start_time, _stop_s(group[-1]), _text(group))


def _text(group: Sequence[Word]) -> str:
    return " ".join(word.text.strip() for word in group)


def _stop_s(word: Word) -> float:
    stop_s = word.stop_time if word.stop_time is not None else word.start_time + _WORD_S
    return max(stop_s, word.start_time)


def _shown_until(cue: Cue, following: Cue | None) -> float:
    wanted_s = max(cue.stop_s, cue.start_s + MIN_CUE_S)
    if following is None:
        return wanted_s
    return max(cue.start_s, min(wanted_s, following.start_s))


def _join(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, fraction = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{decimal_mark}{fraction:03}"
