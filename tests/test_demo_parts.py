"""What the demo is made of: lines for words and pauses, and the words of a tokenizer."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from moshi_ctl.client import SpeechEvent
from moshi_ctl.demo import vocabulary
from moshi_ctl.demo.view import View
from moshi_ctl.errors import ModelFileError
from moshi_ctl.protocol import EndWord, Step, Word

NOBODY = (1.0, 1.0, 0.51, 0.0)
SOMEBODY = (1.0, 1.0, 0.5, 1.0)


def shown(events: Iterable[SpeechEvent]) -> list[str]:
    out = io.StringIO()
    view = View(Console(file=out, highlight=False, markup=False, soft_wrap=True))
    for event in events:
        view.show(event)
    view.end()
    return out.getvalue().splitlines()


def test_words_and_pauses() -> None:
    assert shown(
        [
            Step(0, NOBODY),  # nobody has said anything yet
            Word(" seven", 0.32),
            EndWord(0.8),
            Step(11, SOMEBODY),
            Step(12, NOBODY),
            Step(13, SOMEBODY),
            Step(14, NOBODY),
            Word("[up]", 12.0),
            # A pause may be noticed before the end of a word is told.
            Step(170, NOBODY),
            Step(171, SOMEBODY),
            Step(172, NOBODY),
            EndWord(12.5),
            Step(173, NOBODY),
        ]
    ) == [
        "    0.32  seven               0.80",
        "    1.04  (a pause)",
        "   12.00  [up]               12.50",
        "   13.68  (a pause)",
    ]


def test_a_pause_that_is_noticed_before_the_last_word_is_told_comes_after_it() -> None:
    lines = shown(
        [
            Word("turn", 1.0),
            EndWord(1.2),
            Step(29, NOBODY),
            # It was spoken before the pause: text comes later than what the heads say.
            Word("off", 1.2),
            Step(30, NOBODY),
            EndWord(1.6),
            Step(31, NOBODY),
            Word("go", 5.0),
        ]
    )
    assert [line.split() for line in lines] == [
        ["1.00", "turn", "1.20"],
        ["1.20", "off", "1.60"],
        ["2.40", "(a", "pause)"],
        ["5.00", "go"],
    ]


def test_a_pause_is_shown_when_all_words_before_it_must_have_been_told() -> None:
    out = io.StringIO()
    view = View(Console(file=out, highlight=False, markup=False, soft_wrap=True))
    for event in (Word("stop", 1.0), EndWord(1.4), Step(24, NOBODY)):
        view.show(event)
    assert "pause" not in out.getvalue()
    for index in range(25, 40):
        view.show(Step(index, NOBODY))
    assert out.getvalue().count("    2.00  (a pause)\n") == 1


def test_words_whose_end_does_not_come() -> None:
    lines = shown(
        [
            EndWord(0.1),
            Word("a", 1.0),
            Word("b", 2.0),
            Step(30, NOBODY),
            Word("c", 3.0),
            Step(40, ()),  # of a model without such heads
        ]
    )
    assert [line.split() for line in lines] == [
        ["1.00", "a"],
        ["2.00", "b"],
        ["2.48", "(a", "pause)"],
        ["3.00", "c"],
    ]


def test_a_word_is_shown_before_its_end_is_known() -> None:
    out = io.StringIO()
    View(Console(file=out, highlight=False, soft_wrap=True)).show(Word("now", 1.0))
    assert "now" in out.getvalue()
    assert "\n" not in out.getvalue()


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def piece(text: str, kind: int | None = None) -> bytes:
    """A piece with its score; without a type it is a normal one."""
    score = b"\x15\0\0\x80\xbf"
    return field(
        1, field(1, text.encode()) + score + (b"" if kind is None else bytes([0x18, kind]))
    )


TRAINER = field(2, b"\x20\x80\x01" + b"\x51" + bytes(8))


def test_the_words_of_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(
        piece("<unk>", 2)
        + piece("<pad>", 3)
        + piece("\u2581two", 1)
        + TRAINER
        + piece("\u2581one")
        + piece("\u2581caf\u00e9", 4)
        + piece("part", 1)
        + piece("\u2581", 1)
        + piece("\u2581unused", 5)
        + piece("<0xC3>", 6)
    )
    assert vocabulary.read(path) == ["caf\u00e9", "one", "two"]


@pytest.mark.parametrize(
    "content",
    [
        piece("\u2581one")[:-1],
        piece("\u2581one") + b"\x0a",
        b"\x0a\xff",
        b"\x0b\x01",
        field(1, field(1, b"\xff")),
        b"RIFF of something else",
    ],
)
def test_what_is_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="is no SentencePiece model"):
        vocabulary.read(path)


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        vocabulary.read(tmp_path / "missing")


@pytest.mark.parametrize(("width", "columns"), [("80", 10), ("200", 25), ("10", 5)])
def test_columns(
    width: str,
    columns: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(piece(f"\u2581word{number}") for number in range(10, 70)))
    vocabulary.show(path)
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows[:-1]] == [columns] * (len(rows) - 1)
    assert sum(map(len, rows)) == 60
