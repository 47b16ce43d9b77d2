"""What the cards do while a worker serves: the gauges `moshi_gpu_*` of its `/metrics`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from moshi_ctl import nvml
from moshi_ctl.gpu import Gpu, Gpus
from moshi_ctl.nvml import Answer, Refusal

Reading: TypeAlias = dict[str, Any]
"""What a card does now: device, name, uuid ("" where it is not known), memory_used_bytes,
memory_total_bytes, and, each None where the driver does not tell it, utilization_ratio (0 to 1),
power_watts, temperature_celsius."""


def reader(gpus: Gpus) -> Callable[[], list[Reading]] | None:
    """What reads the cards that were found, or None where there are none.

    Whatever the driver does, it never raises: a card that tells nothing now is left out, and is
    back in the first reading in which it answers again.

    Args:
        gpus: What was found when the process started; numbers and names stay as they were then.
    """
    # An instance is known by its UUID only: slots are given to others when instances are removed.
    cards = tuple(card for card in gpus.found if card.uuid or not card.is_mig)
    return _Reader(cards) if cards else None


class _Reader:
    """Reads cards through a session with NVML that it opens at the first reading and keeps.

    Starting NVML each time would cost more than reading does, and where nothing else uses a card
    it would wake and put it to sleep every few seconds, which takes the driver up to seconds. A
    session knows nothing of what came after it, though: it is closed as soon as a card fails, and
    the next reading opens another one. It does not survive a fork.
    """

    def __init__(self, cards: tuple[Gpu, ...]) -> None:
        self._cards = cards
        self._lock = threading.Lock()
        # None while there is no session.
        self._opened: list[tuple[Gpu, Answer]] | None = None

    def __call__(self) -> list[Reading]:
        """What the cards do now, in CUDA's order."""
        with self._lock:
            if self._opened is None:
                self._open()
            read = [_read(card, handle) for card, handle in self._opened or ()]
            readings = [reading for reading in read if reading is not None]
            if len(readings) < len(self._cards):
                self._close()
            return readings

    def _open(self) -> None:
        if not isinstance(nvml.ask("nvmlInit"), Refusal):
            found = [(card, _find(card)) for card in self._cards]
            self._opened = [one for one in found if not isinstance(one[1], Refusal)]

    def _close(self) -> None:
        if self._opened is not None:
            self._opened = None
            nvml.ask("nvmlShutdown")


def _find(card: Gpu) -> Answer:
    """A handle of the card, also where NVML numbers cards in another way than it did."""
    if not card.is_mig:
        # First, because a search by UUID may fail because of any other card that fails.
        handle = nvml.ask("nvmlDeviceGetHandleByIndex", card.index)
        if card.uuid is None or nvml.text(nvml.ask("nvmlDeviceGetUUID", handle)) == card.uuid:
            return handle
    return nvml.ask("nvmlDeviceGetHandleByUUID", card.uuid)


def _read(card: Gpu, handle: Answer) -> Reading | None:
    memory = nvml.memory(handle)
    if isinstance(memory, Refusal):
        return None
    return {
        "device": card.device,
        "name": card.name,
        "uuid": card.uuid or "",
        # What the driver calls used leaves its own share out since 510.
        "memory_used_bytes": memory.total - memory.free,
        "memory_total_bytes": memory.total,
        "utilization_ratio": nvml.utilization(handle),
        "power_watts": nvml.power_w(handle),
        "temperature_celsius": nvml.temperature_c(handle),
    }
