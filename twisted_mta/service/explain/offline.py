"""An explainer on the files alone, for when no server runs: the same code over parts that were made for the question.

What only a running server knows is left out: open connections, what accounts have sent of late, what is known of other hosts
and of their MTA-STS policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_mta.config.destinations import Destinations
from twisted_mta.config.handlers import left_out
from twisted_mta.config.loader import load
from twisted_mta.config.schema import Config
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, Transport
from twisted_mta.core.rates import Ledger
from twisted_mta.core.schedule import Schedule
from twisted_mta.core.values import value
from twisted_mta.delivery.callouts import Callouts
from twisted_mta.delivery.list import ListDelivery
from twisted_mta.delivery.local import LocalDelivery
from twisted_mta.delivery.settled import settled
from twisted_mta.delivery.tls_policy import TlsPolicies
from twisted_mta.delivery.tls_steps import TlsSteps
from twisted_mta.interfaces import IDelivery
from twisted_mta.net.commands import NoCommands
from twisted_mta.policy.rates import LocalMeter
from twisted_mta.service.checks import rules
from twisted_mta.service.explain.control import read_question
from twisted_mta.service.explain.explainer import Explainer
from twisted_mta.service.explain.rehearsal import NoQueue
from twisted_mta.service.incoming import Intake
from twisted_mta.service.outcomes import Judge, Outlook
from twisted_mta.service.outlets import Outlets
from twisted_mta.service.platform import Platform, real_platform, smtp_delivery
from twisted_mta.service.settings import smarthost_login
from twisted_mta.store.directory import load_directory
from twisted_mta.store.rules import load_rules
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.store.users import PasswdFile

_NOT_ASKED = (
    "the server was not asked: who is connected, how much accounts have sent, and what is known of other hosts and "
    "of their MTA-STS policies and addresses is left out"
)


@value
class _Queue:
    """The schedule of the configuration; nothing is known of any destination."""

    judge: Judge

    def outlook(self, message: QueuedMessage, recipient: QueuedRecipient) -> Outlook:
        """See Judge."""
        return self.judge.outlook(message, recipient)

    def shut(self, transport: Transport, destination: str) -> None:
        """None is."""

    def standing(self, transport: Transport, destination: str) -> None:
        """There is nothing to tell."""


def offline_explainer(config: Config, platform: Platform) -> Explainer:
    """Reads the files, blocking. Raises OSError where the accounts can't be read."""
    reactor, chance = platform.reactor, platform.chance
    workers = InlineWorkers()
    users = PasswdFile(config.accounts.file, config.domains[0], config.accounts.maildir)
    users.refresh()
    user_rules = load_rules(config.rules_directory, users.names())
    directory, problems = load_directory(config, users, user_rules.rules)
    warnings = [_NOT_ASKED, *users.problems, *map(str, problems), *user_rules.problems, *left_out(config)]
    try:
        login = smarthost_login(config.relay.smarthost)
    except OSError as error:
        warnings.append(f"the password for the smarthost can't be read: {error}")
        login = None
    resolver = platform.resolver(config.dns)
    steps = TlsSteps(TlsPolicies(resolver, None), platform.certificates, None)
    smtp = smtp_delivery(platform, config, resolver, workers, login, steps)
    local = LocalDelivery(
        directory,
        workers,
        hostname=config.hostname,
        started=reactor.seconds(),
    )
    outlets = Outlets(config, lambda: directory.handlers, workers, workers, platform.commands, reactor)
    deliveries: Mapping[Transport, IDelivery] = {
        Transport.LOCAL: local,
        Transport.LIST: ListDelivery(directory, lambda: "EXPLAINED", reactor, workers),
        Transport.SMTP: smtp,
        **settled(),
        **outlets.deliveries,
    }
    meter = LocalMeter(Ledger({}), reactor.seconds)  # nobody has sent anything
    callouts = Callouts(smtp.ask, None, workers, reactor, config.callout)
    checks = rules(config, directory, meter, lambda name, what: None, resolver, reactor, callouts)
    schedule = Schedule(config.queue.schedule, config.queue.expire, config.queue.warn_after)
    return Explainer(
        config=lambda: config,
        rules=lambda: checks,
        intake=Intake(
            queue=NoQueue(lambda octets: None),
            directory=directory,
            ids=lambda: "EXPLAINED",
            seconds=reactor.seconds,
        ),
        deliveries=deliveries,
        queue=_Queue(Judge(schedule, chance.random, Destinations(config.relay))),
        clock=reactor,
        workers=workers,
        tls=lambda: config.tls.certificate is not None,
        warnings=lambda: warnings,
    )


def explain_offline(path: Path, asked: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
    """The answers of the `explain` command to these arguments, without a server. Runs the reactor: once in a process.

    Raises ConfigErrors, OSError, ControlError.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    config = load(path)
    made = offline_explainer(config, real_platform(reactor, NoCommands()))
    questions = [read_question(arguments, config) for arguments in asked]
    results: list[Any] = []

    async def answers() -> Sequence[dict[str, Any]]:
        return [await made.explain(question) for question in questions]

    def done(result: Any) -> None:
        results.append(result)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(answers()).addBoth(done))
    reactor.run()
    if isinstance(results[0], Failure):
        results[0].raiseException()
    found: Sequence[dict[str, Any]] = results[0]
    return found
