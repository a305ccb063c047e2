"""Host names, patterns with a star, and whether they match."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: RFC 5321 §4.1.2 Domain, in lower case; the underscore is for what exists in spite of it.
_DOMAIN = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62})){0,126}")
MAX_NAME = 253


def is_pattern(text: str) -> bool:
    """Whether it is a host name or "*." and a domain, in lower case and ASCII."""
    name = text.removeprefix("*.")
    return len(name) <= MAX_NAME and _DOMAIN.fullmatch(name) is not None


def matches(pattern: str, host: str) -> bool:
    """Whether a host name falls under a pattern; both may be in any case, and end in a dot."""
    pattern, host = _plain(pattern), _plain(host)
    if not pattern.startswith("*."):
        return pattern == host
    # RFC 8461 §4.1, RFC 7672 §3.2.3: the star stands for the whole leftmost label, and for one only.
    label, dot, rest = host.partition(".")
    return bool(label and dot) and rest == pattern[2:]


def any_matches(patterns: Iterable[str], hosts: Iterable[str]) -> bool:
    """Whether one of the names falls under one of the patterns."""
    names = tuple(hosts)
    return any(matches(pattern, name) for pattern in patterns for name in names)


def is_within(host: str, domain: str) -> bool:
    """Whether a host is the domain itself or below it."""
    host, domain = _plain(host), _plain(domain)
    return host == domain or host.endswith(f".{domain}")


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")
