"""Readers of what addresses lead to: [virtual], and targets in [[domain]]."""

from __future__ import annotations

from typing import Any

from twisted_mta.config import fields
from twisted_mta.config.errors import Invalid, quote
from twisted_mta.config.fields import Reading
from twisted_mta.config.lines import join_key
from twisted_mta.core.address import Address, AddressError, parse_domain
from twisted_mta.core.aliases import Action, Alias, Include, Special, Target
from twisted_mta.core.patterns import Pattern, PatternError
from twisted_mta.core.virtual import Rule, Template, VirtualError, is_pattern, read_target


def domain_or_none(value: Any, reading: Reading, key: str) -> str:
    """A domain, or "" for none."""
    return "" if value == "" else fields.domain(value, reading, key)


def size_or_none(value: Any, reading: Reading, key: str) -> int:
    """The size of a message, or 0 for no limit."""
    return (
        0 if value == 0 and value is not False else fields.size(65536)(value, reading, key)
    )  # RFC 5321 §4.5.3.1.7


def targets(value: Any, reading: Reading, key: str) -> tuple[Target, ...]:
    """Targets as an alias has them: one, or an array."""
    return tuple(target for target in _targets(value, reading, key, 0) if not isinstance(target, Template))


def _targets(value: Any, reading: Reading, key: str, groups: int) -> tuple[Target | Template, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(_target(entry, reading, key, groups, len(entries)) for entry in entries)


def _target(value: Any, reading: Reading, key: str, groups: int, count: int) -> Target | Template:
    written = fields.text(value, reading, key)
    try:
        target = read_target(written, reading.source(key), groups)
    except VirtualError as error:
        raise Invalid(f"{quote(written)}: {error}") from None
    if isinstance(target, Include):
        raise Invalid(f"{quote(written)}: files are included in alias files only")
    if isinstance(target, Special) and target.action is not Action.BLACKHOLE and count > 1:
        raise Invalid(f"{quote(written)} must be the only target")
    return target


def virtual(value: Any, reading: Reading, key: str) -> tuple[Alias | Rule, ...]:
    """[virtual]: address, @domain or pattern -> targets."""
    if not isinstance(value, dict):
        raise Invalid(
            f'{quote(value)} is not a table: write [virtual], and below it "info@example.org" = "alice"'
        )
    found: list[Alias | Rule] = []
    for name, raw in value.items():
        place = join_key(key, name)
        try:
            found.append(_entry(name, raw, reading, place))
        except Invalid as error:
            reading.problem(place, str(error))
    return tuple(found)


def _entry(name: str, value: Any, reading: Reading, key: str) -> Alias | Rule:
    source = reading.source(key)
    if value == []:
        raise Invalid("there are no targets: write :blackhole: for nowhere")
    if is_pattern(name):
        try:
            pattern = Pattern.parse(name)
        except PatternError as error:
            raise Invalid(str(error)) from None
        return Rule(pattern, _targets(value, reading, key, pattern.groups), source)
    try:
        address = Address("", parse_domain(name[1:])) if name.startswith("@") else Address.parse(name)
    except AddressError as error:
        raise Invalid(f"{error}: write an address, @ and a domain, or a pattern with groups") from None
    return Alias(address, targets(value, reading, key), reading.file, reading.lines.of(key))
