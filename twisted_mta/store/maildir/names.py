"""Mailbox names: "Lists/python" to a client, ".Lists.python" as a Maildir++ directory.

On disk the levels are joined by dots and the text is modified UTF-7, as Dovecot and Courier have it. So a level
can't contain a dot: such names are refused, as Dovecot refuses them, and never quietly become two levels.
"""

from __future__ import annotations

import re

from twisted_mta.core.imap.names import decode_name, encode_name
from twisted_mta.interfaces import MailboxError

#: Octets of a directory name on every common file system.
MAX_DIRECTORY = 255

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


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
    return "" if name == "INBOX" else "." + encode_name(name.replace("/", ".")).decode("ascii")


def name_of(directory: str) -> str | None:
    """The name of a Maildir++ directory; None if it is none, or spelt so that we could not find it again."""
    if directory == "":
        return "INBOX"
    try:
        name = decode_name(directory[1:].encode()).replace(".", "/")
        return name if directory_of(normalise(name)) == directory else None
    except (ValueError, MailboxError):
        return None


def parents(name: str) -> list[str]:
    """The levels above: "a/b/c" has "a" and "a/b"."""
    levels = name.split("/")
    return ["/".join(levels[:count]) for count in range(1, len(levels))]
