"""Mailbox names: "Lists/python" to a client, ".Lists.python" as a Maildir++ directory.

On disk the levels are joined by dots and the text is modified UTF-7, as Dovecot and Courier have it. So a level
can't contain a dot: such names are refused, as Dovecot refuses them, and never quietly become two levels.
"""

from __future__ import annotations

import base64
import binascii
import re

from twisted_mta.interfaces import MailboxError

#: Octets of a directory name on every common file system.
MAX_DIRECTORY = 255

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SHIFTED = re.compile(r"&([A-Za-z0-9+,]*)-")
_PRINTABLE = re.compile(r"[\x20-\x25\x27-\x7e]+")


def normalise(name: str) -> str:
    """The one spelling of a mailbox name: a final "/" dropped, the first level INBOX in capitals.

    Raises MailboxError for a name that can't be. RFC 3501 §5.1 has only INBOX itself ignore case; its children follow,
    so that there never are both an "Inbox" and an "INBOX" tree.
    """
    levels = name.removesuffix("/").split("/")  # RFC 3501 §6.3.3: the separator announces children to come
    if levels[0].upper() == "INBOX":
        levels[0] = "INBOX"
    for level in levels:
        if not level:
            raise MailboxError("a mailbox name has no empty level")
        if "." in level:
            raise MailboxError("a mailbox name can't contain a dot")
        if _CONTROL.search(level):
            raise MailboxError("a mailbox name can't contain control characters")
    clean = "/".join(levels)
    if len(clean) > MAX_DIRECTORY or len(directory_of(clean)) > MAX_DIRECTORY:
        raise MailboxError("the mailbox name is too long")
    return clean


def directory_of(name: str) -> str:
    """The directory below the Maildir for a normalised name; "" for INBOX."""
    return "" if name == "INBOX" else "." + encode_utf7(name.replace("/", "."))


def name_of(directory: str) -> str | None:
    """The name of a Maildir++ directory; None if it is none, or spelt so that we could not find it again."""
    if directory == "":
        return "INBOX"
    try:
        name = decode_utf7(directory[1:]).replace(".", "/")
        return name if directory_of(normalise(name)) == directory else None
    except (ValueError, MailboxError):
        return None


def parents(name: str) -> list[str]:
    """The levels above: "a/b/c" has "a" and "a/b"."""
    levels = name.split("/")
    return ["/".join(levels[:count]) for count in range(1, len(levels))]


def encode_utf7(text: str) -> str:
    """Modified UTF-7, RFC 3501 §5.1.3."""
    parts: list[str] = []
    position = 0
    while position < len(text):
        plain = _PRINTABLE.match(text, position)
        if plain:
            parts.append(plain.group())
            position = plain.end()
        elif text[position] == "&":
            parts.append("&-")
            position += 1
        else:
            end = position
            while end < len(text) and not "\x20" <= text[end] <= "\x7e":
                end += 1
            encoded = base64.b64encode(text[position:end].encode("utf-16-be")).decode().rstrip("=")
            parts.append(f"&{encoded.replace('/', ',')}-")
            position = end
    return "".join(parts)


def decode_utf7(text: str) -> str:
    """The reverse of `encode_utf7`. Raises ValueError for what that never makes."""

    def shifted(match: re.Match[str]) -> str:
        if not match[1]:
            return "&"
        padded = match[1].replace(",", "/") + "=" * (-len(match[1]) % 4)
        try:
            return base64.b64decode(padded, validate=True).decode("utf-16-be")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError(f"not modified UTF-7: {text!r}") from error

    decoded = _SHIFTED.sub(shifted, text)
    if encode_utf7(decoded) != text:
        raise ValueError(f"not modified UTF-7: {text!r}")
    return decoded
