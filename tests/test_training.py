"""What the embedded model is taught: targets in the terms of the server, and how it is judged."""

from __future__ import annotations

import numpy as np
import pytest

from moshi_ctl import env
from moshi_ctl.demo import vocabulary
from moshi_ctl.protocol import FRAME_RATE_HZ, FRAME_SAMPLES, SAMPLE_RATE_HZ
from training import shape, streams
from training.evaluate import aligned
from training.speech import Word, word_by_word
from training.vocabulary import DIGITS, OTHER_WORDS, WORDS

FRAMES = 60
DELAY = 10
FRAME_S = 1 / FRAME_RATE_HZ


def said(tokens: np.ndarray, delay: int) -> list[tuple[str, float, float | None]]:
    """Words, starts and ends as the server reads them off a text stream (`transcript.rs`)."""
    words: list[tuple[str, float, float | None]] = []
    marked_s, token_before = 0.0, shape.TEXT_PADDING
    for step, token in enumerate(tokens, 1):
        if token == shape.TEXT_END_OF_PADDING:
            marked_s = (step - delay) * FRAME_S
            if words and words[-1][2] is None:
                words[-1] = (*words[-1][:2], marked_s)
        elif token != shape.TEXT_PADDING:
            assert token_before == shape.TEXT_END_OF_PADDING
            words.append((WORDS[token - streams.FIRST_WORD_TOKEN], marked_s, None))
        token_before = token
    return words


def written(words: list[Word], seed: int = 1) -> np.ndarray:
    return streams.text_tokens(words, FRAMES, DELAY, np.random.default_rng(seed))


def test_a_server_reads_the_words_and_their_times_off_the_text_stream() -> None:
    words = [Word("seven", 0.5, 0.93), Word("stop", 1.3, 1.7), Word("yes", 2.4, 2.81)]
    early_frames = []
    for seed in range(20):
        heard = said(written(words, seed), DELAY)
        assert [text for text, _, _ in heard] == ["seven", "stop", "yes"]
        for word, (_, start_s, end_s) in zip(words, heard, strict=True):
            early_frames.append((word.start_s - start_s) / FRAME_S)
            assert end_s == pytest.approx(word.end_s, abs=1.01 * FRAME_S)
    # Up to two frames early, so that the model learns to say a word still.
    assert np.histogram(early_frames, [-0.51, 0.51, 1.51, 2.51])[0].min() > 0
    assert min(early_frames) >= -0.51
    assert max(early_frames) <= 2.51


def test_words_that_follow_each_other_fast_are_all_said_in_order() -> None:
    words = [Word("go", 0.1 * i, 0.1 * i + 0.1) for i in range(1, 9)]
    heard = said(written(words), DELAY)
    assert [text for text, _, _ in heard] == ["go"] * 8


def test_what_comes_too_late_for_the_stream_is_left_out_whole() -> None:
    words = [Word("go", 0.5, 0.8), Word("stop", FRAMES * FRAME_S - 0.7, FRAMES * FRAME_S)]
    tokens = written(words)
    assert len(tokens) == FRAMES
    assert [text for text, _, _ in said(tokens, DELAY)] == ["go"]


def test_pauses_begin_when_their_time_has_passed() -> None:
    classes = streams.pause_classes([Word("go", 0.4, 0.8)], FRAMES)
    for head, pause_s in enumerate(shape.PAUSES_S):
        frames = np.flatnonzero(classes[:, head] == 0)
        after = frames[frames * FRAME_S >= 0.8]
        assert after[0] * FRAME_S == pytest.approx(0.8 + pause_s, abs=1.01 * FRAME_S)
        assert list(after) == list(range(after[0], FRAMES))
        assert not any(0.4 < frame * FRAME_S <= 0.8 for frame in frames)


def test_words_spoken_one_at_a_time_are_where_they_are_heard() -> None:
    rate_hz = 16_000
    lengths_s = {"go": 0.2, "stop": 0.35, "yes": 0.5}

    def say(text: str) -> np.ndarray:
        """A tone with as much silence around it as synthesizers leave."""
        tone = np.sin(np.arange(lengths_s[text.rstrip(".?!")] * rate_hz) / 5)
        return np.pad(0.3 * tone, (1500, 3000)).astype(np.float32)

    for seed in range(10):
        spoken = word_by_word(list(lengths_s), say, rate_hz, np.random.default_rng(seed))
        assert [word.text for word in spoken.words] == list(lengths_s)
        loud = np.abs(spoken.samples) > 0.05
        ended_s = 0.0
        for word in spoken.words:
            assert word.start_s >= ended_s
            assert word.end_s - word.start_s == pytest.approx(lengths_s[word.text], abs=0.03)
            inside = loud[int(word.start_s * SAMPLE_RATE_HZ) : int(word.end_s * SAMPLE_RATE_HZ)]
            assert inside.mean() > 0.8
            between = loud[
                int((ended_s + 0.01) * SAMPLE_RATE_HZ) : int(word.start_s * SAMPLE_RATE_HZ)
            ]
            assert between.sum() == 0
            ended_s = word.end_s


def test_states_are_thirds_of_words() -> None:
    states = streams.spoken_states([Word("two", 0.8, 1.28), Word("zebra", 2.0, 2.4)], FRAMES)
    two = 2 + 3 * WORDS.index("two")
    assert list(states[10:16]) == [two, two, two + 1, two + 1, two + 2, two + 2]
    assert set(states[25:30]) == {1}
    assert states.sum() == states[10:16].sum() + 5
    assert states.max() < streams.STATES


@pytest.mark.parametrize(
    ("spoken", "heard", "errors", "pairs"),
    [
        ("one two three", "one two three", 0, [(0, 0), (1, 1), (2, 2)]),
        ("one two three", "one three", 1, [(0, 0), (2, 1)]),
        ("one two", "one four two", 1, [(0, 0), (1, 2)]),
        ("one two", "five two", 1, [(1, 1)]),
        ("", "one", 1, []),
        ("one two", "", 2, []),
    ],
)
def test_errors_are_counted(
    spoken: str, heard: str, errors: int, pairs: list[tuple[int, int]]
) -> None:
    distance, same = aligned(spoken.split(), heard.split())
    assert (distance, sorted(same)) == (errors, pairs)


def test_the_shipped_model_knows_the_words_of_its_recipe() -> None:
    assert sorted(WORDS) == vocabulary.read(env.embedded_folder() / "tokenizer.model")
    assert len(set(WORDS)) == len(WORDS)
    assert len(WORDS) - len(DIGITS) >= 40
    assert not set(WORDS) & set(OTHER_WORDS)


def test_the_recipe_reads_its_shape_from_the_shipped_configuration() -> None:
    loaded = shape.load()
    assert loaded.lm.text_out_vocab_size == streams.FIRST_WORD_TOKEN + len(WORDS)
    assert loaded.heads.num_heads == len(shape.PAUSES_S)
    assert (shape.SAMPLE_RATE_HZ, shape.FRAME_RATE_HZ) == (SAMPLE_RATE_HZ, FRAME_RATE_HZ)
    assert (shape.FRAME_SAMPLES, loaded.latents_per_frame) == (FRAME_SAMPLES, 2)
