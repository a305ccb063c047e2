"""Who is here, where addresses lead, and what is done with mail that ends here. See the package."""

from __future__ import annotations

from pathlib import Path

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Target
from twisted_mta.core.forward import HeaderTest
from twisted_mta.core.values import value


@value(kw_only=True)
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
    #: Cyrus SASL, with which mbsync, Postfix and others log in, refuses more than 65536.
    scram_iterations: int = 65_536
    #: Seconds for which a password that was right is not hashed again; 0: not at all.
    remember_logins: float = 300.0


@value(kw_only=True)
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


@value(kw_only=True)
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


@value(kw_only=True)
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


@value(kw_only=True)
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


@value(kw_only=True)
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


@value(kw_only=True)
class Delivery:
    """[delivery]: where mail may go besides mailboxes, lists and other hosts."""

    #: Directories below which aliases may name files ("/path") and Maildirs ("/path/").
    files: tuple[Path, ...] = ()
    command: Commands = Commands()


@value(kw_only=True)
class Handlers:
    """[handlers]: functions of an application that get mail (`twisted_mta.handlers`)."""

    #: Modules that are imported, and whose functions with @rcpt are used.
    modules: tuple[str, ...] = ()
    #: Directories in which modules are looked for besides those of Python.
    path: tuple[Path, ...] = ()
    #: Calls of one function at a time, and seconds for each, where @rcpt does not say.
    concurrency: int = 10
    timeout: float = 60.0
