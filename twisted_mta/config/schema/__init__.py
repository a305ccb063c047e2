"""The configuration as the program sees it: one frozen class a TOML table, each field a key with its default.

`twisted_mta.config.loader` fills these from a file; nothing here reads anything. Durations are seconds, sizes
octets, paths absolute (the loader resolves relative ones against the directory of the file).
`etc/mta.toml` explains each key to the administrator and a test holds that it names them all.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from twisted_mta.config.schema.addresses import (
    Accounts,
    Commands,
    Delivery,
    Domain,
    Forward,
    Handlers,
    MailingList,
    UserRules,
)
from twisted_mta.config.schema.common import Network
from twisted_mta.config.schema.receiving import (
    Callout,
    Certificate,
    Checks,
    Grant,
    Limits,
    Listen,
    Rates,
    Role,
    Submission,
    Tls,
)
from twisted_mta.config.schema.sending import (
    Dns,
    Queue,
    Relay,
    RelayDomain,
    RelaySource,
    RelayTimeouts,
    Route,
    TlsReports,
)
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias
from twisted_mta.core.values import value
from twisted_mta.core.virtual import Rule

__all__ = [
    "ANSWERS",
    "CALLOUTS",
    "CONTROL",
    "QUEUE",
    "RULES",
    "SHARD",
    "SRS_FILE",
    "TLS",
    "USAGE",
    "Accounts",
    "Callout",
    "Certificate",
    "Checks",
    "Commands",
    "Config",
    "Delivery",
    "Dns",
    "Domain",
    "Forward",
    "Grant",
    "Handlers",
    "Limits",
    "Listen",
    "MailingList",
    "Network",
    "Queue",
    "Rates",
    "Relay",
    "RelayDomain",
    "RelaySource",
    "RelayTimeouts",
    "Role",
    "Route",
    "Submission",
    "Tls",
    "TlsReports",
    "UserRules",
]

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


@value(kw_only=True)
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
    tls: Tls = attrs.field(factory=Tls)
    accounts: Accounts
    #: aliases(5) files.
    aliases: tuple[Path, ...] = ()
    domain_blocks: tuple[Domain, ...] = ()
    #: [virtual]: addresses and patterns with what they lead to.
    virtual: tuple[Alias | Rule, ...] = ()
    lists: tuple[MailingList, ...] = ()
    relay: Relay = attrs.field(factory=Relay)
    queue: Queue = attrs.field(factory=Queue)
    limits: Limits = attrs.field(factory=Limits)
    submission: Submission = attrs.field(factory=Submission)
    forward: Forward = attrs.field(factory=Forward)
    rules: UserRules = attrs.field(factory=UserRules)
    checks: Checks = attrs.field(factory=Checks)
    delivery: Delivery = attrs.field(factory=Delivery)
    handlers: Handlers = attrs.field(factory=Handlers)
    callout: Callout = attrs.field(factory=Callout)
    dns: Dns = attrs.field(factory=Dns)
    tls_reports: TlsReports = attrs.field(factory=TlsReports)

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
