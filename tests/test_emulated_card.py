"""What ships, served from a card that the processor stands in for: the same kernels through the
same driver's interface, without a card.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moshi_ctl import shipped
from moshi_ctl._native import FRAME_SAMPLES, SAMPLE_RATE_HZ
from moshi_ctl.client import transcribe
from support import emulated_cuda, exposition
from support.fake_nvml import RTX_3060, T4, Machine
from support.spoken import spoken
from support.worker import KEY, worker

TIMEOUT_S = 120.0
MIDDLE_OF_A_PAUSE_S = 4.0


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    """The embedded model, on a card. Nothing is measured: this card is slower than speech."""
    text = shipped.path_of("demo").read_text()
    for before, after in (
        ("$HOME/.local/state", str(tmp_path)),
        ('device = "cpu"\n', ""),
        ("batch_size = 8", "batch_size = 2"),
        ("[modules.asr]\n", "[sizing]\nreal_time = false\n\n[modules.asr]\n"),
    ):
        assert before in text
        text = text.replace(before, after, 1)
    path = tmp_path / "demo.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("machine", "precision"), [(T4, "f32"), (T4, "q8"), (RTX_3060, "bf16")])
def test_a_card_hears_words(machine: Machine, precision: str, config: Path, tmp_path: Path) -> None:
    env = {**emulated_cuda.machine(tmp_path, machine), "MOSHI_API_KEY": KEY}
    with worker(config, "--precision", precision, cwd=tmp_path, env=env, device=None) as started:
        assert not [line for line in started.log if " WARN " in line]
        served = exposition.samples(started, device="cuda:0", precision=precision)
        assert served["moshi_module_info"] == 1
        recording = spoken("digits")
        # Up to the pause after the fifth word: a second of audio takes two here.
        samples = recording.samples()[: round(MIDDLE_OF_A_PAUSE_S * SAMPLE_RATE_HZ)]
        session = transcribe([samples], started.url, key=KEY)
        heard = asyncio.run(asyncio.wait_for(session, TIMEOUT_S))
        assert tuple(word.text for word in heard.words) == recording.words[:5]
        assert started.end() == 0
    counts = emulated_cuda.counts(tmp_path)
    steps = counts["graph"] / 2
    assert steps > len(samples) / FRAME_SAMPLES
    # One copy there and one back, whatever the number of lanes.
    assert counts["graph_copy_to_device"] == counts["graph_copy_to_host"] == steps


def test_a_card_that_fails_ends_the_worker_with_its_reason(config: Path, tmp_path: Path) -> None:
    # In a session, well after the steps that warm up.
    env = {**emulated_cuda.machine(tmp_path, T4, fails_at=40), "MOSHI_API_KEY": KEY}
    reason = "the NVIDIA driver failed starting a step: CUDA_ERROR_LAUNCH_FAILED"
    with worker(config, cwd=tmp_path, env=env, device=None) as started:
        session = transcribe([spoken("digits").samples()], started.url, key=KEY)
        with pytest.raises(Exception, match="the model failed"):
            asyncio.run(asyncio.wait_for(session, TIMEOUT_S))
        assert started.process.wait(TIMEOUT_S) == 1
    (error,) = [line for line in started.log if line.startswith("error: ")]
    assert reason in error


def test_a_card_with_less_memory_than_nvml_tells_gets_fewer_lanes(
    config: Path, tmp_path: Path
) -> None:
    text = config.read_text()
    config.write_text(text.replace("batch_size = 2", "batch_size = 64"))
    env = {**emulated_cuda.machine(tmp_path, T4, memory_mib=50), "MOSHI_API_KEY": KEY}
    with worker(config, "--precision", "f32", cwd=tmp_path, env=env, device=None) as started:
        assert 1 <= int(started.modules()[0]["total_slots"]) < 64
        assert [line for line in started.log if "with 64 lanes: trying again with 32" in line]
