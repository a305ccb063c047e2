"""Reading the configuration again while the server runs: all of it, or nothing at all."""

from __future__ import annotations

import attrs
from twisted.logger import Logger

from twisted_mta.config.diff import changes, restart_needed
from twisted_mta.config.errors import ConfigErrors
from twisted_mta.config.loader import load_with_warnings
from twisted_mta.config.schema import Config
from twisted_mta.net.dns import StubResolver
from twisted_mta.net.tls import TlsError
from twisted_mta.service.assembly import (
    Parts,
    dns_servers,
    history_rules,
    rules,
    smarthost_login,
    tls_options,
)
from twisted_mta.service.listeners import Listeners, Serving

log = Logger()


@attrs.frozen(kw_only=True)
class Reloaded:
    """What a reload did."""

    #: Whether nothing was changed because something is wrong; `problems` says what.
    failed: bool = False
    problems: tuple[str, ...] = ()
    #: Paths of the keys that are different now.
    changed: tuple[str, ...] = ()
    #: Changed keys that wait for a restart, with the reason.
    restart: dict[str, str] = attrs.field(factory=dict)


async def reload(serving: Serving, parts: Parts, listeners: Listeners) -> Reloaded:
    """Read the file that the running configuration came from, and put it in force. Never raises for what is in it."""
    running = serving.config
    try:
        config, warnings = await parts.disk.run(load_with_warnings, running.path)
        tls = await parts.disk.run(tls_options, config)
        changed = changes(running, config)
        restart = restart_needed(changed)
        config = _keep(running, config, restart)
        login = await parts.disk.run(smarthost_login, config.relay.smarthost)
        await parts.accounts.reload(config)
    except ConfigErrors as error:
        return _failed([str(problem) for problem in error.problems])
    except (TlsError, OSError, UnicodeDecodeError) as error:
        return _failed([str(error)])
    serving.config, serving.tls = config, tls
    parts.reception.rules = rules(
        config, parts.accounts.directory, parts.usage, parts.alarms, parts.resolver, serving.reactor
    )
    parts.queue.reconfigure(config.queue, config.relay, config.postmaster)
    parts.store.history = history_rules(config.queue)
    parts.store.reconfigure(config.limits.disk_reserve, config.limits.memory)
    parts.local.reconfigure(config.accounts.separator)
    parts.smtp.set_login(login)
    parts.smtp.reconfigure(config.relay)
    parts.tls.reconfigure(config)
    if isinstance(parts.resolver, StubResolver):  # a simulation has a DNS of its own
        parts.resolver.reconfigure(
            dns_servers(config.dns), config.dns.timeout, validating=config.dns.validating
        )
    listeners.reconfigure()
    log.info("configuration reloaded, changed: {changed}", changed=", ".join(changed) or "nothing")
    for key, reason in restart.items():
        log.warn("{key} takes effect when the server is restarted: {reason}", key=key, reason=reason)
    return Reloaded(problems=tuple(map(str, warnings)), changed=tuple(changed), restart=restart)


def _failed(problems: list[str]) -> Reloaded:
    for problem in problems:
        log.error("reload: {problem}", problem=problem)
    log.error("reload failed, the running configuration stays in force")
    return Reloaded(failed=True, problems=tuple(problems))


def _keep(running: Config, config: Config, keys: dict[str, str]) -> Config:
    """The new configuration with the old values of what only a restart can change."""
    return attrs.evolve(config, **{key: getattr(running, key) for key in keys})
