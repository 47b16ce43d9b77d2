from __future__ import annotations

from itertools import pairwise

import pytest

from moshi_ctl import subtitles
from moshi_ctl.protocol import Word


def words(text: str, start_s: float = 0.0, word_s: float = 0.3) -> list[Word]:
    return [
        Word(word, start_s + index * word_s, start_s + (index + 1) * word_s)
        for index, word in enumerate(text.split())
    ]


def test_srt() -> None:
    spoken = [*words("Hello there."), *words("Next one", start_s=3600.0)]
    assert subtitles.to_srt(spoken) == (
        "1\n00:00:00,000 --> 00:00:01,000\nHello there.\n"
        "\n"
        "2\n01:00:00,000 --> 01:00:01,000\nNext one\n"
    )


def test_vtt_escapes_markup() -> None:
    assert subtitles.to_vtt(words("a <b> & --> c")) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na &lt;b&gt; &amp; --&gt; c\n"
    )


def test_nothing_said() -> None:
    assert subtitles.to_srt([]) == ""
    assert subtitles.to_vtt([]) == "WEBVTT\n"
    assert subtitles.cues([Word(" ", 0.0)]) == []


def test_a_pause_starts_a_cue() -> None:
    found = subtitles.cues([*words("one two"), *words("three", start_s=0.61 + subtitles.PAUSE_S)])
    assert [cue.text for cue in found] == ["one two", "three"]


def test_a_sentence_end_starts_a_cue_unless_it_is_short() -> None:
    found = subtitles.cues(words("Yes. This sentence is long enough to stand alone. Next"))
    assert [cue.text for cue in found] == [
        "Yes. This sentence is long enough to stand alone.",
        "Next",
    ]


@pytest.mark.parametrize("word_s", [0.1, 0.3, 1.0, 2.9])
def test_cues_are_readable_and_lose_nothing(word_s: float) -> None:
    text = "the quick brown fox jumps over an extraordinarily lazy dog " * 20
    found = subtitles.cues(words(text, word_s=word_s))
    assert " ".join(cue.text for cue in found) == text.strip()
    for cue in found:
        assert len(cue.lines) <= subtitles.CUE_LINES
        assert all(len(line) <= subtitles.LINE_CHARACTERS for line in cue.lines)
        assert 0 < cue.stop_s - cue.start_s <= subtitles.MAX_CUE_S + 1e-6
    for cue, following in pairwise(found):
        assert cue.stop_s <= following.start_s


def test_a_word_without_an_end_gets_one() -> None:
    (cue,) = subtitles.cues([Word("word", 2.0)])
    assert cue.start_s == 2.0
    assert cue.stop_s == 2.0 + subtitles.MIN_CUE_S


def test_a_word_longer_than_a_line_is_kept_whole() -> None:
    (cue,) = subtitles.cues([Word("x" * 60, 0.0, 1.0)])
    assert cue.lines == ["x" * 60]
