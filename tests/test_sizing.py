"""What holds of every way to share memory out, whatever the modules want."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_ctl import _native
from moshi_ctl.sizing import Demand, least_bytes, share_out

MOST = _native.MAX_LANES

# The same examples every time, however slow the machine.
check = settings(deadline=None, derandomize=True, max_examples=200)

lane_counts = st.none() | st.integers(1, 12)
demands_of_a_device = st.lists(
    st.builds(Demand, st.just("module"), st.integers(0, 500), st.integers(1, 200), lane_counts),
    min_size=1,
    max_size=5,
)
budgets = st.integers(0, 6000)


def bytes_of(demands: Sequence[Demand], lanes: Sequence[int]) -> int:
    return sum(
        demand.fixed_bytes + count * demand.lane_bytes
        for demand, count in zip(demands, lanes, strict=True)
    )


@check
@given(demands_of_a_device, budgets)
def test_nothing_is_granted_exactly_when_one_lane_each_does_not_fit(
    demands: list[Demand], budget: int
) -> None:
    fits = bytes_of(demands, [1] * len(demands)) <= budget
    assert (share_out(demands, budget) is not None) == fits


@check
@given(demands_of_a_device)
def test_the_least_is_enough_and_a_byte_less_is_not(demands: list[Demand]) -> None:
    assert share_out(demands, least_bytes(demands)) is not None
    assert share_out(demands, least_bytes(demands) - 1) is None


@check
@given(demands_of_a_device, budgets)
def test_the_budget_is_kept_and_nobody_gets_more_than_is_wanted(
    demands: list[Demand], budget: int
) -> None:
    lanes = share_out(demands, budget)
    if lanes is None:
        return
    assert bytes_of(demands, lanes) <= budget
    for demand, count in zip(demands, lanes, strict=True):
        assert 1 <= count <= (MOST if demand.lanes is None else demand.lanes)


@check
@given(demands_of_a_device, st.lists(budgets, min_size=2, max_size=8))
def test_more_memory_never_means_fewer_lanes_for_anybody(
    demands: list[Demand], some: list[int]
) -> None:
    shares = [share_out(demands, budget) or [0] * len(demands) for budget in sorted(some)]
    for less, more in pairwise(shares):
        assert all(a <= b for a, b in zip(less, more, strict=True)), (less, more)


@settings(check, max_examples=25)  # of up to 20,000 lanes
@given(demands_of_a_device, st.integers(0, 1000))
def test_all_is_granted_where_there_is_enough(demands: list[Demand], spare: int) -> None:
    wanted = [demand.lanes or MOST for demand in demands]
    assert share_out(demands, bytes_of(demands, wanted) + spare) == wanted


@check
@given(demands_of_a_device, budgets)
def test_no_room_is_left_for_another_lane_of_whoever_is_next(
    demands: list[Demand], budget: int
) -> None:
    lanes = share_out(demands, budget)
    if lanes is None:
        return
    waiting = [
        demand.lane_bytes
        for demand, count in zip(demands, lanes, strict=True)
        if count < (demand.lanes or MOST)
    ]
    if waiting:
        assert budget - bytes_of(demands, lanes) < max(waiting)


@check
@given(demands_of_a_device, budgets)
def test_nobody_starves(demands: list[Demand], budget: int) -> None:
    # Whoever waits would be ahead with one lane more: nobody beyond a first lane, which everybody
    # gets, has a larger part of what it wants. As many as fit counts as the most that is wanted.
    lanes = share_out(demands, budget)
    if lanes is None:
        return
    most_wanted = max(demand.lanes or 1 for demand in demands)
    wanted = [demand.lanes or most_wanted for demand in demands]
    for i, demand in enumerate(demands):
        if lanes[i] == (demand.lanes or MOST):
            continue
        for j in range(len(demands)):
            if lanes[j] > 1:
                assert lanes[j] * wanted[i] <= (lanes[i] + 1) * wanted[j], lanes


@check
@given(st.integers(0, 500), st.integers(1, 50), st.integers(1, 10**6))
def test_as_many_as_fit_alone_leaves_less_than_a_lane(fixed: int, lane: int, spare: int) -> None:
    budget = fixed + lane + spare
    assert share_out([Demand("module", fixed, lane, None)], budget) == [
        min(MOST, 1 + spare // lane)
    ]


@pytest.mark.parametrize(
    ("wanted", "budget", "granted"),
    [
        # Lanes of 10 bytes; those who want as many as fit share evenly with who wants most.
        ((None, None), 100, [5, 5]),
        ((8, None), 100, [5, 5]),
        ((2, None), 100, [2, 8]),
        ((8, 2), 50, [4, 1]),
        ((64, 16), 800, [64, 16]),
        ((64, 16), 400, [32, 8]),
        ((64, 16), 20, [1, 1]),
        ((64, 16), 19, None),
        ((None,), 10 * (MOST + 1), [MOST]),
        ((), 0, []),
    ],
)
def test_examples(wanted: tuple[int | None, ...], budget: int, granted: list[int] | None) -> None:
    assert share_out([Demand("module", 0, 10, lanes) for lanes in wanted], budget) == granted
