"""Delivery status notifications: what a sender is told of a message that failed, is late, or arrived. RFC 3464, RFC 3461.

A notification is a multipart/report (RFC 6522): plain words for people, fields for programs, and the message or its
header section. It never tells where an alias leads (RFC 3464 §4.2): recipients go by the address the sender gave.
"""

from __future__ import annotations

import binascii
import enum
import re
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

from twisted_mta.core.address import Address
from twisted_mta.core.message import format_date, header_length
from twisted_mta.core.queue import Contact, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.schedule import format_duration
from twisted_mta.core.smtp.transaction import escape_utf8
from twisted_mta.core.values import value

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
_EIGHT_BIT = re.compile(rb"[\x80-\xff]")
_ID_TOKEN = re.compile(r"[!-;=?-~]{1,250}")
#: Characters of a reply that are passed on, and lines of it.
_MAX_LINE = 500
_MAX_LINES = 20
#: Hosts that are listed.
_MAX_HOSTS = 10


class Action(enum.StrEnum):
    """What became of a recipient, RFC 3464 §2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@value(kw_only=True)
class Report:
    """What there is to tell of one recipient."""

    recipient: QueuedRecipient
    action: Action
    #: The words of `remote` (`Reply.heard`), or our own: of `remote`, or where that is "" of the message.
    reply: Reply
    remote: str = ""
    #: When the attempt ended that this is about.
    attempted: float
    #: The hosts that were turned to in the last attempt, in order.
    contacts: tuple[Contact, ...] = ()
    #: Whether it may have arrived all the same.
    doubtful: bool = False
    #: Whether it failed because its time was up.
    expired: bool = False
    #: Whether this is told because the time of the message's `deliver_by` has passed.
    by_passed: bool = False
    #: How long it is tried; None: until the message expires.
    until: float | None = None
    #: Whether it is told though NOTIFY does not ask for it: only NEVER forbids it (RFC 2852 §4.1.4).
    traced: bool = False

    @property
    def status(self) -> str:
        """The enhanced status code."""
        if self.by_passed:  # RFC 2852 §4.1.3: "delivery time expired"
            return "5.4.7" if self.action is Action.FAILED else "4.4.7"
        return self.reply.status


@value(kw_only=True)
class Notification:
    """A message to be queued, from the null reverse-path (RFC 3461 §6.1)."""

    data: bytes
    #: "7BIT" or "8BITMIME".
    body_type: str
    #: Whether its header needs SMTPUTF8: the sender's address does.
    smtputf8: bool
    #: Without brackets.
    message_id: str


@value(kw_only=True)
class Reporter:
    """Who reports: names this server in its notifications, and says how much of a message they quote."""

    hostname: str
    #: Whom a person may write to about it.
    postmaster: Address
    #: Octets of the original that are sent back.
    quote: int

    def notify(
        self,
        message: QueuedMessage,
        reports: Sequence[Report],
        *,
        queue_id: str,
        now: float,
        original: bytes,
    ) -> Notification:
        """Build the notification `queue_id` about `message` for its sender, or for the postmaster if that one is null.

        `original` is the message from its prefix on: `quote` octets or more of it, unless it is shorter.
        """
        addressee = message.sender or self.postmaster  # RFC 5321 §4.5.5: never tell the null reverse-path
        people = _text_part(self._words(message, reports, now))
        parts = [
            people,
            _status_part(self.hostname, message, reports),
            self._original(message, reports, original),
        ]
        eight_bit = any(_EIGHT_BIT.search(part) for part in parts)
        boundary = _boundary(queue_id, parts)
        message_id = f"{queue_id}@{self.hostname}"
        header = [
            f"From: Mail Delivery System <MAILER-DAEMON@{self.hostname}>",
            f"To: <{addressee}>",
            f"Subject: {_SUBJECTS[_worst(reports)] if message.sender else _DOUBLE_BOUNCE}",
            f"Date: {format_date(now)}",
            f"Message-ID: <{message_id}>",
            "Auto-Submitted: auto-replied",  # RFC 3834 §5.2: not auto-generated
            "MIME-Version: 1.0",
            "Content-Type: multipart/report; report-type=delivery-status;",
            f'\tboundary="{boundary}"',
        ]
        if _ID_TOKEN.fullmatch(message.message_id):
            header.insert(5, f"References: <{message.message_id}>")
        if eight_bit:
            header.append("Content-Transfer-Encoding: 8bit")
        top = "\r\n".join([*header, "", "This is a delivery status notification in MIME format.", ""])
        delimiter = f"\r\n--{boundary}".encode()
        data = b"".join(
            [
                top.encode("utf-8", "surrogateescape"),
                *(delimiter + b"\r\n" + part for part in parts),
                delimiter + b"--\r\n",
            ]
        )
        smtputf8 = not str(addressee).isascii()
        return Notification(
            data=data,
            body_type="8BITMIME" if eight_bit or smtputf8 else "7BIT",
            smtputf8=smtputf8,
            message_id=message_id,
        )

    def _words(self, message: QueuedMessage, reports: Sequence[Report], now: float) -> str:
        """The part for people: who, what happened, the words of the other side, what to do."""
        lines = [f"This is the mail server {self.hostname}.", ""]
        date = format_date(message.arrived)
        if message.sender is not None:
            lines += [f"It writes about your message of {date}."]
        else:
            lines += _FOR_THE_POSTMASTER
            lines += ["", f"This is about a notification of {date}."]
        for action in Action:
            those = [report for report in reports if report.action is action]
            if those:
                lines += ["", _INTRODUCTIONS[action]]
            for report in those:
                lines += [
                    "",
                    f"  {_printable(str(report.recipient.original))}",
                    *_explain(message, report, now),
                ]
        if any(report.action is Action.FAILED for report in reports):
            lines += ["", self._what_is_attached(message)]
        if message.sender is not None:
            lines += ["", f"Questions about this server go to {self.postmaster}."]
        lines.append("")
        return "\r\n".join(lines)

    def _what_is_attached(self, message: QueuedMessage) -> str:
        what = "your message" if message.sender is not None else "the notification"
        if message.ret == "HDRS":
            return f"The header of {what} is attached."
        if message.size <= self.quote:
            return f"{what.capitalize()} is attached."
        return f"The beginning of {what} is attached; it has {message.size} octets in all."

    def _original(self, message: QueuedMessage, reports: Sequence[Report], original: bytes) -> bytes:
        """The third part: the message or its beginning where it is wanted, else its header section."""
        # RFC 3461 §6.2: only the header where nothing failed; RFC 6522 §3: a portion of the message will do.
        failed = any(report.action is Action.FAILED for report in reports)
        readable = len(original) >= min(message.size, self.quote)
        if failed and readable and message.ret != "HDRS" and header_length(original) <= self.quote:
            head = _whole_lines(original, self.quote)
            header = head[: header_length(head)]
            # RFC 6532 §3.7: a header with UTF-8 is not for message/rfc822.
            kind = b"global" if _EIGHT_BIT.search(header) else b"rfc822"
            encoding = b"8bit" if _EIGHT_BIT.search(head) else b"7bit"
            return b"Content-Type: message/%b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (
                kind,
                encoding,
                head,
            )
        # RFC 6522 §4: a header section alone is not message/rfc822.
        header = _whole_lines(original[: header_length(original)].removesuffix(b"\r\n"), self.quote)
        encoding = b"7bit"
        if _EIGHT_BIT.search(header):
            header = binascii.b2a_qp(header, istext=True)
            encoding = b"quoted-printable"
        return b"Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (
            encoding,
            header,
        )


_SUBJECTS = {
    Action.FAILED: "Your message could not be delivered",
    Action.DELAYED: "Your message is delayed",
    Action.DELIVERED: "Your message was delivered",
    Action.RELAYED: "Your message was passed on",
    Action.EXPANDED: "Your message was passed on",
}
_DOUBLE_BOUNCE = "A notification could not be delivered"
_FOR_THE_POSTMASTER = [
    "You are its postmaster. A notification could not be delivered to the one who",
    "was to have it, mostly since the sender of the message that it tells of was",
    "made up, or mistyped. Nobody else is told.",
]
_INTRODUCTIONS = {
    Action.FAILED: "It could not be delivered to:",
    Action.DELAYED: "It has not been delivered yet, but will be tried again. You need not send it again:",
    Action.DELIVERED: "It was delivered to:",
    Action.RELAYED: "It was passed on to a mail server that may not report what becomes of it:",
    Action.EXPANDED: "It was delivered to an address that leads to several others, and goes on to them:",
}
#: What to do about a failure, by the status without its class (RFC 3463 §3), first match.
_ADVICE = (
    (
        "1.",
        "Please check the address. If it is right, ask the recipient in another way for the one now in use.",
    ),
    ("2.2", "The mailbox is full. Please try again later, or tell the recipient in another way."),
    ("2.3", "The message is too large for the recipient. Please send a smaller one, or a link to it."),
    ("3.4", "The message is too large for the other server. Please send a smaller one, or a link to it."),
    ("4.7", "You may send it again and ask for more time, or reach the recipient in another way."),
    ("4.6", "The message went round in circles. Please tell the postmaster named below."),
    (
        "7.",
        "The other side does not take this message from you. Please show its words above to your administrator.",
    ),
    ("", "Please show the words above to your administrator if they don't tell you what to do."),
)


def _worst(reports: Sequence[Report]) -> Action:
    """The action that gives the notification its subject."""
    present = {report.action for report in reports}
    return next(action for action in Action if action in present)


def _until(message: QueuedMessage, report: Report) -> float:
    return message.expires if report.until is None else report.until


def _explain(message: QueuedMessage, report: Report, now: float) -> list[str]:
    """What happened to one recipient, and what to do."""
    who = _who_said(report)
    words = [f"      {_printable(line)[:_MAX_LINE]}" for line in _reply_lines(report.reply)]
    waited = format_duration(max(now - message.released, 0))
    by = message.deliver_by
    if report.by_passed and by is not None:
        told = [f"    It was not delivered by the time that you asked for, {format_date(by.time)}."]
        told += [f"    The last time, {who}:", *words]
        if report.action is Action.DELAYED:
            told += [f"    It will be tried until {format_date(_until(message, report))}."]
        return told
    match report.action:
        case Action.FAILED if report.expired:
            told = [
                f"    It was tried for {waited} ({_times(report)}), then given up. The last time, {who}:",
                *words,
                *_tried(report),
            ]
            advice = "You may send it again later, or reach the recipient in another way."
        case Action.FAILED:
            told = [f"    {_who_said(report, 'This')}:", *words, *_tried(report)]
            kind = report.reply.status.partition(".")[2]
            advice = next(text for start, text in _ADVICE if kind.startswith(start))
        case Action.DELAYED:
            told = [
                f"    It has been tried for {waited} ({_times(report)}). The last time, {who}:",
                *words,
                *_tried(report),
            ]
            advice = f"It will be tried until {format_date(_until(message, report))}."
        case _:
            return []
    return [*told, *textwrap.wrap(advice, 76, initial_indent="    ", subsequent_indent="    ")]


def _who_said(report: Report, this: str = "this") -> str:
    """Whose the words of the reply are; `this` may be with a capital letter."""
    remote = _printable(report.remote)
    if remote and report.reply.heard:
        return f"{remote} said"
    return f"{this} server said" + (f" of {remote}" if remote else "")


def _times(report: Report) -> str:
    # Those before this one are counted in the row.
    return "once" if report.recipient.attempts == 0 else f"{report.recipient.attempts + 1} times"


def _tried(report: Report) -> list[str]:
    """All hosts of the last attempt, where there was more than one; and what is not certain."""
    told: list[str] = []
    if len(report.contacts) > 1:
        told.append("    These mail servers were tried then:")
    for contact in report.contacts[:_MAX_HOSTS] if told else ():
        words = (
            f"{format_date(contact.began)}: {_printable(contact.remote)}: {_printable(str(contact.reply))}"
        )
        told += textwrap.wrap(words[:_MAX_LINE], 76, initial_indent="      ", subsequent_indent="        ")
    if len(report.contacts) > _MAX_HOSTS:
        told.append(f"      and {len(report.contacts) - _MAX_HOSTS} more")
    if report.doubtful:
        told.append("    It may have arrived all the same: all of it was sent, and then nothing was heard.")
    return told


def _reply_lines(reply: Reply) -> list[str]:
    return reply.encode().decode("utf-8", "replace").split("\r\n")[:-1][:_MAX_LINES]


def _whole_lines(text: bytes, limit: int) -> bytes:
    """As many whole lines as fit."""
    if len(text) <= limit:
        return text
    whole, end, _ = text[:limit].rpartition(b"\r\n")
    return whole + end


def _printable(text: str) -> str:
    return _CONTROLS.sub(" ", text).strip()


def _text_part(words: str) -> bytes:
    # An address may hold octets that are no UTF-8: they are shown as "?".
    data = words.encode("utf-8", "replace")
    charset, encoding = ("us-ascii", "7bit") if words.isascii() else ("utf-8", "8bit")
    return (
        f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
        + data
    )


def _status_part(hostname: str, message: QueuedMessage, reports: Sequence[Report]) -> bytes:
    """message/delivery-status, RFC 3464 §2.1: always seven bits."""
    groups = [_message_fields(hostname, message)]
    groups += [_recipient_fields(message, report) for report in reports]
    # RFC 3464 §2.1: an empty line between the groups, none behind the last.
    content = "\r\n\r\n".join("\r\n".join(group) for group in groups)
    return b"Content-Type: message/delivery-status\r\n\r\n" + content.encode("ascii", "replace") + b"\r\n"


def _message_fields(hostname: str, message: QueuedMessage) -> list[str]:
    """RFC 3464 §2.2."""
    fields = []
    if message.envid:  # RFC 3461 §6.3 (a): decoded
        fields.append(_field("Original-Envelope-Id", message.envid))
    fields.append(_field("Reporting-MTA", f"dns; {hostname}"))
    fields.append(_field("Arrival-Date", format_date(message.arrived)))
    if message.deliver_by is not None:  # RFC 2852 §5
        fields.append(_field("Deliver-By-Date", format_date(message.deliver_by.time)))
    if message.not_before:  # RFC 4865 §5.1.2
        until = datetime.fromtimestamp(message.not_before, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields.append(_field("Future-Release-Request", f"until;{until}"))
    return fields


def _recipient_fields(message: QueuedMessage, report: Report) -> list[str]:
    """RFC 3464 §2.3."""
    recipient = report.recipient
    fields = []
    if recipient.orcpt:  # RFC 3461 §6.3 (d): only then
        kind, _, address = recipient.orcpt.partition(";")
        fields.append(_field("Original-Recipient", _typed(kind.strip(), address.strip())))
    # RFC 3464 §2.3.2: as it was when we accepted the message.
    fields.append(_field("Final-Recipient", _typed("rfc822", str(recipient.original))))
    fields.append(f"Action: {report.action}")
    # RFC 3464 §2.3.3: what was given up after temporary failures keeps the status of the last one.
    fields.append(_field("Status", report.status))
    if report.remote:  # RFC 3461 §6.3 (h): for each attempt to relay, whatever came of it
        fields.append(_field("Remote-MTA", f"dns; {_remote(report.remote)}"))
    # RFC 3461 §9.2: the lines of a reply are kept apart by folding.
    lines = [f"smtp; {line}" if n == 0 else line for n, line in enumerate(_reply_lines(report.reply))]
    if report.action not in (Action.DELIVERED, Action.EXPANDED):  # RFC 3461 §6.3 (i)
        fields.append(_field("Diagnostic-Code", *lines))
    fields.append(f"Last-Attempt-Date: {format_date(report.attempted)}")
    if not report.remote:  # RFC 3464 §2.3.8: then the one who decided is this server
        fields.append(_field("Final-Log-ID", message.id))
    if report.action is Action.DELAYED:  # RFC 3464 §2.3.9: in no other
        fields.append(f"Will-Retry-Until: {format_date(_until(message, report))}")
    return fields


def _remote(remote: str) -> str:
    """``host [address]``: the address becomes a comment."""
    host, _, address = remote.partition(" ")
    address = address.strip("[]() ")
    return f"{host} ({address})" if address and "(" not in address and ")" not in address else host


def _typed(kind: str, address: str) -> str:
    if address.isascii():
        return f"{kind}; {address}"
    return f"utf-8; {escape_utf8(address)}"  # RFC 6533 §3: the report is of seven bits


def _field(name: str, *lines: str) -> str:
    """A field, folded where a line would pass 76 characters and between `lines`."""
    folded: list[str] = []
    for n, line in enumerate(lines):
        start = f"{name}: " if n == 0 else " "
        folded += textwrap.wrap(
            _printable(line)[:_MAX_LINE],
            76,
            initial_indent=start,
            subsequent_indent=" ",
            break_long_words=False,
            break_on_hyphens=False,
        ) or [start]
    return "\r\n".join(folded)


def _boundary(queue_id: str, parts: Sequence[bytes]) -> str:
    """A boundary that no part contains, RFC 2046 §5.1.1."""
    number = 0
    while any(f"--{queue_id}={number}".encode() in part for part in parts):
        number += 1
    return f"{queue_id}={number}"
