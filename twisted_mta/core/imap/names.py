"""Mailbox names: modified UTF-7 (RFC 3501 §5.1.3), INBOX, and the wildcards of LIST (RFC 3501 §6.3.8)."""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Callable

DELIMITER = "/"

# Python loads a codec when it is first asked for: here and not in a session, when the process may have given up the
# right to read Python's own files, or have no file descriptor left.
codecs.lookup("utf-16-be")

# A run of what stands for itself, or a shifted run.
_ENCODED = re.compile(rb"([\x20-\x25\x27-\x7e]+)|&([A-Za-z0-9+,]*)-")
_PLAIN = re.compile(r"([\x20-\x7e]+)|([^\x20-\x7e]+)")


class BadName(ValueError):
    """The octets are no mailbox name; the text says why, fit for an IMAP NO."""


def decode_name(wire: bytes) -> str:
    """A mailbox name from the wire, as Unicode; INBOX in any case becomes "INBOX". Raises BadName."""
    if wire.upper() == b"INBOX":  # RFC 3501 §5.1
        return "INBOX"
    text: list[str] = []
    at = 0
    while at < len(wire):
        match = _ENCODED.match(wire, at)
        if match is None:
            raise BadName("the mailbox name is not modified UTF-7")
        text.append(match[1].decode("ascii") if match[1] else _unshift(match[2]))
        at = match.end()
    name = "".join(text)
    if encode_name(name) != wire:
        # A second spelling of the same name would get around checks, RFC 3501 §5.1.3 forbids most of them.
        raise BadName("the mailbox name is not in the canonical form of modified UTF-7")
    return name


def _unshift(shifted: bytes) -> str:
    if not shifted:
        return "&"
    padded = shifted.replace(b",", b"/") + b"=" * (-len(shifted) % 4)
    try:
        return binascii.a2b_base64(padded, strict_mode=True).decode("utf-16-be")
    except (binascii.Error, UnicodeDecodeError):
        raise BadName("the mailbox name is not modified UTF-7") from None


def encode_name(name: str) -> bytes:
    """A mailbox name for the wire."""
    out: list[bytes] = []
    for match in _PLAIN.finditer(name):
        if match[1]:
            out.append(match[1].replace("&", "&-").encode("ascii"))
        else:
            octets = match[2].encode("utf-16-be", "replace")
            shifted = binascii.b2a_base64(octets, newline=False).rstrip(b"=").replace(b"/", b",")
            out.append(b"&" + shifted + b"-")
    return b"".join(out)


def name_matcher(pattern: bytes) -> Callable[[bytes], bool]:
    """A test of encoded mailbox names against a LIST pattern; INBOX matches in any case.

    All positions of the pattern that a name may have reached are the bits of one number, so the time is the
    length of the name however many wildcards there are.
    """
    exact, folded = _matcher(pattern), _matcher(pattern.upper())
    return lambda name: exact(name) or (name == b"INBOX" and folded(name))


def _matcher(pattern: bytes) -> Callable[[bytes], bool]:
    # A run of wildcards is one wildcard, so no two stand side by side.
    tokens = re.sub(rb"[*%]{2,}", lambda run: b"*" if b"*" in run[0] else b"%", pattern)
    literal = [0] * 256
    star = percent = 0
    for position, octet in enumerate(tokens):
        bit = 1 << position
        if octet == 0x2A:
            star |= bit
        elif octet == 0x25:
            percent |= bit
        else:
            literal[octet] |= bit
    wild = star | percent
    done = 1 << len(tokens)
    delimiter = ord(DELIMITER)

    def matches(name: bytes) -> bool:
        reached = 1 | (1 & wild) << 1
        for octet in name:
            stay = star if octet == delimiter else wild
            reached = (reached & literal[octet]) << 1 | reached & stay
            reached |= (reached & wild) << 1
            if not reached:
                return False
        return bool(reached & done)

    return matches
