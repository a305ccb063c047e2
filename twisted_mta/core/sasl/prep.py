"""SASLprep: one spelling for names and passwords that look the same. RFC 4013, a profile of stringprep (RFC 3454)."""

from __future__ import annotations

import stringprep
import unicodedata

# RFC 4013 §2.3.
_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


class Unprepared(ValueError):
    """The text can't be used; says why, without it."""


def saslprep(text: str, *, stored: bool = False) -> str:
    """The prepared text. `stored`: it will be kept, so that characters unknown to Unicode 3.2 are not allowed in it.

    Raises Unprepared.
    """
    if text.isascii() and text.isprintable():
        return text
    # RFC 4013 §2.1: other spaces are a space, and what can't be seen is nothing.
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)  # RFC 4013 §2.2
    for char in prepared:
        if any(prohibited(char) for prohibited in _PROHIBITED):
            raise Unprepared("it has a character that is not allowed")
        if stored and stringprep.in_table_a1(char):  # RFC 4013 §2.5
            raise Unprepared("it has a character that is too new for SASLprep")
    _check_direction(prepared)
    return prepared


def _check_direction(text: str) -> None:
    """RFC 4013 §2.4, which is RFC 3454 §6: what is written from the right is so from end to end."""
    if not any(stringprep.in_table_d1(char) for char in text):
        return
    if any(stringprep.in_table_d2(char) for char in text):
        raise Unprepared("it mixes characters written from the right with others")
    if not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])):
        raise Unprepared("it is written from the right, but not from end to end")
