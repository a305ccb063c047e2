"""Listeners, and what they take. See the package."""

from __future__ import annotations

import enum
from pathlib import Path

from twisted_mta.config.schema.common import Network
from twisted_mta.core.address import Address
from twisted_mta.core.values import value


class Role(enum.StrEnum):
    """What a listener speaks, and under which rules."""

    MX = "mx"
    SUBMISSION = "submission"
    SUBMISSIONS = "submissions"
    LMTP = "lmtp"
    IMAP = "imap"
    IMAPS = "imaps"
    POP3 = "pop3"
    POP3S = "pop3s"

    @property
    def implicit_tls(self) -> bool:
        """Whether TLS begins with the first octet (RFC 8314)."""
        return self in (Role.SUBMISSIONS, Role.IMAPS, Role.POP3S)

    @property
    def service(self) -> str:
        """What its clients want, however TLS begins: "imap" for imaps too."""
        return self.value.removesuffix("s") if self.implicit_tls else self.value


@value(kw_only=True)
class Listen:
    """[[listen]]: one listening socket. `endpoint` is a Twisted server endpoint string ("tcp:25:interface=127.0.0.1")."""

    role: Role
    endpoint: str
    #: Whether every connection begins with a PROXY header, and which networks these may come from.
    proxy: bool = False
    proxy_networks: tuple[Network, ...] = ()


@value(kw_only=True)
class Certificate:
    """[[tls.sni]]: PEM files for clients that ask for one of the names in the certificate."""

    certificate: Path
    key: Path


@value(kw_only=True)
class Tls:
    """[tls]: PEM files; without them STARTTLS is not offered, and nobody can log in."""

    certificate: Path | None = None
    key: Path | None = None
    #: The oldest version that is spoken: "1.2" or "1.3".
    minimum: str = "1.2"
    #: More certificates, each for the names in it; `certificate` is for all other clients.
    sni: tuple[Certificate, ...] = ()


@value(kw_only=True)
class Limits:
    """[limits]: what one client, message or session may cost."""

    message_size: int = 52428800
    recipients: int = 1000
    #: Messages in one SMTP session; 0: any number.
    messages: int = 0
    #: Wrong commands in one session until it is ended with 421.
    errors: int = 20
    #: The same for commands of SMTP that bring no message forward, in a row.
    idle_commands: int = 200
    #: Recipients of a stranger refused for good in one session until it is ended with 421; 0: any number.
    refused_recipients: int = 100
    #: Received fields that make a message a loop, RFC 5321 §6.3.
    received_headers: int = 50
    #: Connections at a time, at all listeners together: in all, and from one address.
    connections: int = 10000
    connections_per_address: int = 100
    #: ... and from one network: an IPv4 /24, an IPv6 /64.
    connections_per_network: int = 500
    #: Percent of `connections` that each service (`Role.service`) with a listener is sure of.
    connections_share: int = 10
    #: Clients that may have any number of connections, up to `connections`, as those have that may relay.
    exempt_networks: tuple[Network, ...] = ()
    #: New connections in a minute from one IPv4 address or IPv6 /64; 0: any number.
    connection_rate: int = 0
    #: Seconds that a client of an mx listener waits for the greeting; one that speaks before is refused. 0: off.
    greeting_delay: float = 0.0
    #: Failed logins from one address (IPv6: /64) until it is refused for a quarter of an hour.
    login_failures: int = 30
    #: Seconds for the next command of SMTP (RFC 5321 §4.5.3.2.7 asks for 5 minutes), ...
    smtp_timeout: float = 300.0
    #: ... between two octets of a message, and for all of one, however busy the client is (IMAP's APPEND too).
    data_timeout: float = 300.0
    message_time: float = 3600.0
    #: For the TLS handshake; for a command of POP3 or IMAP before the login, and the whole dialogue of AUTH.
    handshake_timeout: float = 60.0
    login_timeout: float = 60.0
    #: For a command of POP3 or IMAP after the login.
    pop3_timeout: float = 600.0
    imap_timeout: float = 1800.0
    #: What becomes of a message with a CR or LF that stands alone: "refuse" or "normalise".
    bare_newlines: str = "refuse"
    #: Who may use VRFY and EXPN: "nobody", "logged-in", "trusted" (those, and relay.networks), "anyone".
    vrfy: str = "logged-in"
    expn: str = "logged-in"
    #: The shortest time in seconds after which a message may be asked to come back undelivered (RFC 2852); 0: any.
    deliver_by_minimum: float = 0.0
    #: Seconds for which those who submit may have a message held back (RFC 4865); 0: not at all.
    hold: float = 2592000.0
    #: Free octets on the spool's disk below which mail is refused with 452.
    disk_reserve: int = 10485760
    #: Octets of messages on their way in that are in memory, all together; what is more goes to the disk sooner.
    memory: int = 67108864


@value(kw_only=True)
class Checks:
    """[checks]: what strangers must be like: "off", "log" (tell what would be refused), or "require"."""

    #: The address has a name in the DNS that leads back to it.
    reverse_dns: str = "log"
    #: HELO and EHLO give a name or a literal, and not one of ours.
    helo: str = "log"


@value(kw_only=True)
class Rates:
    """[submission.domain], and the same keys of [submission]: what may be sent in an hour and in a day; 0: no limit."""

    messages_per_hour: int = 0
    recipients_per_hour: int = 0
    messages_per_day: int = 0
    recipients_per_day: int = 0


@value(kw_only=True)
class Grant:
    """[[submission.grant]]: addresses that an account may send as besides its own; "@example.org" is a whole domain."""

    account: Address
    addresses: tuple[str, ...]


@value(kw_only=True)
class Submission:
    """[submission]: what users who log in may send.

    The rates are those of one account. A person stays far below them, but a stolen password is found out before many
    have got spam from it, and before this host is on the block lists.
    """

    #: Whether a login may send as its own addresses only.
    check_sender: bool = True
    messages_per_hour: int = 100
    recipients_per_hour: int = 300
    messages_per_day: int = 500
    recipients_per_day: int = 1000
    #: Of all accounts of one domain together.
    domain: Rates = Rates()
    grants: tuple[Grant, ...] = ()

    @property
    def rates(self) -> Rates:
        """Those of one account."""
        return Rates(
            messages_per_hour=self.messages_per_hour,
            recipients_per_hour=self.recipients_per_hour,
            messages_per_day=self.messages_per_day,
            recipients_per_day=self.recipients_per_day,
        )


@value(kw_only=True)
class Callout:
    """[callout]: what the servers of relay domains are asked, and for how long their answers count."""

    #: Seconds until they are asked again about an address that exists, and about one that does not.
    known: float = 86400.0
    unknown: float = 3600.0
    #: Seconds for which one that existed is taken while they can't be asked.
    remember: float = 2_592_000.0
    #: Seconds that a client waits for the answer.
    timeout: float = 20.0
    #: What becomes of mail for others then: "defer" or "accept".
    unanswered: str = "defer"
