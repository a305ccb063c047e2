"""One mail transaction from the client's side: what the peer must be able to do for it, and its commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DEFAULT_NOTIFY, Notify, Recipient
from twisted_mta.core.framing import DotStuffer
from twisted_mta.core.replies import Reply

#: RFC 3461 §4.1 writes the list in any order; this one is ours.
_NOTIFY = ((Notify.SUCCESS, "SUCCESS"), (Notify.FAILURE, "FAILURE"), (Notify.DELAY, "DELAY"))

#: The keywords of an EHLO answer, upper-case, with their parameters.
Extensions = Mapping[str, str]


@attrs.frozen(kw_only=True)
class Transaction:
    """A message for some recipients over one session. `size` is in octets, before dot-stuffing."""

    sender: Address | None
    recipients: tuple[Recipient, ...]
    size: int
    #: "7BIT" or "8BITMIME".
    body_type: str = "7BIT"
    smtputf8: bool = False
    envid: str = ""
    ret: str = ""


class Progress:
    """Where a transaction under way stands; the session keeps it up to date."""

    def __init__(self, transaction: Transaction) -> None:
        #: The verdict on each recipient; None while there is none.
        self.replies: list[Reply | None] = [None] * len(transaction.recipients)
        #: The recipients that RCPT is said for, by index.
        self.offered: list[int] = []
        #: How many of those were answered.
        self.answered = 0
        self.accepted: list[int] = []
        self.mail_refused = False
        self.stuffer = DotStuffer()


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
            554, "5.6.3", "the message is 8-bit, the next host takes only 7-bit, and it can't be converted"
        )
    return None


def refuse_recipient(recipient: Recipient, extensions: Extensions) -> Reply | None:
    """Why this peer can't be given this one recipient, or None."""
    if "SMTPUTF8" not in extensions and _beyond_ascii(recipient.address):
        return Reply(  # RFC 6531 §3.2
            553, "5.6.7", "the recipient's address is not ASCII and the next host does not offer SMTPUTF8"
        )
    return None


def rcpt_refusal(reply: Reply) -> Reply:
    """RFC 5321 §4.5.3.1.10: 552 at RCPT once meant "too many recipients" and counts as 452, unless it says what it means."""
    if reply.code == 552 and reply.enhanced in ("", "5.5.3"):
        return Reply(452, "4.5.3", reply.text)
    return reply


def mail_command(transaction: Transaction, extensions: Extensions) -> bytes:
    """MAIL FROM with the parameters that the peer understands."""
    parts = [f"MAIL FROM:<{transaction.sender or ''}>"]
    if "SIZE" in extensions:
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
    return _line(parts)


def rcpt_command(recipient: Recipient, extensions: Extensions) -> bytes:
    """RCPT TO with the parameters that the peer understands."""
    parts = [f"RCPT TO:<{recipient.address}>"]
    if "DSN" in extensions:
        if recipient.notify != DEFAULT_NOTIFY:
            names = [name for flag, name in _NOTIFY if flag in recipient.notify]
            parts.append(f"NOTIFY={','.join(names) or 'NEVER'}")  # RFC 3461 §4.1
        kind, semicolon, address = recipient.orcpt.partition(";")
        # A UTF-8 address would need the type and encoding of RFC 6533: it is left out.
        if semicolon and recipient.orcpt.isascii():
            parts.append(f"ORCPT={xtext(kind)};{xtext(address)}")  # RFC 3461 §4.2
    return _line(parts)


def xtext(text: str) -> str:
    """RFC 3461 §4: everything but printable ASCII, and "+" and "=", as +XX."""
    return "".join(
        chr(octet) if 33 <= octet <= 126 and octet not in b"+=" else f"+{octet:02X}"
        for octet in text.encode("utf-8", "surrogateescape")
    )


def _line(parts: Sequence[str]) -> bytes:
    command = " ".join(parts)
    if any(char < " " or char == "\x7f" for char in command):
        # Addresses are checked where they come in; this keeps a bug there from becoming an injected command.
        raise ValueError("a control character in an SMTP command")
    return command.encode("utf-8", "surrogateescape") + b"\r\n"


def _beyond_ascii(address: Address | None) -> bool:
    return address is not None and not str(address).isascii()


def _any_beyond_ascii(transaction: Transaction) -> bool:
    return _beyond_ascii(transaction.sender) or any(
        _beyond_ascii(recipient.address) for recipient in transaction.recipients
    )
