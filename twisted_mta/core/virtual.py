"""Rules for addresses by pattern: ``"sales-(.*)@example.org" = "{1}@crm.example.net"``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from twisted_mta.core.address import MAX_LOCAL_PART, Address, AddressError, parse_domain
from twisted_mta.core.aliases import Action, Alias, Name, Special, Target, parse_target
from twisted_mta.core.patterns import Pattern
from twisted_mta.core.values import value

_CAPTURE = re.compile(r"\{([0-9]+)\}")


class VirtualError(ValueError):
    """A rule can't be used; the message says why."""


@value
class Template:
    """A target with captures in it: the local part and the domain as written, "" for none."""

    local: str
    domain: str
    source: str

    def fill(self, captures: Sequence[str]) -> Name:
        """The target for a match. Raises AddressError where what comes of it is no address."""

        def put(text: str) -> str:
            return _CAPTURE.sub(lambda match: captures[int(match[1]) - 1], text)

        # Put in by parts, so that nothing in a capture can become another domain.
        local = put(self.local)
        if not 0 < len(local.encode("utf-8", "surrogateescape")) <= MAX_LOCAL_PART:  # RFC 5321 §4.5.3.1.1
            raise AddressError(f"the local part is empty, or longer than {MAX_LOCAL_PART} octets")
        return Name(Address(local, parse_domain(put(self.domain)) if self.domain else ""), self.source)


@value
class Rule:
    """One entry of [virtual] whose key is a pattern."""

    pattern: Pattern
    targets: tuple[Target | Template, ...]
    source: str

    def apply(self, address: Address) -> Alias | None:
        """The alias that an address is by this rule; None if the pattern is for others."""
        captures = self.pattern.match(address)
        if captures is None:
            return None
        targets = tuple(
            _filled(target, captures) if isinstance(target, Template) else target for target in self.targets
        )
        file, _, line = self.source.rpartition(":")
        return Alias(address, targets, file, int(line))


def _filled(template: Template, captures: Sequence[str]) -> Target:
    try:
        return template.fill(captures)
    except AddressError as error:
        return Special(Action.FAIL, f"What the address leads to is none: {error}", template.source)


def is_pattern(key: str) -> bool:
    """Whether a key of [virtual] is a pattern, and no address."""
    return "(" in key


def read_target(text: str, source: str, groups: int = 0) -> Target | Template:
    """A value of [virtual]. With `groups` it may have captures in it. Raises VirtualError."""
    captures = [int(number) for number in _CAPTURE.findall(text)] if groups else []
    if not captures:
        try:
            return parse_target(text, source)
        except ValueError as error:
            raise VirtualError(str(error)) from None
    for number in captures:
        if not 1 <= number <= groups:
            raise VirtualError(f"there is no group {number} in the pattern, the last one is {groups}")
    local, _, domain = text.rpartition("@") if "@" in text else (text, "", "")
    template = Template(local, domain, source)
    _check_domain(domain)
    try:
        sample = parse_target(_CAPTURE.sub("x", text), source)
    except ValueError as error:
        raise VirtualError(str(error)) from None
    if not isinstance(sample, Name) or sample.final or local.startswith(('"', "<")):
        raise VirtualError("captures can be put into an address only, such as {1}@example.org")
    return template


def _check_domain(domain: str) -> None:
    """A sender must not be able to choose where we send mail to."""
    *_, end = _CAPTURE.split(domain)
    if end != domain and not re.fullmatch(r"\.[^.]+\..+", end):
        raise VirtualError(
            "behind a capture in the domain two labels must be fixed, such as {1}.example.org: "
            "else whoever writes to it could relay mail to any domain"
        )
