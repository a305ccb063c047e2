"""Who exists, and who says to be whom."""

from __future__ import annotations

from collections.abc import Awaitable, Container, Sequence

from zope.interface import Interface

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias, Target
from twisted_mta.core.domains import Domain
from twisted_mta.core.forward import Forwarding
from twisted_mta.core.lists import MailingList
from twisted_mta.core.rules import Rules
from twisted_mta.core.sasl import Claim, Secret
from twisted_mta.core.srs import SrsError, Ticket
from twisted_mta.core.values import value


@value
class Account:
    """One user with a mailbox. `name` is the login and the primary address ("alice@example.test")."""

    name: str
    #: Where the Maildir lies, absolute.
    maildir: str


class IDirectory(Interface):
    """Who exists here: a snapshot in memory, replaced whole on reload. Pure look-ups, no I/O.

    It says what is written where; what follows from that (the order of look-ups, chains, loops) is
    `twisted_mta.core.expand`. Addresses have a domain (not the bare ``postmaster``) and ignore case.
    """

    def snapshot() -> IDirectory:
        """The directory as it is now, for several look-ups that belong together."""

    def domain(name: str) -> Domain | None:
        """What holds in a domain (lower-case, or a literal in brackets) that we take mail for; None for all others."""

    def is_local(domain: str) -> bool:
        """Whether mail for this domain ends here."""

    def first_domain() -> str:
        """The local domain that completes names without one."""

    def postmaster() -> Address:
        """Who gets the mail for postmaster in every local domain."""

    def account(address: Address) -> Account | None:
        """The account whose mailbox this address is: exact, or without the +detail of its local part."""

    def without_detail(address: Address) -> Address | None:
        """The address without its +detail; None if it has none."""

    def alias(address: Address) -> Alias | None:
        """The alias of exactly this name: of the full address, else of the local part in any domain."""

    def pattern(address: Address) -> Alias | None:
        """The alias that an address is by the first pattern that matches it, of those of its domain."""

    def catch_all(domain: str) -> Alias | None:
        """The alias for what nobody else in the domain takes."""

    def include(path: str) -> Sequence[Target]:
        """The targets in an ``:include:`` file, by the path in the `Include`; none if it could not be read."""

    def mailing_list(address: Address) -> MailingList | None:
        """The list whose posting address this is."""

    def list_owner(address: Address) -> MailingList | None:
        """The list whose -owner, -bounces or -request address this is, or whose -bounces+MEMBER."""

    def handler(address: Address) -> str:
        """The name of the application's handler for this address; "" if there is none."""

    def rules(address: Address) -> Rules | None:
        """What the user of an account has decided about its mail; None where nothing, or there is no such account."""

    def additional(address: Address) -> Address | None:
        """The account whose user has given itself this address."""

    def takes_rules(address: Address) -> bool:
        """Whether users change their rules by mail to this address."""

    def returns(address: Address) -> Address | Ticket | SrsError | None:
        """Where bounces to an address go that is a rewritten sender of ours: to the old one, or to who sent a certain
        message; or why they go nowhere. None for any other address."""

    def is_mailbox(address: Address) -> bool:
        """Whether mail for an address goes into the mailbox of that very account and nowhere else: see
        `twisted_mta.core.expand.leads_to_mailbox`."""

    def forwarding() -> Forwarding:
        """What mail gets that is forwarded."""

    def posters(address: Address) -> Container[str]:
        """The folded addresses that count as members of the list with that posting address: as the list has them, and
        those that they lead to. For `twisted_mta.core.lists.refuse_sender`."""


class AuthenticationUnavailable(Exception):
    """Passwords can't be checked for now (too many wait, the accounts can't be read): SMTP 454 4.7.0, IMAP NO
    [UNAVAILABLE], POP3 -ERR [SYS/TEMP]. The text is fit for the client."""


@value(kw_only=True)
class Client:
    """Who wants to log in: for limits and logs, and for app passwords that are good for one service only."""

    #: "smtp", "imap" or "pop3".
    service: str
    #: An IP address.
    address: str
    session_id: str = ""


class IAuthenticator(Interface):
    """Checks passwords."""

    def authenticate(claim: Claim, client: Client) -> Awaitable[Account | None]:
        """The account if the claim is right, else None: always for a Proof that is not.

        Takes as long for an unknown login as for a wrong password, and longer for clients that were wrong lately.
        Failures are logged here. Raises AuthenticationUnavailable.
        """

    def secret(login: str, client: Client) -> Awaitable[Secret]:
        """What is stored of a login for SCRAM. For one that has nothing it is made up, always the same, and
        authenticate then gives None. Raises AuthenticationUnavailable."""

    def offers_scram() -> bool:
        """Whether SCRAM is to be offered."""
