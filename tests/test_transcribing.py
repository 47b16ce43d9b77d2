from __future__ import annotations

import json
from pathlib import Path

import pytest

from moshi_ctl.client import Transcript
from moshi_ctl.errors import UsageError
from moshi_ctl.protocol import Word
from moshi_ctl.transcribing import Format, Job, plan, render

TRANSCRIPT = Transcript((Word("Hello", 0.5, 0.8), Word("wörld.", 0.9)), duration_s=1.23456)


def test_text() -> None:
    assert render(TRANSCRIPT, Path("a.wav"), Format.TEXT) == "Hello wörld.\n"


def test_json_is_one_line() -> None:
    text = render(TRANSCRIPT, Path("a.wav"), Format.JSON)
    assert text.count("\n") == 1
    assert "wörld" in text
    assert json.loads(text) == {
        "file": "a.wav",
        "duration": 1.235,
        "words": [
            {"text": "Hello", "start_time": 0.5, "stop_time": 0.8},
            {"text": "wörld.", "start_time": 0.9, "stop_time": None},
        ],
    }


def test_subtitles() -> None:
    assert "-->" in render(TRANSCRIPT, Path("a.wav"), Format.SRT)
    assert render(TRANSCRIPT, Path("a.wav"), Format.VTT).startswith("WEBVTT")


def test_where_transcripts_go(tmp_path: Path) -> None:
    a, b = Path("in/a.wav"), Path("in/b.mp3")
    new = tmp_path / "new"
    assert plan([a, b], None, Format.TEXT) == [Job(a, None), Job(b, None)]
    assert plan([a], new, Format.SRT) == [Job(a, new)]
    assert plan([a], tmp_path, Format.SRT) == [Job(a, tmp_path / "a.srt")]
    assert plan([a, b], new, Format.TEXT) == [Job(a, new / "a.txt"), Job(b, new / "b.txt")]


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    a, b = Path("x/a.wav"), Path("y/a.wav")
    (tmp_path / "file").touch()
    for output, form in [
        (None, Format.SRT),
        (tmp_path / "file", Format.TEXT),
        (tmp_path, Format.TEXT),
    ]:
        with pytest.raises(UsageError) as caught:
            plan([a, b], output, form)
        assert caught.value.hint
