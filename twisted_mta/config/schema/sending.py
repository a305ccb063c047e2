"""Other mail hosts, the names that lead to them, and the queue for them. See the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from twisted_mta.config.schema.common import Network
from twisted_mta.core.address import Address
from twisted_mta.core.tls_policy.decision import Require
from twisted_mta.core.values import value


@value(kw_only=True)
class Route:
    """A value of [relay.routes], and the smarthost. `mx` False: connect to `host` itself without an MX look-up."""

    host: str
    port: int = 25
    mx: bool = False
    #: Log in there (AUTH, under TLS only) as this user; "": don't.
    username: str = ""
    #: The file whose first line is the password. It is read when it is needed, and never logged.
    password_file: Path | None = None


@value(kw_only=True)
class RelayDomain:
    """[[relay.domain]]: how mail goes to some destinations. None: as [relay] and [queue] say."""

    #: Domains of recipients, or hosts of [relay.routes] and the smarthost; ".example.org" stands for all subdomains.
    names: tuple[str, ...]
    concurrency: int | None = None
    rate: int | None = None
    max_messages: int | None = None
    max_recipients: int | None = None
    connect_timeout: float | None = None
    bind: tuple[str, ...] | None = None
    schedule: tuple[float, ...] | None = None
    expire: float | None = None
    #: What their TLS must be, whatever they publish themselves.
    require: Require | None = None
    #: For `require` "pkix": the hosts that are known to take their mail; "*.example.org" stands for one label.
    hosts: tuple[str, ...] | None = None


@value(kw_only=True)
class RelaySource:
    """[[relay.source]]: the address and the name under which the mail of some senders goes out."""

    #: Domains of senders; ".example.org" stands for all subdomains.
    senders: tuple[str, ...]
    #: As in [relay]; none: any.
    bind: tuple[str, ...] = ()
    #: For EHLO; "": the hostname.
    helo: str = ""


@value(kw_only=True)
class RelayTimeouts:
    """[relay.timeouts]: seconds to wait for other mail servers; RFC 5321 §4.5.3.2 asks for these at least."""

    greeting: float = 300.0
    #: The answer to EHLO, MAIL, RCPT and all commands that have none of their own.
    command: float = 300.0
    data: float = 120.0
    #: Each block of the message, until it is taken.
    block: float = 180.0
    final: float = 600.0


@value(kw_only=True)
class Relay:
    """[relay]: who may send through us besides logged-in users, and where everything goes."""

    #: Clients that may relay without a login.
    networks: tuple[Network, ...] = ()
    #: Filters and proxies that may tell by XCLIENT for which client they speak.
    xclient_networks: tuple[Network, ...] = ()
    #: Send all remote mail to this host; None: by MX.
    smarthost: Route | None = None
    #: Domain -> next hop. A key ".example.org" stands for all subdomains.
    routes: Mapping[str, Route] = attrs.field(factory=dict)
    #: The port at which other domains' mail servers are reached (for tests; it is 25 everywhere).
    port: int = 25
    #: Concurrent connections to one destination, at most.
    concurrency: int = 5
    #: Attempts in a minute to one destination, each with a message; 0: any number.
    rate: int = 0
    #: Messages over one connection.
    max_messages: int = 100
    #: Recipients in one transaction.
    max_recipients: int = 100
    #: Seconds an idle connection is kept for the next message.
    keep_open: float = 5.0
    #: What to do about eight-bit messages for hosts that take only seven: "convert", "bounce", or "send" them all the same.
    eightbit: str = "convert"
    #: Whether BDAT is used with hosts that offer CHUNKING.
    chunking: bool = True
    #: Seconds for a connection to one address; the next one of the same host is tried sooner.
    connect_timeout: float = 30.0
    timeouts: RelayTimeouts = RelayTimeouts()
    #: Which addresses of a host are used, the preferred ones first: "ipv4", "ipv6".
    families: tuple[str, ...] = ("ipv4", "ipv6")
    #: Local addresses to send from, one IPv4 and one IPv6 address at most; none: any.
    bind: tuple[str, ...] = ()
    #: Whether policies of other domains are obeyed: MTA-STS, and DANE as far as `Dns.validating` lets it be.
    mta_sts: bool = True
    dane: bool = True
    #: Addresses at which this server is reached though no interface has them (NAT, a load balancer).
    own_addresses: tuple[str, ...] = ()
    overrides: tuple[RelayDomain, ...] = ()
    sources: tuple[RelaySource, ...] = ()


@value(kw_only=True)
class Queue:
    """[queue]: how long and how often."""

    #: Seconds after each failed attempt until the next; the last one repeats.
    schedule: tuple[float, ...] = (1800.0, 1800.0, 3600.0, 3600.0, 7200.0, 14400.0)
    #: Seconds until a message that could not be delivered is bounced.
    expire: float = 432000.0
    #: Seconds until the sender is told once that a message is late; 0: never.
    warn_after: float = 14400.0
    #: What becomes of a notification that can't be delivered: it goes to the "postmaster", or "drop".
    double_bounces: str = "postmaster"
    #: Octets of the original message that a bounce quotes.
    bounce_quote: int = 10240
    #: Recipients worked on at once.
    active: int = 1000
    #: Whether mail for one mailbox here is delivered before its client is answered, and queued only where that fails.
    straight: bool = True
    #: Seconds for which it is remembered what became of a message, from its arrival; 0: nothing is.
    history: float = 1_209_600.0
    #: Messages of which it is remembered at most, those in the queue not counted.
    history_limit: int = 1_000_000
    #: The last sessions of each message with each host whose transcript is kept; 0: none.
    transcripts: int = 3


@value(kw_only=True)
class Dns:
    """[dns]: the resolver. No servers: those of /etc/resolv.conf."""

    #: "192.0.2.53" or "192.0.2.53:5353" or "[2001:db8::53]:5353".
    servers: tuple[str, ...] = ()
    #: Seconds for one look-up with all its retries.
    timeout: float = 10.0
    #: Whether the servers validate DNSSEC, and the way to them is safe: DANE rests on that.
    validating: bool = False


@value(kw_only=True)
class TlsReports:
    """[tls_reports]: what other domains are told of their TLS (RFC 8460)."""

    #: Whether reports are sent.
    enabled: bool = False
    #: Whom questions go to, and what reports come from; None: the postmaster.
    contact: Address | None = None
    #: Who reports; "": the hostname.
    organization: str = ""
