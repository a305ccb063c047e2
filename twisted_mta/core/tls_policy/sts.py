"""MTA-STS: the record that says that there is a policy, and the policy. RFC 8461."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence

from twisted_mta.core.tls_policy.names import any_matches, is_pattern
from twisted_mta.core.values import value

#: RFC 8461 §3.3: the suggested bound, in octets.
MAX_POLICY = 65536
#: RFC 8461 §3.2: seconds; some 366 days.
MAX_AGE = 31557600
#: Patterns in one policy. A domain with more would better use a star.
MAX_PATTERNS = 500

_VERSION = re.compile(rb"v=STSv1[ \t]*;")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
#: sts-ext-value of the record.
_RECORD_VALUE = re.compile(r"[\x21-\x3a\x3c\x3e-\x7e]+")
_AGE = re.compile(r"[0-9]{1,10}")


class PolicyError(Exception):
    """The policy breaks a rule; the text says which."""


class Mode(enum.StrEnum):
    """What becomes of mail where the policy can't be met: RFC 8461 §5."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@value(kw_only=True)
class StsPolicy:
    """What a domain publishes."""

    mode: Mode
    #: Patterns for the names of MX hosts, in lower case.
    mx: tuple[str, ...]
    #: Seconds for which it holds after it was fetched.
    max_age: int
    #: The policy as written, for reports: RFC 8460 §4.5.
    lines: tuple[str, ...]

    def allows(self, host: str) -> bool:
        """Whether the host may take mail for the domain: RFC 8461 §4.1."""
        return any_matches(self.mx, [host])


def policy_host(domain: str) -> str:
    """Where the policy is: RFC 8461 §3.2."""
    return f"mta-sts.{domain}"


def record_name(domain: str) -> str:
    """The name of the TXT record: RFC 8461 §3.1."""
    return f"_mta-sts.{domain}"


def policy_id(records: Sequence[bytes]) -> str | None:
    """The id in the TXT records of `record_name`, each with its strings joined; None if there is no usable one."""
    # RFC 8461 §3.1: others are discarded; what is left must be one.
    found = [record for record in records if _VERSION.match(record)]
    if len(found) != 1 or not found[0].isascii():
        return None
    _, *fields = found[0].decode("ascii").split(";")
    if not fields[-1].strip(" \t"):
        fields.pop()
    identifier: str | None = None
    for field in fields:
        name, equals, value = field.strip(" \t").partition("=")
        if not equals or not _NAME.fullmatch(name) or not _RECORD_VALUE.fullmatch(value):
            return None
        if (
            name == "id" and identifier is None
        ):  # RFC 8461 §3.2: of a field that is there twice, the first counts
            identifier = value
    return identifier if identifier is not None and _ID.fullmatch(identifier) else None


def parse_policy(body: bytes) -> StsPolicy:
    """Read a policy. Unknown fields are passed over, and so are empty lines. Raises PolicyError."""
    if len(body) > MAX_POLICY:
        raise PolicyError(f"it is longer than {MAX_POLICY} octets")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError("it is not UTF-8") from None
    fields: dict[str, str] = {}
    patterns: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        line = line.removesuffix("\r").rstrip(" \t")
        if not line:
            continue
        name, value = _field(line)
        lines.append(f"{name}: {value}")
        if name == "mx":
            patterns.append(_pattern(value))
        else:
            fields.setdefault(name, value)  # RFC 8461 §3.2: the first counts
    return _policy(fields, patterns, lines)


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    value = value.lstrip(" \t")
    if not colon or not _NAME.fullmatch(name) or not value:
        raise PolicyError(f"{line[:60]!r} is no field with a value")
    if not value.isprintable():
        raise PolicyError(f"the value of {name} has characters that can't be printed")
    return name, value


def _pattern(value: str) -> str:
    pattern = value.lower()
    if not is_pattern(pattern):
        raise PolicyError(f"mx: {value[:60]!r} is no host name")
    return pattern


def _policy(fields: dict[str, str], patterns: list[str], lines: list[str]) -> StsPolicy:
    if fields.get("version") != "STSv1":
        raise PolicyError("it has no version: STSv1")
    mode, age = fields.get("mode", ""), fields.get("max_age", "")
    if mode not in set(Mode):
        raise PolicyError(f"mode: {mode[:60]!r} is none of {', '.join(Mode)}")
    if not _AGE.fullmatch(age):
        raise PolicyError(f"max_age: {age[:60]!r} is no number of seconds")
    if not patterns and mode != Mode.NONE:
        raise PolicyError("it names no mx")
    if len(patterns) > MAX_PATTERNS:
        raise PolicyError(f"it names more than {MAX_PATTERNS} mx")
    # More than the maximum is taken for the maximum: to drop the policy would help an attacker, not its author.
    return StsPolicy(mode=Mode(mode), mx=tuple(patterns), max_age=min(int(age), MAX_AGE), lines=tuple(lines))
