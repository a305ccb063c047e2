"""Reading the configuration again while the server runs: all of it, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from twisted.logger import Logger

from twisted_mta.config.diff import changes, keep, restart_needed
from twisted_mta.config.errors import ConfigErrors
from twisted_mta.config.loader import load_with_warnings
from twisted_mta.config.schema import Config
from twisted_mta.core.smtp.client import Login
from twisted_mta.core.values import value
from twisted_mta.net.dns import StubResolver
from twisted_mta.net.tls import ServerTls, TlsError
from twisted_mta.service.accounts import LoadedAccounts
from twisted_mta.service.checks import rules
from twisted_mta.service.listeners import Listeners, Serving
from twisted_mta.service.parts import Parts
from twisted_mta.service.settings import dns_servers, history_rules, smarthost_login, tls_options
from twisted_mta.service.watched import listed

log = Logger()

#: What stands in `mta status` until a reload succeeds.
REFUSED = "the last reload changed nothing"


@value(kw_only=True)
class Reloaded:
    """What a reload did."""

    #: Whether nothing was changed because something is wrong; `problems` says what.
    failed: bool = False
    problems: tuple[str, ...] = ()
    #: Paths of the keys that are different now.
    changed: tuple[str, ...] = ()
    #: Changed keys that wait for a restart, with the reason.
    restart: dict[str, str] = attrs.field(factory=dict)


@value(kw_only=True)
class Prepared:
    """A configuration that was read with everything it names, and can be put in force."""

    config: Config
    tls: ServerTls | None
    login: Login | None
    accounts: LoadedAccounts
    result: Reloaded


async def reload(serving: Serving, parts: Parts, listeners: Listeners) -> Reloaded:
    """Read the file that the running configuration came from, and put it in force. Never raises for what is in it."""
    prepared = await prepare(serving, parts)
    if isinstance(prepared, Prepared):
        put_in_force(prepared, serving, parts, listeners)
        return prepared.result
    parts.watch.refused = listed(REFUSED, prepared.problems)
    return prepared


async def prepare(serving: Serving, parts: Parts, text: str | None = None) -> Prepared | Reloaded:
    """Read everything and change nothing; a `Reloaded` tells what is wrong. `text` is what the file says, if that is known."""
    running = serving.config
    try:
        config, warnings = await parts.disk.run(load_with_warnings, running.path, text=text)
        tls = await parts.disk.run(tls_options, config)
        changed = changes(running, config)
        restart = restart_needed(changed)
        config = keep(running, config, restart)
        login = await parts.disk.run(smarthost_login, config.relay.smarthost)
        accounts = await parts.accounts.load(config)
    except ConfigErrors as error:
        return _failed([str(problem) for problem in error.problems])
    except (TlsError, OSError, UnicodeDecodeError) as error:
        return _failed([str(error)])
    broken = parts.accounts.broken_by(accounts)
    if broken:
        return _failed(broken)
    passed_over = [f"passed over: {problem}" for problem in accounts.problems]
    result = Reloaded(problems=(*map(str, warnings), *passed_over), changed=tuple(changed), restart=restart)
    return Prepared(config=config, tls=tls, login=login, accounts=accounts, result=result)


def put_in_force(prepared: Prepared, serving: Serving, parts: Parts, listeners: Listeners) -> None:
    """From now on."""
    config = prepared.config
    serving.config, serving.tls = config, prepared.tls
    parts.accounts.take(config, prepared.accounts)
    parts.watch.forget()
    parts.reception.rules = rules(
        config,
        parts.accounts.directory,
        parts.usage.meter,
        parts.alarms,
        parts.resolver,
        serving.reactor,
        parts.callouts,
    )
    parts.callouts.reconfigure(config.callout)
    shared = parts.place.share(config)
    for shard in parts.shards:
        shard.queue.reconfigure(shared.queue, shared.relay, shared.postmaster)
        shard.store.history = history_rules(shared.queue)
        shard.store.reconfigure(shared.limits.disk_reserve, shared.limits.memory)
    parts.outlets.reconfigure(shared)
    parts.smtp.set_login(prepared.login)
    parts.smtp.reconfigure(shared.relay)
    parts.tls.reconfigure(config)
    if isinstance(parts.resolver, StubResolver):  # a simulation has a DNS of its own
        parts.resolver.reconfigure(
            dns_servers(config.dns), config.dns.timeout, validating=config.dns.validating
        )
    listeners.reconfigure()
    tell(prepared.result)


def tell(result: Reloaded) -> None:
    """In the log."""
    log.info("configuration reloaded, changed: {changed}", changed=", ".join(result.changed) or "nothing")
    for key, reason in result.restart.items():
        log.warn("{key} takes effect when the server is restarted: {reason}", key=key, reason=reason)


def _failed(problems: Sequence[str]) -> Reloaded:
    for problem in problems:
        log.error("reload: {problem}", problem=problem)
    log.error("reload failed, the running configuration stays in force")
    return Reloaded(failed=True, problems=tuple(problems))
