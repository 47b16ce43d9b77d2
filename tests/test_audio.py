from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshi_ctl import audio
from moshi_ctl.audio import paced
from moshi_ctl.errors import AudioError
from moshi_ctl.protocol import FRAME_SAMPLES, SAMPLE_RATE_HZ, Samples
from support import speech

TONE_HZ = 440.0
TONE_S = 2.5
LATE_S = 1.0


def tone() -> Samples:
    time_s = np.arange(round(TONE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.5 * np.sin(2 * np.pi * TONE_HZ * time_s)).astype(np.float32)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("rate_hz", [8_000, 24_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_rates_and_channels(tmp_path: Path, name: str, rate_hz: int, channels: int) -> None:
    path = speech.write(tmp_path / name, tone(), rate_hz, channels)
    found = np.concatenate(list(audio.blocks(path)))
    assert found.dtype == np.float32
    # An MP3 decoder may add the encoder's delay, less than a tenth of a second.
    assert len(found) == pytest.approx(TONE_S * SAMPLE_RATE_HZ, abs=0.1 * SAMPLE_RATE_HZ)
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    peak_hz = np.argmax(spectrum) * SAMPLE_RATE_HZ / len(found)
    assert peak_hz == pytest.approx(TONE_HZ, abs=1.0)
    middle = found[len(found) // 4 : -len(found) // 4]
    # MP3 at low rates loses the most: 8 %.
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.1)


def test_opus(tmp_path: Path) -> None:
    path = speech.write(tmp_path / "a.ogg", tone(), 48_000, subtype="OPUS")
    assert sum(map(len, audio.blocks(path))) == pytest.approx(TONE_S * SAMPLE_RATE_HZ, rel=0.02)


def test_24_khz_passes_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), SAMPLE_RATE_HZ, subtype="FLOAT")
    np.testing.assert_array_equal(np.concatenate(list(audio.blocks(path))), tone())


def test_the_duration_is_known_beforehand(tmp_path: Path) -> None:
    path = speech.write(tmp_path / "a.wav", tone(), 8_000)
    assert audio.probe(path).duration_s == pytest.approx(TONE_S, abs=0.001)


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    path = speech.write(tmp_path / "a.wav", tone()[:0], SAMPLE_RATE_HZ)
    assert list(audio.blocks(path)) == []


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no audio")
    (tmp_path / "empty.wav").touch()
    for path, said in [
        (tmp_path / "missing.wav", "no such file"),
        (tmp_path, "not a file"),
        (tmp_path / "a.txt", "not readable as audio"),
        (tmp_path / "empty.wav", "not readable as audio"),
    ]:
        with pytest.raises(AudioError, match=said) as caught:
            audio.probe(path)
        assert str(path) in caught.value.message
        assert caught.value.hint


def test_paced_audio_comes_as_it_is_spoken(tmp_path: Path) -> None:
    path = speech.write(tmp_path / "a.wav", tone()[:30_000], 24_000)

    async def heard() -> list[tuple[float, Samples]]:
        begin_s = time.monotonic()
        return [(time.monotonic() - begin_s, frame) async for frame in paced(audio.blocks(path))]

    frames = asyncio.run(heard())
    spoken_samples = 0
    for time_s, frame in frames:
        spoken_samples += len(frame)
        assert len(frame) <= FRAME_SAMPLES
        # Never before it was spoken, and not much later.
        assert 0.0 <= time_s - spoken_samples / SAMPLE_RATE_HZ < LATE_S
    np.testing.assert_array_equal(
        np.concatenate([frame for _, frame in frames]), np.concatenate(list(audio.blocks(path)))
    )


def test_what_makes_audio_fail_is_told_to_whoever_plays_it(tmp_path: Path) -> None:
    async def play() -> None:
        async for _ in paced(audio.blocks(tmp_path / "missing.wav")):
            pass

    with pytest.raises(AudioError, match="no such file"):
        asyncio.run(play())
