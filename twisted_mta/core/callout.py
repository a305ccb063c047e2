"""What a domain's own servers say about one of its addresses, and for how long that counts.

A relay that is asked to take mail for an address may ask the servers that it would go to, by MAIL and RCPT without a message
(a callout), and so refuse what they would refuse: RFC 5321 §3.6.2 leaves that to the relay.
"""

from __future__ import annotations

import enum

from twisted_mta.core.address import Address
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value

#: Characters of what another host said that are told to a client, and remembered.
MAX_TEXT = 200


class Verdict(enum.StrEnum):
    """What is known of an address."""

    EXISTS = "exists"
    UNKNOWN = "does not exist"
    #: Nobody said anything about the address itself.
    UNANSWERED = "no answer"


@value
class Lifetimes:
    """For how many seconds answers count."""

    #: A yes, and a no, until the host is asked again.
    known: float = 86400.0
    unknown: float = 3600.0
    #: A yes while the host can't be asked: that is when a backup MX is needed.
    remember: float = 2_592_000.0


@value
class Word:
    """What a host said about an address, when (Unix seconds), in its words."""

    exists: bool
    time: float
    #: The name and the address of the host, and its reply.
    remote: str
    text: str

    def is_fresh(self, now: float, lifetimes: Lifetimes) -> bool:
        """Whether there is no need to ask again."""
        return now - self.time < (lifetimes.known if self.exists else lifetimes.unknown)

    def is_good(self, now: float, lifetimes: Lifetimes) -> bool:
        """Whether it is better than no answer."""
        return self.exists and now - self.time < max(lifetimes.remember, lifetimes.known)


def verdict_of(reply: Reply, *, sender_refused: bool = False) -> Verdict:
    """What the last reply of a callout says about the address.

    A refusal of the null sender, of us (RFC 3463 §3.8: X.7, policy) or of the route (§3.5: X.4) says nothing of it, and
    neither does one for now.
    """
    if sender_refused or reply.transient:
        return Verdict.UNANSWERED
    if reply.positive:
        return Verdict.EXISTS
    subject = reply.enhanced.split(".")[1] if reply.enhanced.count(".") == 2 else ""
    # RFC 3463 §3.2, §3.3: X.1 is about the address, X.2 about the mailbox.
    return Verdict.UNKNOWN if subject in ("", "0", "1", "2") else Verdict.UNANSWERED


def refusal(address: Address, remote: str, text: str) -> Reply:
    """To the client, where a host said no."""
    said = f": {_short(text)}" if text else ""
    return Reply(550, "5.1.1", f"{address} does not exist, says {remote}{said}")


def no_answer(address: Address, why: str) -> Reply:
    """To the client, where nobody says anything."""
    return Reply(
        450, "4.4.1", f"Can't find out for now whether {address} exists, try again later: {_short(why)}"
    )


def _short(text: str) -> str:
    """On one line, and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 3] + "..."
