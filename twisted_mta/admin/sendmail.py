"""`mta sendmail`: the command that cron, PHP and other programs call to send mail.

It speaks SMTP to a listener of the running server, so its messages take the way that all others take, and any user of
the machine may call it. Mail for other domains needs the address of the machine in relay.networks.
"""

from __future__ import annotations

import argparse
import getpass
import os
import pwd
import sys
from collections.abc import Callable, Sequence

import attrs

from twisted_mta.admin.errors import (
    EX_DATAERR,
    EX_NOUSER,
    EX_OK,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EX_USAGE,
    AdminError,
)
from twisted_mta.admin.message import prepare, read_body
from twisted_mta.admin.paths import config_path
from twisted_mta.admin.smtp_client import Outcome, bridge, mx_listener, submit
from twisted_mta.config.loader import load
from twisted_mta.config.schema import Config
from twisted_mta.core.address import Address, AddressError

HELP = """\
usage: mta sendmail [FLAGS] [RECIPIENT...] < message

Reads a message and hands it to the running server. Line ends may be LF or CRLF; From, Date and Message-ID are added
if they are missing. A recipient without "@" belongs to the first local domain.

  -t          take the recipients from To, Cc and Bcc too, and remove Bcc
  -f ADDRESS  the sender, also for bounces (-r ADDRESS); "<>" for none. Default: the user who calls
  -F NAME     the name in a From that is added
  -i, -oi     a line with only a dot does not end the message
  -v          tell what the server answered
  -bm         send a message (the default)
  -bs         speak SMTP on standard input and output; lines may end with LF if the first one does
  -bp         list the queue, as mailq
  -bi         nothing, as newaliases: the server reads its alias files at every reload

Flags that other sendmails have (-B, -h, -L, -m, -N, -n, -O, -o, -R, -U, -V, -X, -q) are accepted and do nothing.
Exit codes: 0 sent; 64 wrong usage; 65 no message to be sent; 67 a recipient does not exist, 69 refused for
good (recipients that were not refused are sent to); 75 try again later (nothing was sent); 78 the configuration is wrong.
"""

#: Flags with a value that is here for nothing.
_IGNORED_WITH_VALUE = frozenset("BhLNORVXoCpd")
_IGNORED = frozenset("nmUGEes")


@attrs.define
class Flags:
    """The command line."""

    mode: str = "m"
    sender: str | None = None
    full_name: str = ""
    from_header: bool = False
    ignore_dots: bool = False
    verbose: bool = False
    recipients: list[str] = attrs.field(factory=list)


def main(options: argparse.Namespace, argv: Sequence[str], mta: Callable[[Sequence[str]], int]) -> int:
    """Run with the arguments behind "sendmail"; the result is the exit code. `mta` runs another command."""
    if "--help" in argv:
        print(HELP, end="")
        return EX_OK
    flags = parse_flags(argv)
    if flags.mode == "p":
        return mta([*(["--config", options.config] if options.config else []), "queue", "list"])
    if flags.mode == "i":
        return EX_OK
    config = load(config_path(options), check_files=False)
    if flags.mode == "s":
        return bridge(mx_listener(config), sys.stdin.fileno(), sys.stdout.fileno())
    return _send(config, flags)


def parse_flags(argv: Sequence[str]) -> Flags:
    """Read the classic flags; they may be clustered (-ti) and have their value attached (-fbob). Raises AdminError."""
    flags = Flags()
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            flags.recipients += words
            break
        if not word.startswith("-") or word == "-":
            flags.recipients.append(word)
            continue
        _flag_word(flags, word[1:], words)
    return flags


def _flag_word(flags: Flags, word: str, words: list[str]) -> None:
    """One word of flags without its hyphen; values may come from the following `words`."""

    def value(attached: str, letter: str) -> str:
        if not attached and not words:
            raise AdminError(f"sendmail: -{letter} needs a value", EX_USAGE)
        return attached or words.pop(0)

    for position, letter in enumerate(word):
        rest = word[position + 1 :]
        match letter:
            case "t":
                flags.from_header = True
            case "i":
                flags.ignore_dots = True
            case "v":
                flags.verbose = True
            case "f" | "r":
                flags.sender = value(rest, letter)
                return
            case "F":
                flags.full_name = value(rest, letter)
                return
            case "b":
                flags.mode = value(rest, letter)
                if flags.mode not in ("m", "s", "p", "i"):
                    raise AdminError(
                        f"sendmail: -b{flags.mode} is not known; -bm, -bs, -bp and -bi are", EX_USAGE
                    )
                return
            case "o" if rest:
                flags.ignore_dots |= rest == "i"
                return
            case "q":
                return  # "-q30m" has its value attached, "-q" alone has none
            case _ if letter in _IGNORED_WITH_VALUE:
                value(rest, letter)
                return
            case _ if letter in _IGNORED:
                continue
            case _:
                raise AdminError(f"sendmail: unknown flag -{letter}; see: mta sendmail --help", EX_USAGE)


def _send(config: Config, flags: Flags) -> int:
    domain = config.domains[0]
    given = [_address(recipient, domain, EX_NOUSER) for recipient in flags.recipients]
    login = _login()
    sender: Address | None = Address(login, domain)
    if flags.sender is not None:
        sender = None if flags.sender in ("", "<>") else _address(flags.sender, domain, EX_DATAERR)
    if not given and not flags.from_header:
        raise AdminError("sendmail: no recipient (name one, or take them from the header with -t)", EX_USAGE)
    body = read_body(sys.stdin.buffer, dots=not flags.ignore_dots, limit=config.limits.message_size)
    message = prepare(
        body,
        author=sender or Address(login, domain),
        full_name=flags.full_name or _gecos(login),
        from_header=flags.from_header,
        hostname=config.hostname,
    )
    found = [_address(text, domain, EX_DATAERR) for text in message.recipients]
    recipients = list({address.folded: address for address in [*given, *found]}.values())
    if not recipients:
        raise AdminError("sendmail: no recipient in To, Cc or Bcc", EX_DATAERR)
    outcome = submit(mx_listener(config), config.hostname, sender, recipients, message.data)
    if flags.verbose:
        for reply in outcome.replies:
            print(reply)
    return _tell(outcome)


def _tell(outcome: Outcome) -> int:
    for recipient, reply in outcome.refused:
        print(f"sendmail: {recipient}: {reply}", file=sys.stderr)
    if outcome.error:
        print(f"sendmail: {outcome.error}", file=sys.stderr)
        return EX_TEMPFAIL if outcome.temporary else EX_UNAVAILABLE
    if outcome.temporary:
        return EX_TEMPFAIL
    if outcome.refused:
        # RFC 3463 §3.2: X.1.Y is about the address; all else is about us and what we may do.
        unknown = any(reply[4:].startswith("5.1.") for _, reply in outcome.refused)
        return EX_NOUSER if unknown else EX_UNAVAILABLE
    return EX_OK


def _address(text: str, domain: str, status: int) -> Address:
    text = text.strip().removeprefix("<").removesuffix(">")
    try:
        return Address.parse(text if "@" in text else f"{text}@{domain}")
    except AddressError as error:
        raise AdminError(f"sendmail: {text!r} is no address: {error}", status) from None


def _login() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return getpass.getuser()


def _gecos(login: str) -> str:
    try:
        return pwd.getpwnam(login).pw_gecos.partition(",")[0]
    except KeyError:
        return ""
