"""Which cards CUDA lets this process use: `CUDA_VISIBLE_DEVICES`, read as CUDA reads it.

It is a list, separated by commas, of cards by number, or of cards by UUID (`GPU-…`, of which a
beginning that is unique will do), or of MIG instances (`MIG-<uuid>`, or with drivers before 470
`MIG-GPU-<uuid>/<GPU instance>/<compute instance>`). The first entry says which of these it is. The
order of the entries is the order of CUDA's devices. The first entry that names nothing ends the
list, and a list that names something twice names nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moshi_ctl.env import CUDA_VISIBLE_DEVICES

_CARD = "GPU-"
_INSTANCE = "MIG-"
# CUDA reads a number as C's strtol does: blanks and a sign may precede it, anything may follow.
_NUMBER = re.compile(r"\s*([+-]?)([0-9]+)")


@dataclass(frozen=True)
class Card:
    """What a card can be called by.

    Attributes:
        uuid: Its UUID, `GPU-…`, where that is known.
        instances: For each of its MIG instances, the names `MIG-…` that mean it, its UUID first.
    """

    uuid: str | None
    instances: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Named:
    """Something that was named.

    Attributes:
        card: Its position among the cards.
        instance: The position among the card's MIG instances, or None for the card itself.
    """

    card: int
    instance: int | None = None


@dataclass(frozen=True)
class Choice:
    """What CUDA lets this process use.

    Attributes:
        named: In the order of CUDA's devices.
        complaint: What is wrong with the list, where something is.
    """

    named: tuple[Named, ...]
    complaint: str | None = None


def choose(value: str | None, cards: Sequence[Card]) -> Choice:
    """What `value` of CUDA_VISIBLE_DEVICES, None when it is not set, names among `cards`."""
    if value is None:
        return Choice(tuple(Named(position) for position in range(len(cards))))
    shown = value if value.isprintable() else ascii(value)
    setting = f"{CUDA_VISIBLE_DEVICES.name}={shown}"
    named: list[Named] = []
    for entry in value.split(","):
        found = _find(entry, value, cards)
        if found in named:
            return Choice((), f"{setting} names the same twice, for which CUDA uses no card at all")
        if isinstance(found, Named):
            named.append(found)
        elif not named and _hides_all(entry):
            return Choice((), f"{setting} hides all cards")
        elif entry == value:
            return Choice((), f"{setting} {found}")
        else:
            ignored = f"{entry!r} {found}; CUDA ignores it and what follows"
            return Choice(tuple(named), f"{setting}: {ignored}")
    return Choice(tuple(named))


def _find(entry: str, value: str, cards: Sequence[Card]) -> Named | str:
    """What an entry of `value` names, or why it names nothing."""
    if value.startswith(_INSTANCE):
        return _find_instance(entry, cards)
    if value.startswith(_CARD):
        return _find_uuid(entry, cards)
    return _find_number(entry, cards)


def _find_number(entry: str, cards: Sequence[Card]) -> Named | str:
    number = _NUMBER.match(entry)
    if number is not None:
        # Compared as text: a number may have any length.
        sign, digits = number[1], number[2].lstrip("0") or "0"
        for position in range(len(cards)):
            if digits == str(position) and (sign != "-" or position == 0):
                return Named(position)
    last = len(cards) - 1
    numbers = f"0 to {last}" if last > 0 else "only 0" if last == 0 else "none"
    return f"names no card of this machine (it has {numbers})"


def _find_uuid(entry: str, cards: Sequence[Card]) -> Named | str:
    fitting = [
        (position, card.uuid)
        for position, card in enumerate(cards)
        if entry.startswith(_CARD) and card.uuid is not None and card.uuid.startswith(entry)
    ]
    if len(fitting) == 1:
        return Named(fitting[0][0])
    if fitting:
        return f"names more than one card ({_listed(uuid for _, uuid in fitting)})"
    return f"names no card of this machine (it has {_listed(card.uuid for card in cards)})"


def _find_instance(entry: str, cards: Sequence[Card]) -> Named | str:
    instances = [
        (Named(position, instance), names)
        for position, card in enumerate(cards)
        for instance, names in enumerate(card.instances)
    ]
    for named, names in instances:
        if entry in names:
            return named
    known = _listed(names[0] for _, names in instances if names)
    return f"names no MIG instance of this machine (it has {known})"


def _hides_all(entry: str) -> bool:
    """Whether an entry is one of the usual ways to say: no card."""
    number = _NUMBER.match(entry)
    return not entry.strip() or (number is not None and number[1] == "-")


def _listed(names: Iterable[str | None]) -> str:
    return ", ".join(name for name in names if name) or "none"
