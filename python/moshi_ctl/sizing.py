"""How many lanes fit: arithmetic on bytes, without looking at any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moshi_ctl import _native


@dataclass(frozen=True)
class Demand:
    """What a module asks of a device.

    Attributes:
        module: Its name.
        fixed_bytes: What it takes without a lane.
        lane_bytes: What each lane takes.
        lanes: How many lanes are wanted; None for as many as fit.
    """

    module: str
    fixed_bytes: int
    lane_bytes: int
    lanes: int | None

    @property
    def most_lanes(self) -> int:
        """How many lanes it can use at all."""
        return _native.MAX_LANES if self.lanes is None else self.lanes

    def bytes_with(self, lanes: int) -> int:
        """What it takes with so many lanes."""
        return self.fixed_bytes + lanes * self.lane_bytes


def least_bytes(demands: Sequence[Demand]) -> int:
    """What all modules take with one lane each."""
    return sum(demand.bytes_with(1) for demand in demands)


def share_out(demands: Sequence[Demand], budget_bytes: int) -> list[int] | None:
    """How many lanes each module gets of a budget that they share.

    Each gets at least one lane and at most as many as it wants; where not all fit, each gets about
    the same part of what it wants. Lanes are granted one by one in an order that does not depend
    on the budget, until the next one does not fit. More memory therefore never means fewer lanes
    for anybody.

    Args:
        demands: The modules of one device.
        budget_bytes: What they may take together.

    Returns:
        A number for each module, or None when not even one lane of each fits.
    """
    left_bytes = budget_bytes - least_bytes(demands)
    if left_bytes < 0:
        return None
    # Who wants as many as fit counts as the one who wants most.
    most_wanted = max((demand.lanes or 1 for demand in demands), default=1)
    weights = [demand.lanes or most_wanted for demand in demands]
    granted = [1] * len(demands)
    while True:
        waiting = [i for i, demand in enumerate(demands) if granted[i] < demand.most_lanes]
        if not waiting:
            return granted
        neediest = min(waiting, key=lambda i: ((granted[i] + 1) / weights[i], i))
        left_bytes -= demands[neediest].lane_bytes
        if left_bytes < 0:
            return granted
        granted[neediest] += 1
