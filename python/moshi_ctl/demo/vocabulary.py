"""The words of a text tokenizer: a SentencePiece model, read as the protocol buffer that it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from moshi_ctl.errors import ModelFileError

LEAST_COLUMNS: Final = 5

# Fields and values of sentencepiece_model.proto.
_PIECES: Final = 1
_TEXT: Final = 1
_KIND: Final = 3
_NORMAL: Final = 1
_USER_DEFINED: Final = 4

_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}

_WORD_START: Final = "\u2581"
_GAP: Final = 2


def read(path: Path) -> list[str]:
    """The words that a tokenizer has in one piece, in the order of the alphabet.

    Raises:
        ModelFileError: When the file cannot be read, or is something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read: {error.strerror}", hint="install moshi-ctl anew"
        ) from error
    try:
        pieces = [
            dict(_fields(value))
            for field, value in _fields(content)
            if field == _PIECES and isinstance(value, bytes)
        ]
        words = {_word(piece) for piece in pieces}
    except (ValueError, IndexError) as error:
        raise ModelFileError(
            f"{path}: is no SentencePiece model", hint="install moshi-ctl anew"
        ) from error
    return sorted(words - {""})


def show(path: Path) -> None:
    """Prints the words of a tokenizer in columns.

    Raises:
        ModelFileError: As `read` does.
    """
    words = read(path)
    width = max((len(word) for word in words), default=0) + _GAP
    columns = max(LEAST_COLUMNS, shutil.get_terminal_size().columns // width)
    for begin in range(0, len(words), columns):
        row = words[begin : begin + columns]
        print("".join(f"{word:{width}}" for word in row).rstrip())


def _word(piece: dict[int, int | bytes]) -> str:
    """What a piece writes, if that is a word: not a sign of the model's own, nor a part of one."""
    text = piece.get(_TEXT, b"")
    if not isinstance(text, bytes) or piece.get(_KIND, _NORMAL) not in (_NORMAL, _USER_DEFINED):
        return ""
    word = text.decode()
    return word.removeprefix(_WORD_START) if word.startswith(_WORD_START) else ""


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer, of those types that this one has."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            number, at = _varint(message, at)
            yield field, number
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, at = _varint(message, at)
        elif wire_type in _FIXED_BYTES:
            length = _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"a field of type {wire_type}")
        if at + length > len(message):
            raise ValueError("a field goes on after the end")
        yield field, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, seven bits to a byte, and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
