"""The trace that a receiving server adds: the Received field. RFC 5321 §4.4, RFC 3848."""

from __future__ import annotations

import re
from functools import lru_cache

from twisted_mta.core.address import Address
from twisted_mta.core.message import format_date

_UNSAFE = re.compile(r"[^\x21-\x27\x2a-\x5b\x5d-\x7e]")
_MAX_NAME = 255


def with_protocol(
    *, esmtp: bool, tls: bool, authenticated: bool, lmtp: bool = False, utf8: bool = False
) -> str:
    """The "with" keyword of RFC 3848 and RFC 6531 §4.3 (the IANA registry of mail transmission types)."""
    if not esmtp:
        return "SMTP"
    base = ("UTF8LMTP" if utf8 else "LMTP") if lmtp else ("UTF8SMTP" if utf8 else "ESMTP")
    return base + ("S" if tls else "") + ("A" if authenticated else "")


def received_field(
    *,
    helo: str,
    address: str,
    hostname: str,
    protocol: str,
    queue_id: str,
    recipient: Address | None,
    timestamp: float,
    tls: str = "",
    host: str = "",
    priority: int = 0,
) -> bytes:
    """A Received field with its CRLF.

    `address` is the IP address of the client, `host` the name that it has by the DNS, if that is proven.
    `recipient` is named only where it is the only one: others may not learn of each other (RFC 5321 §7.2).
    `timestamp` is in Unix seconds; the field gives UTC. A `priority` of 0 is that of all mail and not named.
    """
    # What the client said goes into a header: nothing but plain printable characters, and no parentheses.
    name = _printable(helo) or "unknown"
    literal = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
    if host:
        literal = f"{_printable(host)} {literal}"  # RFC 5321 §4.4: TCP-info
    lines = [f"Received: from {name} ({literal})"]
    if tls:
        lines.append(f"\t(using {tls})")
    lines.append(f"\tby {hostname} with {protocol} id {queue_id}")
    there = "" if recipient is None else str(recipient)
    if there and there.isascii():
        lines.append(f"\tfor <{there}>")
    if priority:
        lines.append(f"\tpriority {priority}")  # RFC 6710 §4.1, §7
    return ("\r\n".join(lines) + f";\r\n\t{format_date(timestamp)}\r\n").encode()


@lru_cache(256)
def _printable(name: str) -> str:
    return _UNSAFE.sub("?", name)[:_MAX_NAME]
