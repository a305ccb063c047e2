"""What a configuration says about receiving, as the checks that mail must pass."""

from __future__ import annotations

from typing import Any

from twisted_mta.config.schema import Config
from twisted_mta.delivery.callouts import Callouts
from twisted_mta.interfaces import IDirectory, IMailResolver, IPolicyCheck
from twisted_mta.policy.callout import CalloutCheck
from twisted_mta.policy.helo import HeloCheck
from twisted_mta.policy.rates import Alarm, Meter, RateCheck
from twisted_mta.policy.relay import LoopCheck, RecipientCheck, RelayCheck
from twisted_mta.policy.reverse_dns import ReverseDnsCheck
from twisted_mta.policy.submission import HeaderMender, SenderCheck, SenderRules
from twisted_mta.service.rules import Rules


def stranger_checks(config: Config, resolver: IMailResolver, clock: Any) -> tuple[IPolicyCheck, ...]:
    """The checks of what other mail servers are like."""
    trusted, checks = config.relay.networks, config.checks
    found: list[IPolicyCheck] = []
    if checks.helo != "off":
        found.append(HeloCheck(config.hostname, resolver, trusted, require=checks.helo == "require"))
    if checks.reverse_dns != "off":
        found.append(ReverseDnsCheck(resolver, clock, trusted, require=checks.reverse_dns == "require"))
    return tuple(found)


def rules(
    config: Config,
    directory: IDirectory,
    meter: Meter,
    alarm: Alarm,
    resolver: IMailResolver,
    clock: Any,
    callouts: Callouts,
) -> Rules:
    """What a configuration says about receiving."""
    senders = SenderRules(directory, config.submission.grants)
    checks: tuple[IPolicyCheck, ...] = (
        *((SenderCheck(senders),) if config.submission.check_sender else ()),
        RelayCheck(directory, config.relay.networks),
        RecipientCheck(directory),
        *_callout_checks(config, directory, callouts),
        LoopCheck(config.limits.received_headers),
        *stranger_checks(config, resolver, clock),
        RateCheck(
            meter=meter,
            account=config.submission.rates,
            domain=config.submission.domain,
            alarm=alarm,
        ),
    )
    mend = HeaderMender(hostname=config.hostname, directory=directory, rules=senders)
    return Rules(hostname=config.hostname, expire=config.queue.expire, checks=checks, mend=mend)


def _callout_checks(config: Config, directory: IDirectory, callouts: Callouts) -> tuple[IPolicyCheck, ...]:
    """None where nobody is to be asked: most servers."""
    if not any(block.callout for block in config.domain_blocks):
        return ()
    return (CalloutCheck(directory, callouts.verify, config.relay.networks),)
