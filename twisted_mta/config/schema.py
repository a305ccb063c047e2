"""The configuration as the program sees it: one frozen class a TOML table, each field a key with its default.

`twisted_mta.config.loader` fills these from a file; nothing here reads anything. Durations are seconds, sizes
octets, paths absolute (the loader resolves relative ones against the directory of the file).
`etc/mta.toml` explains each key to the administrator and a test holds that it names them all.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias, Target
from twisted_mta.core.forward import HeaderTest
from twisted_mta.core.tls_policy.decision import Require
from twisted_mta.core.virtual import Rule

Network = IPv4Network | IPv6Network

#: Below the data directory.
QUEUE = "queue"
SHARD = "queue-"
CONTROL = "control"
USAGE = "usage.sqlite"
RULES = "rules"
ANSWERS = "answers.sqlite"
CALLOUTS = "callouts.sqlite"
SRS_FILE = "srs-secret"
TLS = "tls.sqlite"


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


@attrs.frozen(kw_only=True)
class Listen:
    """[[listen]]: one listening socket. `endpoint` is a Twisted server endpoint string ("tcp:25:interface=127.0.0.1")."""

    role: Role
    endpoint: str
    #: Whether every connection begins with a PROXY header, and which networks these may come from.
    proxy: bool = False
    proxy_networks: tuple[Network, ...] = ()


@attrs.frozen(kw_only=True)
class Certificate:
    """[[tls.sni]]: PEM files for clients that ask for one of the names in the certificate."""

    certificate: Path
    key: Path


@attrs.frozen(kw_only=True)
class Tls:
    """[tls]: PEM files; without them STARTTLS is not offered, and nobody can log in."""

    certificate: Path | None = None
    key: Path | None = None
    #: The oldest version that is spoken: "1.2" or "1.3".
    minimum: str = "1.2"
    #: More certificates, each for the names in it; `certificate` is for all other clients.
    sni: tuple[Certificate, ...] = ()


@attrs.frozen(kw_only=True)
class Accounts:
    """[accounts]: who has a mailbox."""

    #: A Dovecot-compatible passwd-file.
    file: Path
    #: Maildir of an account; {user}, {local} and {domain} are replaced.
    maildir: str
    #: The character between a user's name and the detail in alice+news@; "" turns it off.
    separator: str = "+"
    #: Whether SCRAM is offered: "always", "never", or "auto", where all accounts can use it.
    scram: str = "auto"
    #: What each guess costs who got hold of the keys for SCRAM, and each login the client. For passwords set from now on.
    scram_iterations: int = 100_000
    #: Seconds for which a password that was right is not hashed again; 0: not at all.
    remember_logins: float = 300.0


@attrs.frozen(kw_only=True)
class MailingList:
    """[[list]]: a simple mailing list."""

    address: Address
    #: Member addresses as written.
    members: tuple[Address, ...]
    #: Who gets the bounces (mail to NAME-owner goes there).
    owner: Address
    #: For List-Id; the name part of it.
    description: str = ""
    #: Whether only members may post.
    members_only: bool = False
    #: Whether each member gets a copy with a sender that names the member.
    verp: bool = False


@attrs.frozen(kw_only=True)
class Domain:
    """[[domain]]: a domain about which more is to be said than that its mail ends here."""

    #: ".example.org" stands for all subdomains.
    name: str
    #: Where it is written: "mta.toml:12". No key.
    source: str = ""
    #: All its addresses are those of this local domain.
    alias_of: str = ""
    #: Mail for it is taken from everybody and goes on to its own servers.
    relay: bool = False
    #: For a relay: a file with the addresses that exist there. None: all are taken.
    recipients: Path | None = None
    #: For a relay: ask its servers whether an address exists before mail for it is taken.
    callout: bool = False
    #: aliases(5) files in which names alone are those of this domain.
    aliases: tuple[Path, ...] = ()
    #: What takes the mail that nobody else does.
    catch_all: tuple[Target, ...] = ()
    postmaster: Address | None = None
    #: As in [accounts]; None: that one.
    separator: str | None = None
    #: Octets; 0: as in [limits].
    message_size: int = 0

    @property
    def is_own(self) -> bool:
        """Whether it has users of its own."""
        return not (self.alias_of or self.relay)

    def covers(self, domain: str) -> bool:
        """Whether a domain is this one, or one of the subdomains that it stands for."""
        return domain.endswith(self.name) if self.name.startswith(".") else domain == self.name


@attrs.frozen(kw_only=True)
class Route:
    """A value of [relay.routes], and the smarthost. `mx` False: connect to `host` itself without an MX look-up."""

    host: str
    port: int = 25
    mx: bool = False
    #: Log in there (AUTH, under TLS only) as this user; "": don't.
    username: str = ""
    #: The file whose first line is the password. It is read when it is needed, and never logged.
    password_file: Path | None = None


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
class RelaySource:
    """[[relay.source]]: the address and the name under which the mail of some senders goes out."""

    #: Domains of senders; ".example.org" stands for all subdomains.
    senders: tuple[str, ...]
    #: As in [relay]; none: any.
    bind: tuple[str, ...] = ()
    #: For EHLO; "": the hostname.
    helo: str = ""


@attrs.frozen(kw_only=True)
class RelayTimeouts:
    """[relay.timeouts]: seconds to wait for other mail servers; RFC 5321 §4.5.3.2 asks for these at least."""

    greeting: float = 300.0
    #: The answer to EHLO, MAIL, RCPT and all commands that have none of their own.
    command: float = 300.0
    data: float = 120.0
    #: Each block of the message, until it is taken.
    block: float = 180.0
    final: float = 600.0


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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
    #: Seconds for which it is remembered what became of a message, from its arrival; 0: nothing is.
    history: float = 1_209_600.0
    #: Messages of which it is remembered at most, those in the queue not counted.
    history_limit: int = 1_000_000
    #: The last sessions of each message with each host whose transcript is kept; 0: none.
    transcripts: int = 3


@attrs.frozen(kw_only=True)
class Limits:
    """[limits]: what one client, message or session may cost."""

    message_size: int = 52428800
    recipients: int = 1000
    #: Wrong commands in one session until it is ended with 421.
    errors: int = 20
    #: Received fields that make a message a loop, RFC 5321 §6.3.
    received_headers: int = 50
    #: Connections at a time, at all listeners together: in all, and from one address.
    connections: int = 10000
    connections_per_address: int = 100
    #: ... and from one network: an IPv4 /24, an IPv6 /64.
    connections_per_network: int = 500
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


@attrs.frozen(kw_only=True)
class Commands:
    """[delivery.command]: programs that aliases name ("|program"). Off without a user and a directory."""

    #: Whom they run as, who is never root; and in which directory, which is their HOME.
    user: str = ""
    directory: Path | None = None
    #: Seconds until one is ended.
    timeout: float = 300.0
    #: Runs at a time.
    concurrency: int = 5
    #: Whether they are given to /bin/sh; otherwise they are split at spaces, with quotes in mind.
    shell: bool = False
    #: Their PATH.
    path: str = "/usr/local/bin:/usr/bin:/bin"


@attrs.frozen(kw_only=True)
class Delivery:
    """[delivery]: where mail may go besides mailboxes, lists and other hosts."""

    #: Directories below which aliases may name files ("/path") and Maildirs ("/path/").
    files: tuple[Path, ...] = ()
    command: Commands = Commands()


@attrs.frozen(kw_only=True)
class Handlers:
    """[handlers]: functions of an application that get mail (`twisted_mta.handlers`)."""

    #: Modules that are imported, and whose functions with @rcpt are used.
    modules: tuple[str, ...] = ()
    #: Directories in which modules are looked for besides those of Python.
    path: tuple[Path, ...] = ()
    #: Calls of one function at a time, and seconds for each, where @rcpt does not say.
    concurrency: int = 10
    timeout: float = 60.0


@attrs.frozen(kw_only=True)
class Checks:
    """[checks]: what strangers must be like: "off", "log" (tell what would be refused), or "require"."""

    #: The address has a name in the DNS that leads back to it.
    reverse_dns: str = "log"
    #: HELO and EHLO give a name or a literal, and not one of ours.
    helo: str = "log"


@attrs.frozen(kw_only=True)
class Rates:
    """[submission.domain], and the same keys of [submission]: what may be sent in an hour and in a day; 0: no limit."""

    messages_per_hour: int = 0
    recipients_per_hour: int = 0
    messages_per_day: int = 0
    recipients_per_day: int = 0


@attrs.frozen(kw_only=True)
class Grant:
    """[[submission.grant]]: addresses that an account may send as besides its own; "@example.org" is a whole domain."""

    account: Address
    addresses: tuple[str, ...]


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
class Forward:
    """[forward]: mail that an alias, or a user's own rule, sends on to another host."""

    #: Whether the envelope sender is rewritten, so that the mail passes SPF there.
    srs: bool = True
    #: The domain of rewritten senders, one of ours; "": the first.
    srs_domain: str = ""
    #: What they are signed with; None: a file below the data directory. The server makes it.
    srs_secret_file: Path | None = None
    #: Seconds for which bounces come back.
    srs_expire: float = 1_814_400.0
    #: Whether only bounces may be sent to them.
    srs_bounces_only: bool = True
    #: Header fields of mail that is not forwarded.
    not_if_header: tuple[HeaderTest, ...] = ()
    #: What is done with it: "keep" puts it in the mailbox of whoever forwards it, "refuse" takes none of it.
    instead: str = "keep"


@attrs.frozen(kw_only=True)
class UserRules:
    """[rules]: what users may decide about their own mail."""

    #: Where they write to; None: only the administrator changes rules.
    address: Address | None = None
    #: Addresses to forward to.
    forwards: int = 5
    #: Addresses besides that of the account.
    addresses: int = 0
    #: Characters of a vacation reply.
    text: int = 10_000


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
class Dns:
    """[dns]: the resolver. No servers: those of /etc/resolv.conf."""

    #: "192.0.2.53" or "192.0.2.53:5353" or "[2001:db8::53]:5353".
    servers: tuple[str, ...] = ()
    #: Seconds for one look-up with all its retries.
    timeout: float = 10.0
    #: Whether the servers validate DNSSEC, and the way to them is safe: DANE rests on that.
    validating: bool = False


@attrs.frozen(kw_only=True)
class TlsReports:
    """[tls_reports]: what other domains are told of their TLS (RFC 8460)."""

    #: Whether reports are sent.
    enabled: bool = False
    #: Whom questions go to, and what reports come from; None: the postmaster.
    contact: Address | None = None
    #: Who reports; "": the hostname.
    organization: str = ""


@attrs.frozen(kw_only=True)
class Config:
    """The whole file."""

    #: The file it came from.
    path: Path
    #: The name of this host in the greeting, EHLO, Received: and bounces.
    hostname: str
    #: Domains whose mail ends here.
    domains: tuple[str, ...]
    #: Where queue, mailbox indexes and the control socket live.
    data: Path
    #: Who gets mail to postmaster@ of each local domain and what nobody else can be told.
    postmaster: Address
    #: Run as this user after binding (only when started as root).
    user: str = ""
    group: str = ""
    #: Processes that share the work; 0: one for each processor.
    workers: int = 1
    #: Text after the host name in the greeting; "" says only "ESMTP".
    greeting: str = ""
    #: What HELP says below the list of commands, such as where to find a person.
    help: str = ""
    #: "plain" (lines for the journal) or "json".
    log_format: str = "plain"
    listen: tuple[Listen, ...]
    tls: Tls = Tls()
    accounts: Accounts
    #: aliases(5) files.
    aliases: tuple[Path, ...] = ()
    domain_blocks: tuple[Domain, ...] = ()
    #: [virtual]: addresses and patterns with what they lead to.
    virtual: tuple[Alias | Rule, ...] = ()
    lists: tuple[MailingList, ...] = ()
    relay: Relay = Relay()
    queue: Queue = Queue()
    limits: Limits = Limits()
    submission: Submission = Submission()
    forward: Forward = Forward()
    rules: UserRules = UserRules()
    checks: Checks = Checks()
    delivery: Delivery = Delivery()
    handlers: Handlers = Handlers()
    callout: Callout = Callout()
    dns: Dns = Dns()
    tls_reports: TlsReports = TlsReports()

    @property
    def own_domains(self) -> tuple[str, ...]:
        """The domains with users of their own, but for wildcards; the first one completes names."""
        blocks = (
            block.name for block in self.domain_blocks if block.is_own and not block.name.startswith(".")
        )
        return tuple(dict.fromkeys(name.lower() for name in (*self.domains, *blocks)))

    def has_users(self, domain: str) -> bool:
        """Whether a domain (lower-case) is one of those, or covered by a wildcard with users."""
        if domain in self.own_domains:
            return True
        found = self.block_of(domain)
        return found is not None and found.is_own

    def takes(self, domain: str) -> bool:
        """Whether mail for a domain (lower-case) is taken from everybody."""
        return domain in self.own_domains or self.block_of(domain) is not None

    def block_of(self, domain: str) -> Domain | None:
        """The [[domain]] for a domain: the nearest."""
        found = (block for block in self.domain_blocks if block.covers(domain))
        return max(found, key=lambda block: len(block.name), default=None)

    def separator_of(self, block: Domain) -> str:
        """What begins the detail in its addresses."""
        other = self.block_of(block.alias_of) if block.alias_of else block
        if other is None or other.separator is None:
            return self.accounts.separator
        return other.separator

    @property
    def address_files(self) -> tuple[Path, ...]:
        """The files that say where addresses lead to."""
        found = list(self.aliases)
        for block in self.domain_blocks:
            found += [*block.aliases, *((block.recipients,) if block.recipients else ())]
        return tuple(found)

    @property
    def queue_directory(self) -> Path:
        """Where the queue's files are."""
        return self.data / QUEUE

    @property
    def usage_file(self) -> Path:
        """What accounts sent of late."""
        return self.data / USAGE

    @property
    def rules_directory(self) -> Path:
        """Where the rules of users are."""
        return self.data / RULES

    @property
    def answers_file(self) -> Path:
        """Who got vacation replies."""
        return self.data / ANSWERS

    @property
    def srs_secret_file(self) -> Path:
        """What rewritten senders are signed with."""
        return self.forward.srs_secret_file or self.data / SRS_FILE

    @property
    def callouts_file(self) -> Path:
        """What callouts found."""
        return self.data / CALLOUTS

    @property
    def tls_file(self) -> Path:
        """What is known of others' TLS."""
        return self.data / TLS

    @property
    def control_socket(self) -> Path:
        """Where the running server listens for `mta`."""
        return self.data / CONTROL
