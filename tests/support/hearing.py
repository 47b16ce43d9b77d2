"""Sessions that hear something and see that it was heard."""

from __future__ import annotations

import asyncio

from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import SAMPLE_RATE_HZ, Marker
from support import speech

TIMEOUT_S = 30.0


async def hears(asr: AsrClient, marker: int = 1) -> None:
    """Sends a second of speech, and waits until all of it was heard."""
    await asr.send_audio(speech.speech(1.0))
    await asr.send_marker(marker)
    await asr.send_audio(speech.speech(3.0)[-SAMPLE_RATE_HZ:])
    await asyncio.wait_for(_answered(asr, marker), TIMEOUT_S)


async def _answered(asr: AsrClient, marker: int) -> None:
    async for event in asr:
        if event == Marker(marker):
            return
    raise AssertionError("the session ended")
