"""The sender rewriting scheme: an envelope sender of our own for mail that is passed on, from which the old one can be told.

Whoever forwards mail under its old sender fails the SPF check of the next host, since our host is none of the sender's. So
the sender becomes one in a domain of ours. A bounce comes back to that, and goes on to where the old one leads. There is no
RFC for it; what is written here is what everybody does:

    SRS0=HHHHHH=TT=example.org=bob@ours.example           bob@example.org, rewritten here
    SRS1=HHHHHH=first.example==HHHH=TT=example.org=bob@ours.example

The second is the address SRS0=HHHH=TT=example.org=bob@first.example, rewritten there before it came here: it does not grow with
each host that forwards it, and a bounce goes straight to the first one, which alone knows whether what stands behind is its
own. Between SRS0 or SRS1 and the rest others may have "+" or "-" in place of the first "=".

TT is the day, as base32, modulo 1024; HHHHHH a keyed digest of the rest, so that nobody can have us send what he likes wherever
he likes. Both are base32, for some hosts change the case of local parts; neither they nor the digest heed it.

A local part has 64 octets at most (RFC 5321 §4.5.3.1.1). What would be longer has a *ticket* instead, the queue id of the
message, whose sender the queue's history knows:

    SRS0=HHHHHH=TT==GBLWW6SWG5IWKMDBGE@ours.example
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence

import attrs

from twisted_mta.core.address import MAX_LOCAL_PART, Address, AddressError, parse_domain
from twisted_mta.core.values import value

DAY = 86400.0
#: Characters of the digest: 30 bits, to be guessed with one RCPT each.
_DIGEST = 6
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
#: Days until the time begins anew, two characters.
_ROUND = len(_ALPHABET) ** 2
#: SRS1 only where all that must be is there: else it is a name like any other, and can be rewritten by SRS0.
_REWRITTEN = re.compile(r"SRS(?:(0)([=+-])|(1)[=+-](?=[^=]*=[^=]+=[=+-]))", re.I)
#: The longest time for which an address may be good: half a round, or old would look new.
MAX_EXPIRE = _ROUND // 2 * DAY
#: Octets of a secret.
MIN_SECRET = 16


class SrsError(Exception):
    """The address is not, or no longer, one that we made; the text says why, fit for an SMTP reply."""


@value
class Ticket:
    """What stands for a sender that is too long: the queue id of the message."""

    queue_id: str


@value(kw_only=True)
class Srs:
    """Rewrites, and tells the old from the new."""

    #: The domain of the addresses, one of ours.
    domain: str
    #: The first makes digests, any is good for one.
    secrets: Sequence[bytes] = attrs.field(repr=False)
    #: Seconds for which an address is good, whole days at least.
    expire: float

    def rewrite(self, sender: Address, now: float, queue_id: str = "") -> Address:
        """The sender for a copy that is passed on at `now` (Unix seconds).

        What would be too long stays as it is without a `queue_id`: no bounce could come back to it.
        """
        made = self._rewrite(sender, now)
        if len(made.local.encode("utf-8", "surrogateescape")) <= MAX_LOCAL_PART:
            return made
        return self._signed("0", f"{_stamp(now)}=", f"={_fold(queue_id)}") if queue_id else sender

    def _rewrite(self, sender: Address, now: float) -> Address:
        match = _REWRITTEN.match(sender.local)
        if match is None:
            return self._signed("0", f"{_stamp(now)}=", f"{sender.domain}={sender.local}")
        rest = sender.local[match.end() :]
        if match[1]:
            return self._signed("1", f"{sender.domain}=", match[2] + rest)
        # Somebody rewrote the work of a third: his part in it is left out.
        _, _, body = rest.partition("=")
        first, _, tail = body.partition("=")
        return self._signed("1", f"{first}=", tail)

    def _signed(self, kind: str, head: str, tail: str) -> Address:
        digest = _digest(self.secrets[0], kind, head + tail)
        return Address(f"SRS{kind}={digest}={head}{tail}", self.domain)

    def claims(self, address: Address) -> bool:
        """Whether an address pretends to be one that we made."""
        return address.domain == self.domain and _REWRITTEN.match(address.local) is not None

    def reverse(self, address: Address, now: float) -> Address | Ticket:
        """The sender behind an address that `claims` is true of. Raises SrsError."""
        match = _REWRITTEN.match(address.local)
        if match is None:
            raise SrsError("it is no rewritten address")
        digest, _, signed = address.local[match.end() :].partition("=")
        kind = match[1] or match[3]
        good = [_digest(secret, kind, signed) for secret in self.secrets]
        given = digest.lower().encode("utf-8", "surrogateescape")
        # Each is compared, in constant time: how long it takes tells nothing of any.
        if not any([hmac.compare_digest(one.lower().encode(), given) for one in good]):  # noqa: C419
            raise SrsError("the rewritten address is not one that was made here")
        head, _, tail = signed.partition("=")
        if kind == "1":
            return _address(f"SRS0{tail}", head)
        if self._age(head, now) > self.expire:
            raise SrsError("the rewritten address has expired, there is nothing to bounce any more")
        domain, _, local = tail.partition("=")
        return _address(local, domain) if domain else Ticket(_unfold(local))

    def _age(self, stamp: str, now: float) -> float:
        """Seconds since the beginning of the day that a stamp names, the last such one."""
        high, low = (_ALPHABET.index(letter) for letter in stamp.lower())
        day = int(now // DAY)
        return (day - (high * len(_ALPHABET) + low)) % _ROUND * DAY


def _stamp(now: float) -> str:
    high, low = divmod(int(now // DAY) % _ROUND, len(_ALPHABET))
    return (_ALPHABET[high] + _ALPHABET[low]).upper()


def _digest(secret: bytes, kind: str, text: str) -> str:
    data = f"{kind}{text}".lower().encode("utf-8", "surrogateescape")
    return base64.b32encode(hmac.digest(secret, data, hashlib.sha256)).decode("ascii")[:_DIGEST]


def _fold(queue_id: str) -> str:
    """A queue id, in which case matters, as text in which it does not."""
    return base64.b32encode(queue_id.encode("ascii")).decode("ascii").rstrip("=")


def _unfold(text: str) -> str:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8)).decode("ascii")


def _address(local: str, domain: str) -> Address:
    """Raises SrsError. The digest says that we put it in so; but what came with a sender need not be sane."""
    try:
        return Address(local, parse_domain(domain))
    except AddressError as error:
        raise SrsError(f"there is no address in it: {error}") from None


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """One secret a line, the first for new addresses; empty lines and those that begin with "#" are passed over.

    Raises ValueError, with a text that does not quote the secrets.
    """
    lines = [line.strip() for line in text.splitlines()]
    secrets = [line.encode("utf-8", "surrogateescape") for line in lines if line and not line.startswith("#")]
    if not secrets:
        raise ValueError("there is no secret in it")
    if any(len(secret) < MIN_SECRET for secret in secrets):
        raise ValueError(f"a secret has fewer than {MIN_SECRET} characters")
    return tuple(secrets)
