"""Mail addresses: the Mailbox of RFC 5321 §4.1.2, as the envelope carries it."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

import attrs

from twisted_mta.core.values import value

#: RFC 5321 §4.5.3.1: octets in a local-part and in a domain, of addresses that we make.
MAX_LOCAL_PART = 64
MAX_DOMAIN = 255
#: Octets in a local-part of others. RFC 5321 §4.5.3.1 asks for no limit where that is possible, and the senders of mass
#: mailers often have more than 64: they contain the recipient.
MAX_FOREIGN_LOCAL_PART = 255

# RFC 5322 §3.2.3 atext; RFC 6531 §3.3 adds every character beyond ASCII.
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]"
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*")
# Qcontent: printable ASCII and space, backslash before a quote or a backslash.
_QUOTED_STRING = re.compile(r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e\u0080-\U0010ffff]|\\[\x20-\x7e])*"')
# Hosts with an underscore exist and receive mail, so sub-domains may contain one: we are liberal in what we accept.
_SUB_DOMAIN = (
    r"[A-Za-z0-9_\u0080-\U0010ffff](?:[A-Za-z0-9_\u0080-\U0010ffff-]*[A-Za-z0-9_\u0080-\U0010ffff])?"
)
_DOMAIN = re.compile(rf"{_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*")
_LITERAL = re.compile(
    r"\[(?:(IPv6:)([0-9A-Fa-f:.]+)|([0-9]+(?:\.[0-9]+){3})|([A-Za-z0-9-]*[A-Za-z0-9]:[!-Z^-~]+))\]", re.I
)
#: Most paths: see `_plain_path`.
_PLAIN_PATH = re.compile(
    r"<([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)@"
    r"([A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*)>"
)
#: How many of them are remembered, and the longest, in characters: less than a megabyte in all. A mailbox gets mail again
#: and again, and to read a path takes fifty times as long as to look it up. What was made of the address is kept with it.
_REMEMBERED = 1024
_MAX_REMEMBERED = 128
_SOURCE_ROUTE = re.compile(rf"@{_DOMAIN.pattern}(?:,@{_DOMAIN.pattern})*:")
_UNQUOTE = re.compile(r"\\(.)")


class AddressError(ValueError):
    """The text is not an address; the message says why, fit for an SMTP reply."""


@value(order=True)
class Address:
    """One mailbox: `local` is unquoted and keeps its case, `domain` is lower-case.

    `domain` is a host name, an address literal with its brackets ("[192.0.2.1]", "[IPv6:2001:db8::1]"), or ""
    for a bare ``postmaster``. ``str()`` gives the form for the wire, quoted where the local part needs it.
    """

    local: str
    domain: str
    #: What was made of the two before: a message asks for these a dozen times.
    _folded: str = attrs.field(default="", init=False, eq=False, order=False, repr=False)
    _text: str = attrs.field(default="", init=False, eq=False, order=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a Mailbox (``local-part@domain``, no angle brackets). Raises AddressError."""
        local, rest = _local_part(text)
        if not rest.startswith("@"):
            raise AddressError(
                "an address needs an @ and a domain"
                if not rest
                else f"unexpected {rest[0]!r} in the local part"
            )
        return cls(local, parse_domain(rest[1:]))

    @property
    def is_ascii(self) -> bool:
        """Whether it can be said without SMTPUTF8 (RFC 6531)."""
        return self.local.isascii() and self.domain.isascii()

    @property
    def is_literal(self) -> bool:
        """Whether the domain is an address literal, RFC 5321 §4.1.3."""
        return self.domain.startswith("[")

    @property
    def folded(self) -> str:
        """The key for look-ups of our own mailboxes, whose local parts ignore case."""
        if not self._folded:
            object.__setattr__(self, "_folded", f"{self.local}@{self.domain}".casefold())
        return self._folded

    def with_local(self, local: str) -> Address:
        """The same domain with another local part."""
        return Address(local, self.domain)

    def with_domain(self, domain: str) -> Address:
        """The same local part in another domain."""
        return Address(self.local, domain)

    def __str__(self) -> str:
        if not self._text:
            local = self.local
            if not _DOT_STRING.fullmatch(local):
                local = '"' + re.sub(r'([\\"])', r"\\\1", local) + '"'
            object.__setattr__(self, "_text", f"{local}@{self.domain}" if self.domain else local)
        return self._text


def _local_part(text: str) -> tuple[str, str]:
    """Split off and unquote the local part: (local, what follows)."""
    match = _DOT_STRING.match(text) or _QUOTED_STRING.match(text)
    if match is None:
        raise AddressError("the local part is empty or has a character that must be quoted")
    local = match.group()
    if local.startswith('"'):
        local = _UNQUOTE.sub(r"\1", local[1:-1])
    if len(local.encode("utf-8", "surrogateescape")) > MAX_FOREIGN_LOCAL_PART:
        raise AddressError(f"the local part is longer than {MAX_FOREIGN_LOCAL_PART} octets")
    return local, text[match.end() :]


def parse_domain(text: str) -> str:
    """Check a Domain or address-literal and return it in lower case. Raises AddressError."""
    if text.startswith("["):
        return _literal(text)
    text = text.removesuffix(".")  # some clients send the root label; RFC 5321 has no room for it
    if not _DOMAIN.fullmatch(text):
        raise AddressError("the domain is empty or has a character that no host name can have")
    if len(text.encode("utf-8", "surrogateescape")) > MAX_DOMAIN:  # RFC 5321 §4.5.3.1.2
        raise AddressError(f"the domain is longer than {MAX_DOMAIN} octets")
    return text.lower()


def _literal(text: str) -> str:
    """RFC 5321 §4.1.3: an IPv4, IPv6 or General address literal, in its canonical spelling."""
    match = _LITERAL.fullmatch(text)
    if match is None:
        raise AddressError("the address literal is neither [192.0.2.1] nor [IPv6:2001:db8::1]")
    try:
        if match[3]:
            return f"[{ipaddress.IPv4Address(match[3])}]"
        if match[2]:
            return f"[IPv6:{ipaddress.IPv6Address(match[2])}]"
    except ValueError as error:
        raise AddressError(f"the address literal is no IP address: {error}") from None
    return text.lower()


def literal_ip(domain: str) -> str:
    """The IP address of an address literal as text ("192.0.2.1", "2001:db8::1"); "" for anything else."""
    if not domain.startswith("["):
        return ""
    inner = domain[1:-1]
    if inner.startswith("IPv6:"):
        return inner[5:]
    return inner if _LITERAL.fullmatch(domain) and ":" not in inner else ""


@lru_cache(_REMEMBERED)
def _plain_path(text: str) -> Address | None:
    """A shortcut for `parse_path`, which comes to the same: the address of a path as most are, else None."""
    plain = _PLAIN_PATH.fullmatch(text)
    return None if plain is None else Address(plain[1], plain[2].lower())


def parse_path(text: str) -> tuple[Address | None, str]:
    """Read a Path in angle brackets at the start of `text`: (address, what follows).

    ``<>`` gives None; ``<postmaster>`` gives an Address with domain ""; a source route is read and dropped
    (RFC 5321 App. C). Raises AddressError. Whether null or bare paths are allowed here is the caller's to know.
    """
    end = text.find(">") + 1
    if end <= _MAX_REMEMBERED:
        plain = _plain_path(text[:end])
        if plain is not None:
            return plain, text[end:]
    if not text.startswith("<"):
        raise AddressError("the address must stand in angle brackets")
    inner = text[1:].lstrip(" ")
    if inner.startswith(">"):
        return None, inner[1:]
    route = _SOURCE_ROUTE.match(inner)
    if route:
        inner = inner[route.end() :]
    local, rest = _local_part(inner)
    domain = ""
    if rest.startswith("@"):
        raw = re.match(r"(?:\[[^\]<> ]*\]|[^<> ]*)", rest[1:])
        assert raw is not None  # both branches match the empty string
        domain = parse_domain(raw.group())
        rest = rest[1 + raw.end() :]
    rest = rest.lstrip(" ")
    if not rest.startswith(">"):
        raise AddressError("the address does not end with >")
    return Address(local, domain), rest[1:]
