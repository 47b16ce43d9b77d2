from __future__ import annotations

import random

import pytest

from moshi_ctl.visible_devices import Card, Named, choose

CARDS = [
    Card("GPU-aaaa1111"),
    Card("GPU-aabb2222", ((), ("MIG-cccc", "MIG-GPU-aabb2222/2/0"))),
    Card(None),
]
NO_CARD = "names no card of this machine (it has 0 to 2)"
NO_UUID = "names no card of this machine (it has GPU-aaaa1111, GPU-aabb2222)"
NO_INSTANCE = "names no MIG instance of this machine (it has MIG-cccc)"
TWICE = "names the same twice, for which CUDA uses no card at all"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2]),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 ,\t2", [1, 2]),
        ("+1,-0,002", [1, 0, 2]),
        ("1gpu,2-3", [1, 2]),
        ("GPU-aaaa1111", [0]),
        ("GPU-aab,GPU-aaa", [1, 0]),
    ],
)
def test_cards_are_named_by_number_or_uuid(value: str | None, expected: list[int]) -> None:
    choice = choose(value, CARDS)
    assert choice.named == tuple(Named(card) for card in expected)
    assert choice.complaint is None


@pytest.mark.parametrize("value", ["MIG-cccc", "MIG-GPU-aabb2222/2/0"])
def test_instances_are_named_in_both_forms(value: str) -> None:
    choice = choose(value, CARDS)
    assert choice.named == (Named(1, instance=1),)
    assert choice.complaint is None


@pytest.mark.parametrize("value", ["", " ", "-1", "-1,0", "-2", ",0"])
def test_no_card_is_what_was_asked_for(value: str) -> None:
    choice = choose(value, CARDS)
    assert choice.named == ()
    assert choice.complaint == f"CUDA_VISIBLE_DEVICES={value} hides all cards"


@pytest.mark.parametrize(
    ("value", "expected", "complaint"),
    [
        ("7", [], NO_CARD),
        ("7,0", [], f"'7' {NO_CARD}"),
        ("0,2,-1,1", [0, 2], f"'-1' {NO_CARD}"),
        ("0,,1", [0], f"'' {NO_CARD}"),
        ("1,one,2", [1], f"'one' {NO_CARD}"),
        ("NoDevFiles", [], NO_CARD),
        ("٣", [], NO_CARD),  # a digit, but not one of C's
        ("9" * 5000, [], NO_CARD),
        ("gpu-aaaa1111", [], NO_CARD),
        ("0,GPU-aabb2222", [0], f"'GPU-aabb2222' {NO_CARD}"),
        (" GPU-aaaa1111", [], NO_CARD),
        ("GPU-ffff", [], NO_UUID),
        ("GPU-aaaa1111,1", [0], f"'1' {NO_UUID}"),
        ("GPU-aaaa1111,", [0], f"'' {NO_UUID}"),
        ("GPU-aaaa1111,MIG-cccc", [0], f"'MIG-cccc' {NO_UUID}"),
        ("GPU-aabb2222, GPU-aaaa1111", [1], f"' GPU-aaaa1111' {NO_UUID}"),
        ("GPU-aa", [], "names more than one card (GPU-aaaa1111, GPU-aabb2222)"),
        ("MIG-dddd", [], NO_INSTANCE),
        ("MIG-ccc", [], NO_INSTANCE),
        ("MIG-GPU-aabb2222/1/0", [], NO_INSTANCE),
    ],
)
def test_the_first_entry_that_names_nothing_ends_the_list(
    value: str, expected: list[int], complaint: str
) -> None:
    choice = choose(value, CARDS)
    assert choice.named == tuple(Named(card) for card in expected)
    assert choice.complaint is not None
    assert choice.complaint.startswith(f"CUDA_VISIBLE_DEVICES={value}")
    assert complaint in choice.complaint
    assert ("ignores it and what follows" in choice.complaint) == ("," in value)


@pytest.mark.parametrize(
    "value",
    ["0,0", "0,1,00", "1,+1,7", "GPU-aaaa,GPU-aaaa1111", "MIG-cccc,MIG-GPU-aabb2222/2/0"],
)
def test_naming_something_twice_leaves_nothing(value: str) -> None:
    choice = choose(value, CARDS)
    assert choice.named == ()
    assert choice.complaint == f"CUDA_VISIBLE_DEVICES={value} {TWICE}"


@pytest.mark.parametrize(
    ("value", "cards", "complaint"),
    [
        ("7", CARDS[:2], "(it has 0 to 1)"),
        ("7", CARDS[:1], "(it has only 0)"),
        ("7", [], "(it has none)"),
        ("GPU-7", CARDS[2:], "(it has none)"),
        ("MIG-7", CARDS[:1], "(it has none)"),
    ],
)
def test_a_complaint_says_what_there_is(value: str, cards: list[Card], complaint: str) -> None:
    assert complaint in (choose(value, cards).complaint or "")


@pytest.mark.parametrize("value", ["7\n8", "\x1b[31m", "\udcff", "0,\udcff\x07"])
def test_a_complaint_is_one_printable_line(value: str) -> None:
    complaint = choose(value, CARDS).complaint
    assert complaint is not None
    assert complaint.isprintable()


def test_any_list_names_cards_that_are_there_once() -> None:
    generator = random.Random(1)
    pieces = ["0", "1", "2", "3", ",", ",", "-", "+", " ", "x", "GPU-", "aa", "MIG-", "cccc", "\n"]
    whole = 0
    for _ in range(5000):
        value = "".join(generator.choices(pieces, k=generator.randint(0, 8)))
        choice = choose(value, CARDS)
        assert all(named.card < len(CARDS) for named in choice.named), value
        assert len(set(choice.named)) == len(choice.named), value
        entries = value.count(",") + 1
        assert (len(choice.named) == entries) == (choice.complaint is None), value
        whole += choice.complaint is None
    assert whole > 100
