"""One mail transaction from the client's side: what the peer must be able to do for it, and its commands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value

#: RFC 3461 §4.1 writes the list in any order; this one is ours.
_NOTIFY = ((Notify.SUCCESS, "SUCCESS"), (Notify.FAILURE, "FAILURE"), (Notify.DELAY, "DELAY"))

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

#: RFC 2852 §4: nine digits.
_MAX_BY = 999_999_999

#: The keywords of an EHLO answer, upper-case, with their parameters.
Extensions = Mapping[str, str]


class ForwardPath(Protocol):
    """A recipient, as core.envelope.Recipient has it."""

    @property
    def address(self) -> Address: ...
    @property
    def notify(self) -> Notify: ...
    @property
    def orcpt(self) -> str: ...


@value
class TimeLeft:
    """RFC 2852 §4, as of when MAIL is sent. Negative `seconds`: the time has passed."""

    seconds: int
    returns: bool
    trace: bool = False


@value(kw_only=True)
class Transaction:
    """A message for some recipients over one session. `size` is in octets, before dot-stuffing."""

    sender: Address | None
    recipients: tuple[ForwardPath, ...]
    size: int
    #: "7BIT" or "8BITMIME".
    body_type: str = "7BIT"
    smtputf8: bool = False
    envid: str = ""
    ret: str = ""
    time_left: TimeLeft | None = None
    #: RFC 6710: -9 to 9.
    priority: int = 0
    #: Say REQUIRETLS (RFC 8689), or do not send. The caller has seen to it that the session is fit for it.
    require_tls: bool = False
    #: Use BDAT where it is offered (RFC 3030).
    chunking: bool = True
    #: Only ask what would be said of the recipients: there is no message.
    probe: bool = False


def parse_extensions(answer: Reply) -> dict[str, str]:
    """The extensions of an EHLO answer, RFC 5321 §4.1.1.1: keyword -> parameters, each keyword once."""
    found: dict[str, str] = {}
    for line in answer.text.split("\n")[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        keyword = keyword.upper()
        if keyword.startswith("AUTH="):  # from before RFC 2554: "AUTH=LOGIN PLAIN"
            keyword, parameters = "AUTH", f"{keyword[5:]} {parameters}"
        if keyword == "AUTH":
            parameters = f"{found.get('AUTH', '')} {parameters}".strip().upper()
        if keyword:
            found[keyword] = parameters.strip()
    return found


def size_limit(extensions: Extensions) -> int:
    """The largest message that the peer takes, octets, RFC 1870 §4; 0 if it names none."""
    value = extensions.get("SIZE", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 20 else 0


@value
class PeerLimits:
    """What a peer says that it takes; 0: it names no limit."""

    #: Transactions in a session, recipients in a transaction, domains of recipients in a session.
    messages: int = 0
    recipients: int = 0
    domains: int = 0


_UNLIMITED = PeerLimits()


def peer_limits(extensions: Extensions) -> PeerLimits:
    """The limits of an EHLO answer (RFC 9422 §4). What can't be read is passed over."""
    if "LIMITS" not in extensions:
        return _UNLIMITED
    found: dict[str, int] = {}
    for word in extensions.get("LIMITS", "").upper().split():
        name, _, value = word.partition("=")
        if value.isascii() and value.isdigit() and len(value) <= 6:
            found[name] = int(value)
    # RFC 9422 §4.1, §4.2, §4.3
    return PeerLimits(found.get("MAILMAX", 0), found.get("RCPTMAX", 0), found.get("RCPTDOMAINMAX", 0))


def refuse_locally(transaction: Transaction, extensions: Extensions) -> Reply | None:
    """Why this peer can't be given this message at all, or None."""
    limit = size_limit(extensions)
    if limit and transaction.size > limit:  # RFC 1870 §6.2 (2), without the detour over the wire
        return Reply(
            552, "5.3.4", f"the message has {transaction.size} octets and the next host takes at most {limit}"
        )
    if "SMTPUTF8" not in extensions and (transaction.smtputf8 or _beyond_ascii(transaction.sender)):
        return Reply(  # RFC 6531 §3.2
            550, "5.6.7", "the message needs SMTPUTF8, which the next host does not offer"
        )
    if transaction.body_type == "8BITMIME" and "8BITMIME" not in extensions:
        # RFC 6152 §3: convert or return it. What could be converted comes here as 7BIT.
        return Reply(
            554, "5.6.3", "the message is 8-bit, the next host takes only 7-bit, and it is not converted"
        )
    if transaction.require_tls and "REQUIRETLS" not in extensions:
        return Reply(  # RFC 8689 §4.2.1
            550,
            "5.7.30",
            "the message requires TLS on all of its way (REQUIRETLS), the next host promises no such",
        )
    if transaction.time_left is not None and transaction.time_left.returns:
        return _refuse_late(transaction.time_left.seconds, extensions)
    return None


def _refuse_late(seconds: int, extensions: Extensions) -> Reply | None:
    """RFC 2852 §4.1.4.1: only to hosts that give the message back in time too."""
    if seconds <= 0:
        return Reply(550, "5.4.7", "the time in which the sender wants it delivered is up")
    if "DELIVERBY" not in extensions:
        return Reply(
            554,
            "5.3.3",
            "the sender wants it back unless it is delivered in time, the next host has no DELIVERBY",
        )
    least = extensions["DELIVERBY"].partition(",")[0].strip()
    if least.isascii() and least.isdigit() and len(least) <= 9 and int(least) > seconds:
        return Reply(
            554, "5.3.3", f"{seconds} seconds are left to deliver it, the next host wants {least} at least"
        )
    return None


def unpromised(transaction: Transaction, extensions: Extensions) -> bool:
    """Whether the peer will not tell when the message is late, though the sender wants to know."""
    return transaction.time_left is not None and "DELIVERBY" not in extensions


def refuse_recipient(recipient: ForwardPath, extensions: Extensions) -> Reply | None:
    """Why this peer can't be given this one recipient, or None."""
    if "SMTPUTF8" not in extensions and _beyond_ascii(recipient.address):
        return Reply(  # RFC 6531 §3.2
            553, "5.6.7", "the recipient's address is not ASCII and the next host does not offer SMTPUTF8"
        )
    return None


def rcpt_refusal(reply: Reply) -> Reply:
    """RFC 5321 §4.5.3.1.10: 552 at RCPT once meant "too many recipients" and counts as 452, unless it says what it means."""
    if reply.code == 552 and reply.enhanced in ("", "5.5.3"):
        return Reply(452, "4.5.3", reply.text, reply.heard)
    return reply


def mail_command(transaction: Transaction, extensions: Extensions) -> bytes:
    """MAIL FROM with the parameters that the peer understands."""
    parts = [f"MAIL FROM:<{transaction.sender or ''}>"]
    if "SIZE" in extensions and not transaction.probe:
        parts.append(f"SIZE={transaction.size}")  # RFC 1870 §6
    if transaction.body_type == "8BITMIME":
        parts.append("BODY=8BITMIME")  # RFC 6152 §2
    if "SMTPUTF8" in extensions and (transaction.smtputf8 or _any_beyond_ascii(transaction)):
        parts.append("SMTPUTF8")  # RFC 6531 §3.4
    if "DSN" in extensions:
        if transaction.ret:
            parts.append(f"RET={transaction.ret}")  # RFC 3461 §4.3
        if transaction.envid:
            parts.append(f"ENVID={xtext(transaction.envid)}")  # RFC 3461 §4.4
    if transaction.require_tls:
        parts.append("REQUIRETLS")  # RFC 8689 §4.2.1
    left = transaction.time_left
    if left is not None and "DELIVERBY" in extensions:  # RFC 2852 §4.1.4
        seconds = max(min(left.seconds, _MAX_BY), -_MAX_BY)
        parts.append(f"BY={seconds};{'R' if left.returns else 'N'}{'T' * left.trace}")
    if transaction.priority and "MT-PRIORITY" in extensions:
        parts.append(f"MT-PRIORITY={transaction.priority}")  # RFC 6710 §4.2
    return _line(" ".join(parts))


def rcpt_command(recipient: ForwardPath, extensions: Extensions, *, urge: bool = False) -> bytes:
    """RCPT TO with the parameters that the peer understands. With `urge` it is to tell of delays (see `unpromised`)."""
    command = f"RCPT TO:<{recipient.address}>"
    if "DSN" in extensions:
        command += _notify(recipient.notify, urge)
        if recipient.orcpt:
            command += _orcpt(recipient.orcpt)
    return _line(command)


@lru_cache(64)
def _notify(notify: Notify, urge: bool) -> str:
    """The parameter, or "". There are few, and each is said for thousands of recipients."""
    if urge and notify:
        notify |= Notify.DELAY  # RFC 2852 §4.1.4.2
    if Notify.UNSAID in notify and not urge:  # RFC 3461 §5.2.1 (c)
        return ""
    names = [name for flag, name in _NOTIFY if flag in notify]
    return f" NOTIFY={','.join(names) or 'NEVER'}"  # RFC 3461 §4.1


def _orcpt(orcpt: str) -> str:
    kind, semicolon, address = orcpt.partition(";")
    if semicolon and kind == "utf-8":
        return f" ORCPT=utf-8;{escape_utf8(address)}"
    return f" ORCPT={xtext(kind)};{xtext(address)}" if semicolon else ""  # RFC 3461 §4.2


def xtext(text: str) -> str:
    """RFC 3461 §4: everything but printable ASCII, and "+" and "=", as +XX."""
    return "".join(
        chr(octet) if 33 <= octet <= 126 and octet not in b"+=" else f"+{octet:02X}"
        for octet in text.encode("utf-8", "surrogateescape")
    )


def escape_utf8(address: str) -> str:
    """RFC 6533 §3: an address of type utf-8 in seven bits (utf-8-addr-xtext)."""
    return "".join(
        char if "!" <= char <= "~" and char not in "\\+=" else f"\\x{{{ord(char):02X}}}" for char in address
    )


def _line(command: str) -> bytes:
    if not command.isprintable() and _CONTROL.search(command):
        # Addresses are checked where they come in; this keeps a bug there from becoming an injected command.
        raise ValueError("a control character in an SMTP command")
    return command.encode("utf-8", "surrogateescape") + b"\r\n"


def _beyond_ascii(address: Address | None) -> bool:
    return address is not None and not (address.local.isascii() and address.domain.isascii())


def _any_beyond_ascii(transaction: Transaction) -> bool:
    return _beyond_ascii(transaction.sender) or any(
        _beyond_ascii(recipient.address) for recipient in transaction.recipients
    )
