"""Readers of single values: each takes a TOML value and gives what the schema holds, or raises Invalid.

A reader gets the `Reading` under way and the path of its key too: one that reads an array notes what is wrong with an
entry under the entry's own key and goes on, so that every error of the file is found in one pass.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import attrs

from twisted_mta.config.errors import Invalid, Problem, did_you_mean, quote
from twisted_mta.config.lines import KeyLines
from twisted_mta.config.schema import Network, Role
from twisted_mta.core.address import Address, AddressError, parse_domain
from twisted_mta.core.forward import HeaderTest
from twisted_mta.core.schedule import parse_duration, parse_schedule
from twisted_mta.core.tls_policy.decision import Require
from twisted_mta.core.tls_policy.names import is_pattern

T = TypeVar("T")

#: What stands for a domain or an address that could not be read, so that the other checks can go on.
PLACEHOLDER = "invalid"

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_SIZE = re.compile(r"([0-9]{1,15})[ ]?(?:([KMGT])(?:i?B)?|B)?", re.I)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_FIELD_NAME = re.compile(r"[!-9;-~]+")  # RFC 5322 §2.2
_PLACEHOLDERS = ("user", "local", "domain")


@attrs.define
class Reading:
    """One file being read."""

    file: str
    #: The directory that relative paths start from, absolute.
    base: Path
    lines: KeyLines
    problems: list[Problem] = attrs.field(factory=list)
    #: The first local domain: a name without @ belongs to it.
    domain: str = PLACEHOLDER

    def problem(self, key: str, message: str, *, warning: bool = False) -> None:
        """Note what is wrong with a key."""
        self.problems.append(
            Problem(file=self.file, line=self.lines.of(key), key=key, message=message, warning=warning)
        )

    def source(self, key: str) -> str:
        """Where a key stands: "mta.toml:12"."""
        return f"{self.file}:{self.lines.of(key)}"

    def is_bad(self, *keys: str) -> bool:
        """Whether an error was noted for one of these keys, or for something inside."""
        return any(
            not problem.warning and (problem.key == key or problem.key.startswith((f"{key}.", f"{key}[")))
            for problem in self.problems
            for key in keys
        )


Reader = Callable[[Any, Reading, str], T]


def text(value: Any, reading: Reading, key: str) -> str:
    """One line of printable text."""
    if not isinstance(value, str):
        raise Invalid(f"{quote(value)} is not text: put it in quotes")
    if not value.isprintable():
        raise Invalid(f"{quote(value)} has a character that can't be printed, such as a line end")
    return value


def ascii_text(value: Any, reading: Reading, key: str) -> str:
    """One line of ASCII, short enough for a reply."""
    line = text(value, reading, key)
    if not line.isascii():
        raise Invalid(f"{quote(line)} must be ASCII: it is sent before a client can have asked for more")
    if len(line) > 400:  # RFC 5321 §4.5.3.1.5: a reply line has room for 512 octets
        raise Invalid(f"{quote(line)} is longer than 400 characters")
    return line


def name(value: Any, reading: Reading, key: str) -> str:
    """The name of a user or group of the system, or "" for none."""
    word = text(value, reading, key)
    if word and not _NAME.fullmatch(word):
        raise Invalid(f"{quote(word)} can't be the name of a user or group")
    return word


def boolean(value: Any, reading: Reading, key: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Invalid(f"{quote(value)} is neither true nor false (without quotes)")
    return value


def integer(low: int, high: int) -> Reader[int]:
    """A whole number within bounds."""

    def read(value: Any, reading: Reading, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(f"{quote(value)} is not a whole number (without quotes)")
        if not low <= value <= high:
            raise Invalid(f"{value} is out of range: {low} to {high}")
        return value

    return read


#: Worker processes at most.
MAX_WORKERS = 64


def workers(value: Any, reading: Reading, key: str) -> int:
    """How many processes; 0 for "auto"."""
    if value == "auto":
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_WORKERS:
        raise Invalid(f'{quote(value)} is no number of workers: write 1 to {MAX_WORKERS}, or "auto"')
    return value


def duration(low: float = 0.0, high: float = 1e9) -> Reader[float]:
    """Seconds as a number, or text with units: "30m", "1h30m"."""

    def read(value: Any, reading: Reading, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Invalid(f'{quote(value)} is no duration: write "30m", "4h", "5d", or seconds as a number')
        if isinstance(value, str):
            seconds = _checked(parse_duration, value)
        elif 0 <= value <= 1e9:
            seconds = float(value)
        else:  # NaN ends here too
            raise Invalid(f"{quote(value)} is no duration: it must be 0 or more seconds")
        if seconds < low:
            raise Invalid(f"{quote(value)} is too short: at least {low:g} seconds")
        if seconds > high:
            raise Invalid(f"{quote(value)} is too long: at most {high:.10g} seconds")
        return seconds

    return read


def schedule(value: Any, reading: Reading, key: str) -> tuple[float, ...]:
    """ "5m, 15m, 30m*4, 4h"."""
    if not isinstance(value, str):
        raise Invalid(f'{quote(value)} is no schedule: write text such as "5m, 15m, 30m*4, 4h"')
    return _checked(parse_schedule, value)


def size(low: int = 0) -> Reader[int]:
    """Octets as a number, or text with a unit: "50M" (1 K is 1024)."""

    def read(value: Any, reading: Reading, key: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Invalid(f'{quote(value)} is no size: write "50M", "64K", or octets as a number')
        if isinstance(value, str):
            match = _SIZE.fullmatch(value.strip())
            if match is None:
                raise Invalid(
                    f"{quote(value)} is no size: write a number and K, M, G or T, "
                    'such as "50M", or octets as a number'
                )
            octets = int(match[1]) * _FACTORS[(match[2] or "").upper()]
        else:
            octets = value
        if octets < low:
            raise Invalid(f"{quote(value)} is too small: at least {low} octets")
        return octets

    return read


def path(value: Any, reading: Reading, key: str) -> Path:
    """A path, relative to the directory of the configuration file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise Invalid(f"{quote(value)} is not a path: write it in quotes")
    return reading.base / value


def root(value: Any, reading: Reading, key: str) -> Path:
    """A directory below which something is allowed; in its shortest form, and not the root of everything."""
    found = Path(os.path.normpath(path(value, reading, key)))
    if found == Path(found.anchor):
        raise Invalid(f"{quote(value)} is everything: name the directories that are meant")
    return found


def module(value: Any, reading: Reading, key: str) -> str:
    """The full name of a Python module."""
    written = text(value, reading, key)
    if not all(part.isidentifier() for part in written.split(".")):
        raise Invalid(
            f'{quote(written)} is no name of a module: write it as for an import, such as "myapp.mail"'
        )
    return written


def template(value: Any, reading: Reading, key: str) -> str:
    """The Maildir of an account: an absolute path with {user}, {local} and {domain}."""
    written = str(path(value, reading, key))
    names = re.findall(r"\{([^{}]*)\}", written)
    for found in names:
        if found not in _PLACEHOLDERS:
            raise Invalid(
                f'{quote(value)}: "{found}" stands for nothing{did_you_mean(found, _PLACEHOLDERS) or ";"} '
                "valid: {user}, {local}, {domain}"
            )
    if not {"user", "local"} & set(names):
        raise Invalid(f"{quote(value)} would be one Maildir for everyone: it needs {{user}} or {{local}}")
    if set("{}") & set(re.sub(r"\{[^{}]*\}", "", written)):
        raise Invalid(f"{quote(value)} has a brace without its partner")
    return written


def choice(*options: str) -> Reader[str]:
    """One of a few words."""

    def read(value: Any, reading: Reading, key: str) -> str:
        if value not in options:
            hint = did_you_mean(value, options) if isinstance(value, str) else ""
            raise Invalid(f"{quote(value)} is not known here{hint or ';'} valid: {', '.join(options)}")
        return str(value)

    return read


def require(value: Any, reading: Reading, key: str) -> Require:
    """What the TLS of a destination must be."""
    return Require(choice(*Require)(value, reading, key))


def host_pattern(value: Any, reading: Reading, key: str) -> str:
    """A host name, or "*." and a domain; in lower case."""
    written = text(value, reading, key).removesuffix(".").lower()
    if not is_pattern(written):
        raise Invalid(
            f'{quote(value)} is no host name: write "mx.example.org", or "*.example.org" for all hosts one label below'
        )
    return written


def role(value: Any, reading: Reading, key: str) -> Role:
    """What a listener speaks."""
    return Role(choice(*Role)(value, reading, key))


def network(value: Any, reading: Reading, key: str) -> Network:
    """An IP network or address whose clients may relay; never the whole Internet."""
    return _network(value, reading, key, "that would be an open relay")


def proxy_network(value: Any, reading: Reading, key: str) -> Network:
    """An IP network or address of proxies; never the whole Internet."""
    return _network(value, reading, key, "anybody could pretend to be any client")


def client_network(value: Any, reading: Reading, key: str) -> Network:
    """An IP network or address of clients that are not limited; never the whole Internet."""
    return _network(value, reading, key, "nobody would be limited")


def _network(value: Any, reading: Reading, key: str, danger: str) -> Network:
    try:
        found = ipaddress.ip_network(text(value, reading, key))
    except ValueError:
        raise Invalid(
            f'{quote(value)} is no network: write "192.0.2.0/24" or "2001:db8::/32"{_meant_network(value)}'
        ) from None
    if found.prefixlen == 0:
        raise Invalid(f"{quote(value)} is everyone: {danger}")
    return found


def _meant_network(value: object) -> str:
    try:
        return f'; did you mean "{ipaddress.ip_network(str(value), strict=False)}"?'
    except ValueError:
        return ""


def domain(value: Any, reading: Reading, key: str) -> str:
    """A mail domain, in lower case."""
    written = text(value, reading, key)
    if "@" in written:
        raise Invalid(f'{quote(written)} is an address: a domain is what follows the "@"')
    return _checked(parse_domain, written)


def domain_pattern(value: Any, reading: Reading, key: str) -> str:
    """A mail domain as `domain` reads it, or ".domain" for its subdomains."""
    written = text(value, reading, key)
    return "." * written.startswith(".") + domain(written.removeprefix("."), reading, key)


def ip_address(value: Any, reading: Reading, key: str) -> str:
    """An IP address, in its usual form."""
    try:
        return str(ipaddress.ip_address(text(value, reading, key)))
    except ValueError:
        raise Invalid(
            f'{quote(value)} is no IP address: write "192.0.2.1" or "2001:db8::1", without a port'
        ) from None


def bind_addresses(value: Any, reading: Reading, key: str) -> tuple[str, ...]:
    """Addresses to connect from: one of each family at most."""
    found = array(ip_address)(value, reading, key)
    for name, is_ipv6 in (("IPv4", False), ("IPv6", True)):
        if sum((":" in one) is is_ipv6 for one in found) > 1:
            raise Invalid(f"there is more than one {name} address: connections can't come from two")
    return found


def hostname(value: Any, reading: Reading, key: str) -> str:
    """A fully qualified host name, in lower case."""
    written = text(value, reading, key).removesuffix(".").lower()
    if not written.isascii():
        raise Invalid(f'{quote(value)} must be written in its ASCII form ("xn--...")')
    if is_ip(written):
        raise Invalid(f"{quote(value)} is an IP address: a host name is needed")
    labels = written.split(".")
    if len(written) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid(
            f'{quote(value)} is no host name: letters, digits and hyphens, such as "mail.example.org"'
        )
    if len(labels) < 2:  # RFC 5321 §2.3.5: only resolvable, fully qualified names
        reading.problem(
            key, f"{quote(value)} is not fully qualified: many servers will refuse it", warning=True
        )
    return written


def address(value: Any, reading: Reading, key: str) -> Address:
    """A mail address; a name without @ is one of the first local domain."""
    written = text(value, reading, key)
    return _checked(
        Address.parse, written if "@" in written else f"{written}@{reading.domain}", quoted=written
    )


def address_or_domain(value: Any, reading: Reading, key: str) -> str:
    """An address as `address` reads it, or "@domain" for all addresses of a domain."""
    written = text(value, reading, key)
    if written.startswith("@"):
        return f"@{domain(written[1:], reading, key)}"
    return str(address(value, reading, key))


def header_test(value: Any, reading: Reading, key: str) -> HeaderTest:
    """ "Name: beginning of the value" of a header field."""
    written = text(value, reading, key)
    field, found, begin = written.partition(":")
    if not found or not _FIELD_NAME.fullmatch(field.strip()):
        raise Invalid(f'{quote(written)} is no header field: write "X-Spam-Flag: YES"')
    return HeaderTest(field.strip().lower(), begin.strip())


def separator(value: Any, reading: Reading, key: str) -> str:
    """One character, or "" for none."""
    character = text(value, reading, key)
    if character and (len(character) != 1 or character not in "+-_=.#%!~"):
        raise Invalid(f'{quote(value)} can\'t separate a detail: one of + - _ = . # % ! ~, or "" for none')
    return character


def dns_server(value: Any, reading: Reading, key: str) -> str:
    """An IP address, with a port or without."""
    written = text(value, reading, key)
    host, port = written, "53"
    if bracketed := re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", written):
        host, port = bracketed[1], bracketed[2] or "53"
    elif written.count(":") == 1:
        host, _, port = written.partition(":")
    if not is_ip(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise Invalid(
            f'{quote(value)} is no name server: write an IP address, "192.0.2.53", "192.0.2.53:5353" or "[2001:db8::53]:5353"'
        )
    return written


def is_ip(written: str) -> bool:
    """Whether it is an IP address, of either family."""
    try:
        ipaddress.ip_address(written)
    except ValueError:
        return False
    return True


def host_and_port(written: str, default_port: int) -> tuple[str, int]:
    """ "host", "host:port" or "[IPv6]:port". Raises Invalid."""
    bad = Invalid(
        f'{quote(written)} is no host: write "mail.example.org", "mail.example.org:2525" or "[2001:db8::1]:25"'
    )
    host, port = written, str(default_port)
    if bracketed := re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", written):
        host, port = bracketed[1], bracketed[2] or port
        if not is_ip(host):
            raise bad
    elif written.count(":") == 1:
        host, _, port = written.partition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise Invalid(f'{quote(written)}: "{port}" is no port: 1 to 65535')
    if is_ip(host):
        return host, int(port)
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise bad
    return host.removesuffix(".").lower(), int(port)


def array(item: Reader[T], *, at_least: int = 0) -> Reader[tuple[T, ...]]:
    """An array; entries that are wrong are noted under their own key and left out."""

    def read(value: Any, reading: Reading, key: str) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise Invalid(f"{quote(value)} is not an array: write [{quote(value)}]")
        if len(value) < at_least:
            raise Invalid("the array is empty: at least one entry is needed")
        return tuple(each(item, enumerate(value, 1), reading, key))

    return read


def each(item: Reader[T], entries: Iterable[tuple[int, Any]], reading: Reading, key: str) -> Iterable[T]:
    """Read the entries of an array one by one; what is wrong with one is noted, and it is left out."""
    for number, entry in entries:
        place = f"{key}[{number}]"
        try:
            yield item(entry, reading, place)
        except Invalid as error:
            reading.problem(place, str(error))


def _checked(parse: Callable[[str], T], written: str, quoted: str | None = None) -> T:
    """Call a parser of the core; its ValueError becomes an Invalid that shows the value."""
    try:
        return parse(written)
    except AddressError as error:
        raise Invalid(f"{quote(written if quoted is None else quoted)}: {error}") from None
    except ValueError as error:
        raise Invalid(str(error)) from None
