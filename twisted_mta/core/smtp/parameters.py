"""The parameters of MAIL and RCPT: each extension reads its own into the envelope.

One table a command says which parameter belongs to which extension and what reads it. A parameter whose extension
is not offered is unknown (RFC 5321 §4.1.1.11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime

import attrs

from twisted_mta.core.envelope import DeliverBy, Envelope, Notify, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.commands import CommandError, decode_xtext, syntax_error
from twisted_mta.core.values import value

# RFC 6533 §3: in the utf-8 address type, \x{XX} stands for a code point.
_ESCAPED = re.compile(r"\\x\{([0-9A-F]{2,6})\}")
_BY = re.compile(r"([+-]?[0-9]{1,9});([NR])(T?)", re.I)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:Z|[+-][0-9]{2}:[0-9]{2})", re.I)
_PRIORITY = re.compile(r"-?[0-9]")
#: RFC 3461 §4.4 and §4.2: octets of ENVID and ORCPT, encoded.
_MAX_ENVID = 100
_MAX_ORCPT = 500


@value(kw_only=True)
class Context:
    """What the reading of parameters depends on. Sizes in octets, times in seconds."""

    size_limit: int
    #: The keywords offered in the answer to EHLO.
    offered: frozenset[str]
    #: Unix time now, and how many seconds a message may be held (RFC 4865 §3).
    now: float = 0.0
    hold_limit: float = 0.0
    #: The least by-time with mode R (RFC 2852 §2).
    deliver_by_minimum: int = 0


def too_big(limit: int) -> Reply:
    """RFC 1870 §6.1 (1)."""
    return Reply(552, "5.3.4", f"Message is bigger than the limit of {limit} octets")


# --- MAIL ----------------------------------------------------------------------------------------


def _size(envelope: Envelope, value: str, context: Context) -> Envelope:
    if not value.isascii() or not value.isdigit() or len(value) > 20:
        raise syntax_error("SIZE is a number of octets")
    if int(value) > context.size_limit:  # RFC 1870 §6.1
        raise CommandError(too_big(context.size_limit))
    return attrs.evolve(envelope, declared_size=int(value))


def _body(envelope: Envelope, value: str, context: Context) -> Envelope:
    body = value.upper()
    allowed = ("7BIT", "8BITMIME", "BINARYMIME") if "BINARYMIME" in context.offered else ("7BIT", "8BITMIME")
    if body not in allowed:  # RFC 6152 §2, RFC 3030 §3
        raise syntax_error(f"BODY is {', '.join(allowed[:-1])} or {allowed[-1]}")
    return attrs.evolve(envelope, body=body)


def _auth(envelope: Envelope, value: str, context: Context) -> Envelope:
    return envelope  # RFC 4954 §5: whoever it names, we vouch for nobody; it is as AUTH=<>


def _smtputf8(envelope: Envelope, value: str, context: Context) -> Envelope:
    _no_value("SMTPUTF8", value)
    return attrs.evolve(envelope, smtputf8=True)


def _ret(envelope: Envelope, value: str, context: Context) -> Envelope:
    ret = value.upper()
    if ret not in ("FULL", "HDRS"):  # RFC 3461 §4.3
        raise syntax_error("RET is FULL or HDRS")
    return attrs.evolve(envelope, ret=ret)


def _envid(envelope: Envelope, value: str, context: Context) -> Envelope:
    if not value or len(value) > _MAX_ENVID:  # RFC 3461 §4.4
        raise syntax_error(f"ENVID is xtext of 1 to {_MAX_ENVID} characters")
    try:
        return attrs.evolve(envelope, envid=decode_xtext(value))
    except ValueError as error:
        raise syntax_error(f"ENVID: {error}") from None


def _requiretls(envelope: Envelope, value: str, context: Context) -> Envelope:
    _no_value("REQUIRETLS", value)
    return attrs.evolve(envelope, require_tls=True)  # RFC 8689 §4.1


def _by(envelope: Envelope, value: str, context: Context) -> Envelope:
    match = _BY.fullmatch(value)
    if match is None:
        raise syntax_error("BY is seconds;N or seconds;R, with T behind for a trace")
    seconds, returns = int(match[1]), match[2].upper() == "R"
    if returns and seconds <= 0:  # RFC 2852 §4
        raise syntax_error("BY with R needs a time in the future")
    if returns and seconds < context.deliver_by_minimum:  # RFC 2852 §2: 55z, as it will never do
        raise CommandError(
            Reply(555, "5.5.4", f"BY with R needs {context.deliver_by_minimum} seconds at least")
        )
    return attrs.evolve(envelope, deliver_by=DeliverBy(context.now + seconds, returns, bool(match[3])))


def _holdfor(envelope: Envelope, value: str, context: Context) -> Envelope:
    if not value.isascii() or not value.isdigit() or not 1 <= len(value) <= 9:  # RFC 4865 §3
        raise syntax_error("HOLDFOR is a number of seconds")
    return _hold(envelope, context.now + int(value), context)


def _holduntil(envelope: Envelope, value: str, context: Context) -> Envelope:
    try:
        if not _TIME.fullmatch(value):
            raise ValueError
        moment = datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
    except ValueError:
        raise syntax_error("HOLDUNTIL is a date and time as 2030-01-31T12:00:00Z") from None
    return _hold(envelope, moment.timestamp(), context)


def _hold(envelope: Envelope, until: float, context: Context) -> Envelope:
    if envelope.hold_until:  # RFC 4865 §3: one of the two, once
        raise syntax_error("HOLDFOR and HOLDUNTIL exclude each other")
    if until > context.now + context.hold_limit:
        raise syntax_error(f"A message can be held {context.hold_limit:.0f} seconds at most")
    return attrs.evolve(envelope, hold_until=until)


def _priority(envelope: Envelope, value: str, context: Context) -> Envelope:
    if not _PRIORITY.fullmatch(value):  # RFC 6710 §7
        raise syntax_error("MT-PRIORITY is -9 to 9")
    return attrs.evolve(envelope, priority=int(value))


def _no_value(name: str, value: str) -> None:
    if value:
        raise syntax_error(f"{name} has no value")


_MailReader = Callable[[Envelope, str, Context], Envelope]

#: Parameter -> (the extension it belongs to, "" for those that always are; what reads it).
_MAIL: Mapping[str, tuple[str, _MailReader]] = {
    "SIZE": ("SIZE", _size),
    "BODY": ("8BITMIME", _body),
    "AUTH": ("", _auth),
    "SMTPUTF8": ("SMTPUTF8", _smtputf8),
    "RET": ("DSN", _ret),
    "ENVID": ("DSN", _envid),
    "REQUIRETLS": ("REQUIRETLS", _requiretls),
    "BY": ("DELIVERBY", _by),
    "HOLDFOR": ("FUTURERELEASE", _holdfor),
    "HOLDUNTIL": ("FUTURERELEASE", _holduntil),
    "MT-PRIORITY": ("MT-PRIORITY", _priority),
}


def read_mail(envelope: Envelope, parameters: Mapping[str, str], context: Context) -> Envelope:
    """The envelope with the parameters of MAIL. Raises CommandError."""
    for name, text in parameters.items():
        extension, read = _MAIL.get(name, ("?", _auth))
        if extension and extension not in context.offered:
            raise _unknown(name)
        envelope = read(envelope, text, context)
    if envelope.deliver_by and envelope.hold_until > envelope.deliver_by.time:
        raise syntax_error("The message is to be held until after its time is up")
    return envelope


# --- RCPT ----------------------------------------------------------------------------------------

_NOTIFY = {"SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}


def _notify(recipient: Recipient, value: str) -> Recipient:
    words = value.upper().split(",")
    if words == ["NEVER"]:  # RFC 3461 §4.1: NEVER stands alone
        return attrs.evolve(recipient, notify=Notify.NEVER)
    if len(set(words)) != len(words) or not set(words) <= _NOTIFY.keys():
        raise syntax_error("NOTIFY is NEVER, or a list of SUCCESS, FAILURE and DELAY")
    notify = Notify.NEVER
    for word in words:
        notify |= _NOTIFY[word]
    return attrs.evolve(recipient, notify=notify)


def _orcpt(recipient: Recipient, value: str) -> Recipient:
    kind, semicolon, encoded = value.partition(";")
    if not semicolon or not kind or not encoded or len(value) > _MAX_ORCPT:  # RFC 3461 §4.2
        raise syntax_error("ORCPT is a type, a semicolon and an address in xtext")
    try:
        kind = decode_xtext(kind).lower()
        address = _utf8_address(encoded) if kind == "utf-8" else decode_xtext(encoded)
    except ValueError as error:
        raise syntax_error(f"ORCPT: {error}") from None
    return attrs.evolve(recipient, orcpt=f"{kind};{address}")


def _utf8_address(text: str) -> str:
    """RFC 6533 §3: as it is, or with escapes. Raises ValueError."""
    decoded = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    if not decoded.isprintable():
        raise ValueError("not a printable address")
    return decoded


_RCPT: Mapping[str, Callable[[Recipient, str], Recipient]] = {"NOTIFY": _notify, "ORCPT": _orcpt}


def read_rcpt(recipient: Recipient, parameters: Mapping[str, str], context: Context) -> Recipient:
    """The recipient with the parameters of RCPT, all of which belong to DSN. Raises CommandError."""
    for name, text in parameters.items():
        read = _RCPT.get(name)
        if read is None or "DSN" not in context.offered:
            raise _unknown(name)
        recipient = read(recipient, text)
    return recipient


def _unknown(name: str) -> CommandError:
    return CommandError(Reply(555, "5.5.4", f"Parameter {name[:20]} is not supported"))
