"""What holds between [[domain]], [virtual] and the other keys."""

from __future__ import annotations

from twisted_mta.config.errors import quote
from twisted_mta.config.fields import Reading
from twisted_mta.config.lines import join_key
from twisted_mta.config.schema import Config, Domain
from twisted_mta.core.aliases import Alias

#: Keys of [[domain]] that mean nothing for a domain without users of its own.
_OF_USERS = ("aliases", "catch_all", "postmaster", "separator")


def check_domains(config: Config, reading: Reading) -> None:
    """Note what contradicts something else."""
    if reading.is_bad("domains", "domain"):
        return
    seen: dict[str, int] = {}
    for number, block in enumerate(config.domain_blocks, 1):
        key = f"domain[{number}]"
        if block.name in seen:
            reading.problem(
                f"{key}.name", f"{quote(block.name)} is the name of domain[{seen[block.name]}] too"
            )
        seen.setdefault(block.name, number)
        _check_block(block, key, config, reading)
    if not reading.is_bad("virtual"):
        _check_virtual(config, reading)


def _check_block(block: Domain, key: str, config: Config, reading: Reading) -> None:
    if not block.is_own and block.name in config.domains:
        reading.problem(f"{key}.name", f"{quote(block.name)} is in domains: its mail ends here")
    if block.alias_of and block.relay:
        reading.problem(f"{key}.relay", "alias_of says that its mail ends here")
    if block.alias_of and block.alias_of not in config.own_domains:
        reading.problem(
            f"{key}.alias_of",
            f"{quote(block.alias_of)} is no local domain; valid: {', '.join(config.own_domains)}",
        )
    if block.recipients is not None and not block.relay:
        reading.problem(f"{key}.recipients", "means something with relay = true only")
    if block.callout and not block.relay:
        reading.problem(f"{key}.callout", "means something with relay = true only")
    elif block.callout and block.recipients is not None:
        reading.problem(f"{key}.callout", "the list of recipients says who exists: there is nothing to ask")
    for name in _OF_USERS:
        given = getattr(block, name)
        if not block.is_own and given not in ((), None):
            why = f"of {quote(block.alias_of)} count" if block.alias_of else "are its own servers' to know"
            reading.problem(f"{key}.{name}", f"means nothing here: the addresses {why}")
    if block.message_size > config.limits.message_size:
        reading.problem(
            f"{key}.message_size",
            f"{block.message_size} is more than limits.message_size, {config.limits.message_size}",
        )


def _check_virtual(config: Config, reading: Reading) -> None:
    for entry in config.virtual:
        if isinstance(entry, Alias):
            domain = entry.name.domain
            name = str(entry.name) if entry.name.local else f"@{domain}"
        else:
            domain, name = entry.pattern.domain, entry.pattern.text
        if domain and not config.takes(domain):
            reading.problem(
                join_key("virtual", name),
                f"{quote(domain)} is no domain of ours, so nothing is ever looked up there; "
                f"valid: {', '.join(config.own_domains)}",
            )
