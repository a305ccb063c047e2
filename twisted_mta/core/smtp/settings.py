"""What an SMTP server session is told about its listener, and what it offers in its answer to EHLO."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import attrs

from twisted_mta.core.effects import Pace
from twisted_mta.core.smtp.states import State, Times, paces
from twisted_mta.core.values import value


class Role(enum.StrEnum):
    """The rules under which a listener takes mail."""

    MX = "mx"
    SUBMISSION = "submission"
    LMTP = "lmtp"


class BareNewlines(enum.StrEnum):
    """What becomes of a message with a CR or LF that stands alone."""

    REFUSE = "refuse"
    #: Each becomes a CRLF. None of them ends the message.
    NORMALISE = "normalise"


class Audience(enum.StrEnum):
    """Who may use a command."""

    NOBODY = "nobody"
    LOGGED_IN = "logged-in"
    #: Those who logged in, and the networks that may relay.
    TRUSTED = "trusted"
    ANYONE = "anyone"

    def admits(self, *, logged_in: bool, trusted: bool) -> bool:
        """Whether a client is one of them."""
        if self is Audience.NOBODY:
            return False
        return logged_in or self is Audience.ANYONE or (trusted and self is Audience.TRUSTED)


@value(kw_only=True)
class ServerSettings:
    """One listener. Sizes in octets, times in seconds."""

    hostname: str
    #: Text behind the host name in the greeting.
    greeting: str = ""
    size_limit: int = 52428800
    recipient_limit: int = 1000
    #: Transactions in one session; 0: as many as the client likes.
    message_limit: int = 0
    error_limit: int = 20
    #: Commands that bring no message forward, in a row. One whose messages are refused may well send RSET after each.
    idle_limit: int = 200
    #: Recipients refused for good in one session, of clients that are strangers; 0: as many as the client likes.
    refusal_limit: int = 0
    times: Times = Times()
    #: Whether STARTTLS can be offered (it is not on a connection that has TLS already).
    tls_available: bool = False
    #: Whether SCRAM is among the mechanisms of AUTH.
    scram: bool = False
    role: Role = Role.MX
    bare_newlines: BareNewlines = BareNewlines.REFUSE
    #: Seconds that a submission may ask us to hold a message (RFC 4865); 0: not at all.
    hold_limit: int = 0
    #: The least by-time with mode R (RFC 2852 §2), in seconds; 0: any.
    deliver_by_minimum: int = 0
    #: Who may use VRFY and EXPN, and whether this client is in a network that is trusted.
    vrfy: Audience = Audience.LOGGED_IN
    expn: Audience = Audience.LOGGED_IN
    trusted: bool = False
    #: A line for HELP, below the commands.
    help: str = ""
    #: Whether this client may tell us on whose behalf it connects (XCLIENT).
    xclient: bool = False
    #: Extensions to leave out, by keyword.
    without: frozenset[str] = frozenset()
    #: Whether AUTH is offered (under TLS only), and mail refused without it.
    submission: bool = attrs.field(init=False, eq=False, repr=False)
    #: What `times` say for each state.
    paces: Mapping[State, Pace] = attrs.field(init=False, eq=False, repr=False)

    @paces.default
    def _make_paces(self) -> Mapping[State, Pace]:
        return paces(self.times)

    #: See `extensions`: with the second in which they were made, or 0 where they don't tell the time.
    offers: dict[object, tuple[int, Offers]] = attrs.field(init=False, eq=False, repr=False, factory=dict)

    @submission.default
    def _is_submission(self) -> bool:
        return self.role is Role.SUBMISSION


@value
class Offers:
    """What stands in an answer to EHLO or LHLO behind its first line: each line with an LF before it, and their keywords."""

    text: str
    keywords: frozenset[str]


NO_OFFERS = Offers("", frozenset())


def extensions(
    settings: ServerSettings, *, tls: bool, now: float, mechanisms: Sequence[str] = (), expn: bool = False
) -> Offers:
    """The answer to EHLO or LHLO. `now` is Unix time, `mechanisms` those of AUTH; `expn`: EXPN is possible.

    It is made once for all sessions that are alike, and where it tells the time once a second.
    """
    second = int(now) if settings.submission and settings.hold_limit else 0
    key = (tls, expn, *mechanisms)  # a handful of them
    found = settings.offers.get(key)
    if found is None or found[0] != second:
        found = settings.offers[key] = second, _offers(settings, tls, second, mechanisms, expn)
    return found[1]


def _offers(settings: ServerSettings, tls: bool, now: int, mechanisms: Sequence[str], expn: bool) -> Offers:
    lines = [*_all(settings, tls, now, mechanisms), *(["EXPN"] if expn else [])]  # RFC 5321 §3.5.2
    kept = {line.partition(" ")[0]: line for line in lines}
    for keyword in settings.without:
        kept.pop(keyword, None)
    return Offers("".join(f"\n{line}" for line in kept.values()), frozenset(kept))


def _all(settings: ServerSettings, tls: bool, now: int, mechanisms: Sequence[str]) -> Iterator[str]:
    yield "PIPELINING"
    yield f"SIZE {settings.size_limit}"
    yield "8BITMIME"
    yield "SMTPUTF8"
    yield "CHUNKING"
    yield "BINARYMIME"
    yield "DSN"
    yield "ENHANCEDSTATUSCODES"
    yield "LIMITS " + " ".join(_limits(settings))
    yield f"DELIVERBY {settings.deliver_by_minimum or ''}".rstrip()  # RFC 2852 §2
    if settings.submission and settings.hold_limit:  # RFC 4865 §4.2: nowhere else
        latest = datetime.fromtimestamp(now + settings.hold_limit, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        yield f"FUTURERELEASE {settings.hold_limit} {latest}"
    if settings.submission:
        yield "MT-PRIORITY"
    if settings.tls_available and not tls:  # RFC 3207 §4.2: not again after the handshake
        yield "STARTTLS"
    if tls:
        yield "REQUIRETLS"  # RFC 8689 §2: only under TLS
    if settings.submission and tls:
        yield "AUTH " + " ".join(mechanisms)
    if settings.xclient:
        yield "XCLIENT NAME ADDR PORT PROTO HELO LOGIN"


def _limits(settings: ServerSettings) -> Iterator[str]:
    """RFC 9422 §4."""
    if settings.message_limit:
        yield f"MAILMAX={settings.message_limit}"
    yield f"RCPTMAX={settings.recipient_limit}"
