"""Reception: decides about one peer's mail and puts what is accepted into the queue.

The way of a message through here: `Reception.mail` and `.rcpt` ask the policy checks; `.message` opens an
`Incoming`, which streams the body into the queue's store; `Incoming.finish` shows the header to the checks, expands
the recipients, and answers 250 once the queue says that everything is on disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import attrs
from zope.interface import implementer

from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.expand import Destination, expand, resolves
from twisted_mta.core.queue import Transport
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Claim, Secret
from twisted_mta.interfaces import Account, Client, IAuthenticator, IMessageSink, IReception, Peer, StoreFull
from twisted_mta.service.binary import BinaryIncoming
from twisted_mta.service.incoming import FULL, Incoming, Intake
from twisted_mta.service.rules import Rules, Verdict, judge, refused
from twisted_mta.store.threads import InlineWorkers, Workers

#: Addresses that EXPN shows.
MAX_EXPANDED = 500

_SENDER_OK = Reply(250, "2.1.0", "Sender OK")
_RECIPIENT_OK = Reply(250, "2.1.5", "Recipient OK")


@implementer(IReception)
class Reception:
    """The decisions for all SMTP listeners. `workers` convert binary messages."""

    def __init__(
        self,
        rules: Rules,
        intake: Intake,
        authenticator: IAuthenticator,
        workers: Workers | InlineWorkers | None = None,
    ) -> None:
        #: May be replaced at any time; messages under way keep what they began with.
        self.rules = rules
        self.intake = intake
        self._directory = intake.directory
        self._authenticator = authenticator
        self._workers = workers or InlineWorkers()

    def connected(self, peer: Peer) -> Verdict:
        """See IReception."""
        return judge(self.rules.at_connect, None, peer)

    def helo(self, peer: Peer) -> Verdict:
        """See IReception."""
        return judge(self.rules.at_helo, None, peer)

    def mail(self, peer: Peer, envelope: Envelope) -> Verdict:
        """See IReception."""
        try:
            self.intake.queue.check_room(envelope.declared_size)
        except StoreFull:
            return refused(peer, FULL)  # RFC 1870 §6.1: before the octets are sent for nothing
        return judge(self.rules.at_mail, _SENDER_OK, peer, envelope)

    def rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Verdict:
        """See IReception."""
        return judge(self.rules.at_rcpt, _RECIPIENT_OK, peer, envelope, recipient)

    def verify(self, peer: Peer, argument: str) -> Reply:
        """See IReception."""
        try:
            address = self._named(argument)
        except AddressError as error:
            return Reply(553, "5.1.3", f"Bad address: {error}")
        problem = resolves(address, self._directory)
        return Reply(250, "2.1.5", f"<{address}>") if problem is None else problem.reply

    def expand(self, peer: Peer, argument: str) -> Reply:
        """See IReception: the members of a list or an alias."""
        try:
            address = self._named(argument)
        except AddressError as error:
            return Reply(553, "5.1.3", f"Bad address: {error}")
        # Where a user has mail sent on to is nobody's business.
        places = expand(address, self._directory, rules=False).recipients
        if not places:
            return Reply(550, "5.1.1", f"There is no list or user {address} here")
        shown = dict.fromkeys(member for place in places for member in self._behind(place))
        return Reply(250, "2.1.5", "\n".join(f"<{member}>" for member in list(shown)[:MAX_EXPANDED]))

    def _behind(self, place: Destination) -> Sequence[Address]:
        """RFC 5321 §3.5.1: of a mailing list its members, as they are written in it."""
        found = self._directory.mailing_list(place.address) if place.transport is Transport.LIST else None
        return (found.members if found is not None else ()) or (place.address,)

    def _named(self, argument: str) -> Address:
        """The address that VRFY or EXPN asks about; a bare name is one of ours (RFC 5321 §3.5.1)."""
        text = argument.strip("<> ")
        return Address.parse(text if "@" in text else f"{text}@{self._directory.first_domain()}")

    def authenticate(self, peer: Peer, claim: Claim) -> Awaitable[Account | None]:
        """See IReception."""
        return self._authenticator.authenticate(claim, _who(peer))

    def account(self, login: str) -> Account | None:
        """See IReception."""
        try:
            address = self._named(login)
        except AddressError:
            return None
        account = self._directory.account(address)
        # A login is the whole name: without a detail.
        return account if account is not None and account.name.casefold() == address.folded else None

    def secret(self, peer: Peer, login: str) -> Awaitable[Secret]:
        """See IReception."""
        return self._authenticator.secret(login, _who(peer))

    def message(self, peer: Peer, envelope: Envelope) -> IMessageSink:
        """See IReception."""
        if envelope.body == "BINARYMIME":
            text = Incoming(self.intake, self.rules, peer, attrs.evolve(envelope, body="8BITMIME"))
            return BinaryIncoming(text, self.intake.room, self._workers)
        return Incoming(self.intake, self.rules, peer, envelope)


def _who(peer: Peer) -> Client:
    return Client(service="smtp", address=peer.address, session_id=peer.session_id)
