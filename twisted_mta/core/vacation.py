"""Vacation replies: whether a message gets one, and what it says. RFC 3834, with some of RFC 5230."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.imap.addresses import parse_addresses
from twisted_mta.core.message import fields, format_date
from twisted_mta.core.rules import Vacation
from twisted_mta.core.values import value

# RFC 3834 §2: the names by which programs write, and those whose mail goes to several people. RFC 5230 §4.6 has them too.
_PROGRAMS = re.compile(
    r"(?:mailer-daemon|postmaster|listserv|majordomo|mdaemon|bounces?|no-?reply|do-?not-?reply|owner-.*"
    r"|.*[-_.+](?:owner|request|bounces?|admin|no-?reply|relay|errors)|bounces?[-_.+].*|no-?reply[-_.+].*|srs1=.*)",
    re.I,
)
#: RFC 3834 §2: where one of the user's addresses must stand.
_RECIPIENTS = frozenset((b"to", b"cc", b"bcc", b"resent-to", b"resent-cc", b"resent-bcc"))
_BATV = re.compile(r"prvs=[^=]*=", re.I)
_SPACES = re.compile(r"[ \t]+")
_PRECEDENCES = (b"bulk", b"junk", b"list")
_MESSAGE_ID = re.compile(rb"<[!-;=?-~]{1,250}>")
_COMMENT = re.compile(rb"\([^()]*\)")
#: Characters of a subject that is quoted, and Message-IDs in References.
_MAX_SUBJECT = 200
_MAX_REFERENCES = 20
#: Octets in one encoded-word: with the name of its field before it the line has 76 characters at most (RFC 2047 §2).
_WORD = 39


def why_not(header: bytes, sender: Address | None, own: frozenset[str]) -> str:
    """Why a message gets no reply; "" if it may get one. `own` are the folded addresses of the user."""
    if sender is None:
        return "it has the null sender"  # RFC 3834 §2
    if sender.folded in own:
        return "it is from the user"  # RFC 5230 §4.6
    if _PROGRAMS.fullmatch(sender.local):
        return f"{sender} is not a person"
    if is_automatic(header):
        return "it was sent by a program (Auto-Submitted)"
    named = False
    for field in fields(header):
        value = field.value.lower()
        if field.key.startswith(b"list-"):
            return "it is from a mailing list"  # RFC 3834 §2
        if field.key == b"precedence" and value in _PRECEDENCES:
            return f"its precedence is {value.decode()}"
        if field.key == b"x-auto-response-suppress" and (b"all" in value or b"oof" in value):
            return "it wants no automatic response"
        if field.key == b"x-spam-flag" and value.startswith(b"yes"):
            return "it is marked as spam"
        if field.key == b"delivered-to" and value.decode("utf-8", "replace").casefold() in own:
            return "it was delivered here before"  # it goes round in circles, and its delivery fails
        if field.key == b"content-type" and value.startswith(b"multipart/report"):
            return "it is a report"
        named = named or (field.key in _RECIPIENTS and _names(field.value, own) != "")
    return "" if named else "it is not addressed to the user in To or Cc"  # RFC 3834 §2


def is_automatic(header: bytes) -> bool:
    """Whether a message says that a program sent it: then no program may answer it, RFC 3834 §2."""
    return any(field.key == b"auto-submitted" and not _is_no(field.value.lower()) for field in fields(header))


def _is_no(value: bytes) -> bool:
    """RFC 3834 §5.1: a keyword, perhaps with comments around and parameters behind it."""
    return _COMMENT.sub(b"", value[:1000]).partition(b";")[0].strip() == b"no"


def _names(value: bytes, own: frozenset[str]) -> str:
    """The first of the user's addresses in a field; ""."""
    for found in parse_addresses(value):
        text = b"%b@%b" % (found.mailbox or b"", found.host or b"")
        folded = text.decode("utf-8", "replace").casefold()
        if folded in own:
            return folded
    return ""


def addressed(header: bytes, own: frozenset[str]) -> str:
    """The address of the user that the sender wrote to, folded; "" if none is named."""
    named = (_names(field.value, own) for field in fields(header) if field.key in _RECIPIENTS)
    return next((name for name in named if name), "")


def correspondent(sender: Address) -> str:
    """The key by which a sender is known again: without what changes from message to message (BATV)."""
    return attrs.evolve(sender, local=_BATV.sub("", sender.local, count=1)).folded


def handle(vacation: Vacation) -> str:
    """The key of a reply: who got another one may get this one (RFC 5230 §4.2)."""
    said = f"{vacation.subject}\0{vacation.sender}\0{vacation.text}"
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@value(kw_only=True)
class Reply:
    """A reply to be queued, from the null reverse-path."""

    data: bytes
    #: Without brackets.
    message_id: str
    smtputf8: bool


def reply(
    vacation: Vacation,
    header: bytes,
    *,
    to: Address,
    sender: Address,
    queue_id: str,
    hostname: str,
    now: float,
) -> Reply:
    """The reply to a message, sent as `sender`. CRLF line ends."""
    message_id = f"{queue_id}@{hostname}"
    lines = [
        f"From: {_phrase(vacation.name)}<{sender}>",
        f"To: <{to}>",
        f"Subject: {_subject(vacation, header)}",
        f"Date: {format_date(now)}",
        f"Message-ID: <{message_id}>",
        *_threading(header),
        "Auto-Submitted: auto-replied",  # RFC 3834 §3.1.7
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: quoted-printable",
        "",
    ]
    text = "\r\n".join(vacation.text.split("\n")) + "\r\n"
    body = binascii.b2a_qp(text.encode("utf-8", "replace"), istext=True)
    top = "".join(f"{line}\r\n" for line in lines)
    return Reply(
        data=top.encode("utf-8", "surrogateescape") + body,
        message_id=message_id,
        smtputf8=not f"{sender}{to}".isascii(),
    )


def _phrase(name: str) -> str:
    """The display name with a space behind it, RFC 5322 §3.4; "" for none."""
    if not name:
        return ""
    if name.isascii():
        escaped = re.sub(r'([\\"])', r"\\\1", name)
        return f'"{escaped}" '
    return _encoded(name) + " "


def _subject(vacation: Vacation, header: bytes) -> str:
    """RFC 3834 §3.1.5."""
    if vacation.subject:
        return _folded(vacation.subject) if vacation.subject.isascii() else _encoded(vacation.subject)
    given = next((field.value for field in fields(header) if field.key == b"subject"), b"")
    text = _SPACES.sub(" ", given.decode("ascii", "replace"))
    # Encoded-words stay as they are, and so none may be cut.
    if not text or len(text) > _MAX_SUBJECT or not (text.isascii() and text.isprintable()):
        return "Auto: your message"
    return _folded(f"Auto: {text}")


def _folded(text: str) -> str:
    """At most 76 characters a line where there are spaces to fold at, RFC 2047 §2."""
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + 1 + len(word) > 66 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return "\r\n ".join(lines)


def _encoded(text: str) -> str:
    """Encoded-words that cut no character, RFC 2047 §5."""
    words = [b""]
    for character in text:
        octets = character.encode("utf-8", "replace")
        if len(words[-1]) + len(octets) > _WORD:
            words.append(b"")
        words[-1] += octets
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


def _threading(header: bytes) -> list[str]:
    """In-Reply-To and References, RFC 3834 §3.1.6, RFC 5322 §3.6.4."""
    found = {field.key: _MESSAGE_ID.findall(field.value) for field in reversed(list(fields(header)))}
    parent = found.get(b"message-id", [])[:1]
    if not parent:
        return []
    before = found.get(b"references") or found.get(b"in-reply-to", [])
    # The first and the last ones tell the thread.
    kept = before[:1] + before[1:][-_MAX_REFERENCES:]
    references = "\r\n ".join(name.decode("ascii") for name in (*kept, *parent))
    return [f"In-Reply-To: {parent[0].decode('ascii')}", f"References: {references}"]
