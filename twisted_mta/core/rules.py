"""What users decide about their own mail: forwards, a vacation reply, more addresses. One syntax, for the file in which the
rules of an account are kept and for the mail by which its user changes them:

    forward: bob@example.org, carol@example.net, keep
    addresses: sales@example.test
    vacation-start: 2026-12-20
    vacation-end: 2027-01-03
    vacation-days: 7
    vacation-from: Alice Smith <sales@example.test>
    vacation-subject: On holiday
    vacation: I am away.
    Everything from here to the end is the text, or to a line of "--".

`keep`: a copy stays in the mailbox. "off" in place of a value takes the rule away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date

import attrs

from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.values import value

#: Characters of one line, apart from those of the reply's text.
MAX_LINE = 1000
#: Characters of a name or a subject: with the name of its field one line of a header (RFC 5322 §2.1.1).
MAX_WORDS = 200
#: The most days between two replies to one sender.
MAX_DAYS = 90
#: Names that users can't give themselves: who gets their mail is believed to run the domain, and is given certificates for
#: it. RFC 2142 §4, §5, the validation of domains by mail, and what programs send mail as.
RESERVED = frozenset(
    (
        "abuse", "admin", "administrator", "certificates", "daemon", "dmarc", "ftp", "host", "hostmaster", "info-security",
        "is", "it", "mailer-daemon", "mis", "news", "no-reply", "nobody", "noc", "noreply", "postmaster", "root", "security",
        "ssladmin", "ssladministrator", "sslwebmaster", "sysadmin", "tls-reports", "usenet", "uucp", "webmaster", "www",
    )
)  # fmt: skip
#: Problems that are told.
_MAX_PROBLEMS = 20
_SPLIT = re.compile(r"[,\s]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class RulesError(Exception):
    """Lines that can't be done; each of `problems` is a sentence for the user."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@value(kw_only=True)
class Vacation:
    """A reply to whoever writes."""

    #: Lines, with \\n between them.
    text: str
    #: "" for the usual one.
    subject: str = ""
    #: The name in From, and the address; "" and None: none, and the one that the sender wrote to (RFC 3834 §3.1.1).
    name: str = ""
    sender: Address | None = None
    #: The first and the last day.
    start: date | None = None
    end: date | None = None
    #: Nobody gets another one for so many days.
    days: int = 7

    def active(self, today: date) -> bool:
        """Whether replies are to be sent."""
        return (self.start is None or self.start <= today) and (self.end is None or today <= self.end)


@value(kw_only=True)
class Rules:
    """The rules of one account."""

    forward: tuple[Address, ...] = ()
    #: Whether the mailbox gets what is forwarded too.
    keep: bool = False
    vacation: Vacation | None = None
    #: What is the account's besides its name.
    addresses: tuple[Address, ...] = ()


NONE = Rules()


@value(kw_only=True)
class Limits:
    """What users may decide."""

    forwards: int
    addresses: int
    #: Characters of a reply's text.
    text: int


@value
class Parsed:
    """What a text says. `asked`: whether there was anything in it to be done."""

    rules: Rules
    asked: bool


@value
class Changed:
    """The rules of one account before an order and after it."""

    before: Rules
    after: Rules

    @property
    def summary(self) -> str:
        """One line for the log: what is another now, without the words of a reply; "" for nothing."""
        old, new = self.before, self.after
        found = []
        if (old.forward, old.keep) != (new.forward, new.keep):
            found.append(f"forward {_listed(old.forward, old.keep)} -> {_listed(new.forward, new.keep)}")
        if old.addresses != new.addresses:
            found.append(f"addresses {_listed(old.addresses)} -> {_listed(new.addresses)}")
        if old.vacation != new.vacation:
            found.append(f"vacation {_replies(old.vacation)} -> {_replies(new.vacation)}")
        return "; ".join(found)


def _listed(addresses: Sequence[Address], keep: bool = False) -> str:
    return ", ".join([str(address) for address in addresses] + ["keep"] * keep) or "none"


def _replies(vacation: Vacation | None) -> str:
    if vacation is None:
        return "off"
    return f"from {vacation.start or 'now'} to {vacation.end or 'further notice'}"


class _Reader:
    """Reads one text. Each method for a key raises RulesError with what is wrong with its value."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        vacation = rules.vacation
        #: The fields of the reply, "text" among them where there is to be one.
        self.vacation: dict[str, object] = {} if vacation is None else attrs.asdict(vacation, recurse=False)
        self._keys: Mapping[str, Callable[[str], None]] = {
            "forward": self._forward,
            "addresses": self._addresses,
            "vacation": self._off,
            "vacation-start": lambda value: self._date("start", value),
            "vacation-end": lambda value: self._date("end", value),
            "vacation-from": self._from,
            "vacation-days": self._days,
            "vacation-subject": self._subject,
        }

    def line(self, text: str) -> None:
        key, found, value = text.partition(":")
        take = self._keys.get(key.strip().lower())
        if not found or take is None:
            raise RulesError(f"not understood: {shown(text)}")
        if _CONTROL.search(text):
            raise RulesError(f"there is a control character: {shown(text)}")
        if len(text) > MAX_LINE:
            raise RulesError(f"{key.strip()}: the line is longer than {MAX_LINE} characters")
        try:
            take(value.strip())
        except RulesError as error:
            raise RulesError(*(f"{key.strip()}: {problem}" for problem in error.problems)) from None

    def reply(self, text: str) -> None:
        """The value of "vacation:" with all lines that follow."""
        if not text:
            raise RulesError('vacation: the reply needs a text ("vacation: off" ends it)')
        self.vacation["text"] = text

    def result(self) -> Rules:
        """Raises RulesError."""
        if self.vacation and "text" not in self.vacation:
            raise RulesError('there is no "vacation:" with the text of the reply')
        vacation = Vacation(**self.vacation) if self.vacation else None  # type: ignore[arg-type]
        if vacation is not None and vacation.start and vacation.end and vacation.end < vacation.start:
            raise RulesError("vacation-end is before vacation-start")
        return attrs.evolve(self.rules, vacation=vacation)

    def _forward(self, value: str) -> None:
        words = [] if value.lower() == "off" else [word for word in _SPLIT.split(value) if word]
        keep = any(word.lower() == "keep" for word in words)
        targets = _parse_addresses(word for word in words if word.lower() != "keep")
        if not targets and value.lower() != "off":
            raise RulesError('it needs addresses to forward to, or "off"')
        self.rules = attrs.evolve(self.rules, forward=targets, keep=keep)

    def _addresses(self, value: str) -> None:
        words = [] if value.lower() == "off" else [word for word in _SPLIT.split(value) if word]
        if not words and value.lower() != "off":
            raise RulesError('it needs addresses, or "off"')
        self.rules = attrs.evolve(self.rules, addresses=_parse_addresses(words))

    def _off(self, value: str) -> None:
        self.vacation = {}

    def _date(self, field: str, value: str) -> None:
        try:
            self.vacation[field] = None if value.lower() == "off" else date.fromisoformat(value)
        except ValueError:
            raise RulesError(f"a date is written 2026-12-31, not {shown(value)}") from None

    def _days(self, value: str) -> None:
        if not (value.isascii() and value.isdecimal() and len(value) < 4 and 1 <= int(value) <= MAX_DAYS):
            raise RulesError(f"a number from 1 to {MAX_DAYS} is needed")
        self.vacation["days"] = int(value)

    def _from(self, value: str) -> None:
        name, found, address = value.rpartition("<") if value.endswith(">") else ("", "", value)
        if value.lower() == "off":
            self.vacation.update(name="", sender=None)
            return
        (sender,) = _parse_addresses([address.removesuffix(">") if found else address])
        self.vacation.update(name=_short(name.strip().strip('"')), sender=sender)

    def _subject(self, value: str) -> None:
        self.vacation["subject"] = "" if value.lower() == "off" else _short(value)


def _short(text: str) -> str:
    if len(text) > MAX_WORDS:
        raise RulesError(f"it is longer than {MAX_WORDS} characters")
    return text


def _parse_addresses(words: Iterable[str]) -> tuple[Address, ...]:
    found: dict[str, Address] = {}
    problems: list[str] = []
    for word in words:
        try:
            address = Address.parse(word.removeprefix("<").removesuffix(">"))
        except AddressError as error:
            problems.append(f"{shown(word)}: {error}")
            continue
        if str(address).startswith('"'):
            problems.append(f"{shown(word)}: an address that needs quotes can't be used here")
        found.setdefault(address.folded, address)
    if problems:
        raise RulesError(*problems)
    return tuple(found.values())


def parse_rules(text: str, rules: Rules = NONE) -> Parsed:
    """The rules as a text changes them. Raises RulesError with all that is wrong; then nothing is to be changed."""
    reader = _Reader(rules)
    problems: list[str] = []
    lines = text.replace("\r\n", "\n").split("\n")
    asked = False
    while lines:
        line = lines.pop(0)
        if line.rstrip() == "--":
            break
        if not line.strip() or line.startswith(("#", ">")):
            continue
        asked = True
        if line.strip().lower() == "show":
            continue
        try:
            key, found, value = line.partition(":")
            if key.strip().lower() == "vacation" and found and value.strip().lower() != "off":
                reader.reply(_rest(value, lines))
                break
            reader.line(line)
        except RulesError as error:
            problems += error.problems
    try:
        made = reader.result()
    except RulesError as error:
        problems += error.problems
    if problems:
        raise RulesError(*problems[:_MAX_PROBLEMS])
    return Parsed(made, asked)


def _rest(value: str, lines: list[str]) -> str:
    """The text of a reply: what stands behind the key, and the lines below."""
    text: list[str] = []
    for line in (value.strip(), *lines):
        if line.rstrip() == "--":
            break
        text.append(_CONTROL.sub("", line).rstrip())
    return "\n".join(text).strip("\n")


def format_rules(rules: Rules) -> str:
    """The text that gives these rules; "" for none."""
    lines: list[str] = []
    if rules.forward:
        words = [str(address) for address in rules.forward] + ["keep"] * rules.keep
        lines.append("forward: " + ", ".join(words))
    if rules.addresses:
        lines.append("addresses: " + ", ".join(str(address) for address in rules.addresses))
    vacation = rules.vacation
    if vacation is not None:
        for key, value in (("start", vacation.start), ("end", vacation.end)):
            if value is not None:
                lines.append(f"vacation-{key}: {value.isoformat()}")
        if vacation.days != Vacation(text="").days:
            lines.append(f"vacation-days: {vacation.days}")
        if vacation.sender is not None:
            lines.append(f"vacation-from: {vacation.name} <{vacation.sender}>")
        if vacation.subject:
            lines.append(f"vacation-subject: {vacation.subject}")
        lines += ["vacation:", vacation.text]
    return "".join(f"{line}\n" for line in lines)


def within(rules: Rules, before: Rules, account: Address, limits: Limits) -> None:
    """Raises RulesError for what the account of that address may not change `before` into.

    What stays as it was is none of this: an administrator may have set it.
    """
    problems: list[str] = []
    if rules.forward != before.forward:
        problems += _forward_problems(rules.forward, account, limits)
    if rules.addresses != before.addresses:
        problems += _address_problems(rules.addresses, account, limits)
    vacation = rules.vacation
    sender = vacation.sender if vacation is not None else None
    if sender is not None and sender.folded not in {one.folded for one in (account, *rules.addresses)}:
        problems.append(f"vacation-from: {sender} is not yours")
    if vacation is not None and vacation != before.vacation and len(vacation.text) > limits.text:
        problems.append(f"vacation: the text is longer than {limits.text} characters")
    if problems:
        raise RulesError(*problems)


def _forward_problems(targets: Sequence[Address], account: Address, limits: Limits) -> Iterator[str]:
    if len(targets) > limits.forwards:
        yield (
            f"forward: at most {limits.forwards} addresses are allowed"
            if limits.forwards
            else "forward: forwarding is not allowed here"
        )
    if any(target.folded == account.folded for target in targets):
        yield 'forward: your own address is not needed, "keep" leaves a copy in the mailbox'


def _address_problems(addresses: Sequence[Address], account: Address, limits: Limits) -> Iterator[str]:
    if len(addresses) > limits.addresses:
        yield (
            f"addresses: at most {limits.addresses} are allowed"
            if limits.addresses
            else "addresses: only the postmaster gives out more addresses here"
        )
    for address in addresses:
        if address.domain != account.domain:
            yield f"addresses: {address} is not in {account.domain}"
        elif address.local.casefold() in RESERVED:
            yield f"addresses: {address} is for those who run {account.domain}: ask the postmaster"


def shown(text: str) -> str:
    """What a user wrote, as it is told back."""
    text = _CONTROL.sub("?", text.strip())
    return text if len(text) <= 80 else text[:80] + "..."
