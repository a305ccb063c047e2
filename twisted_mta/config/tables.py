"""Which keys each table of the file has, and how each is read: the schema's classes, field by field.

Defaults live in the schema. What the schema can't know (they depend on other keys) is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from twisted_mta.config import addresses, fields, schema
from twisted_mta.config.endpoints import endpoint
from twisted_mta.config.errors import Invalid, did_you_mean, quote
from twisted_mta.config.fields import PLACEHOLDER, Reader, Reading
from twisted_mta.config.lines import join_key
from twisted_mta.core.address import Address
from twisted_mta.core.sasl.scram import MAX_ITERATIONS, MIN_ITERATIONS
from twisted_mta.core.srs import DAY, MAX_EXPIRE

C = TypeVar("C")

#: Where the field of the schema has another name than the key of the file.
KEYS = {
    "domain_blocks": "domain",
    "lists": "list",
    "grants": "grant",
    "overrides": "domain",
    "sources": "source",
}

DEFAULT_DATA = "/var/lib/mta"
DEFAULT_ACCOUNTS_FILE = "users"
#: Below the data directory.
DEFAULT_MAILDIR = "mail/{domain}/{local}"

LISTEN: Mapping[str, Reader[Any]] = {
    "role": fields.role,
    "endpoint": endpoint,
    "proxy": fields.boolean,
    "proxy_networks": fields.array(fields.proxy_network),
}
CERTIFICATE: Mapping[str, Reader[Any]] = {"certificate": fields.path, "key": fields.path}
ACCOUNTS: Mapping[str, Reader[Any]] = {
    "file": fields.path,
    "maildir": fields.template,
    "separator": fields.separator,
    "scram": fields.choice("auto", "always", "never"),
    "scram_iterations": fields.integer(MIN_ITERATIONS, MAX_ITERATIONS),
    "remember_logins": fields.duration(0, 86400),
}
LIST: Mapping[str, Reader[Any]] = {
    "address": fields.address,
    "members": fields.array(fields.address),
    "owner": fields.address,
    "description": fields.text,
    "members_only": fields.boolean,
    "verp": fields.boolean,
}
ROUTE: Mapping[str, Reader[Any]] = {
    "host": fields.text,
    "port": fields.integer(1, 65535),
    "mx": fields.boolean,
    "username": fields.text,
    "password_file": fields.path,
}
DOMAIN: Mapping[str, Reader[Any]] = {
    "name": fields.domain_pattern,
    "alias_of": addresses.domain_or_none,
    "relay": fields.boolean,
    "recipients": fields.path,
    "callout": fields.boolean,
    "aliases": fields.array(fields.path),
    "catch_all": addresses.targets,
    "postmaster": fields.address,
    "separator": fields.separator,
    "message_size": addresses.size_or_none,
}
QUEUE: Mapping[str, Reader[Any]] = {
    "schedule": fields.schedule,
    "expire": fields.duration(60),
    "warn_after": fields.duration(),
    "double_bounces": fields.choice("postmaster", "drop"),
    "bounce_quote": fields.size(),
    "active": fields.integer(1, 1_000_000),
    "straight": fields.boolean,
    "history": fields.duration(),
    "history_limit": fields.integer(0, 1_000_000_000),
    "transcripts": fields.integer(0, 100),
}
_AUDIENCE = fields.choice("nobody", "logged-in", "trusted", "anyone")
LIMITS: Mapping[str, Reader[Any]] = {
    "message_size": fields.size(65536),  # RFC 5321 §4.5.3.1.7
    "recipients": fields.integer(100, 1_000_000),  # RFC 5321 §4.5.3.1.8
    "messages": fields.integer(0, 1_000_000),
    "errors": fields.integer(1, 100_000),
    "idle_commands": fields.integer(20, 1_000_000),
    "refused_recipients": fields.integer(0, 1_000_000),
    "received_headers": fields.integer(10, 1000),
    "connections": fields.integer(1, 1_000_000),
    "connections_per_address": fields.integer(1, 1_000_000),
    "connections_per_network": fields.integer(1, 1_000_000),
    "connections_share": fields.integer(0, 20),  # there are five services
    "exempt_networks": fields.array(fields.client_network),
    "connection_rate": fields.integer(0, 1_000_000),
    "greeting_delay": fields.duration(0, 60),  # RFC 5321 §4.5.3.2.1: clients wait for five minutes
    "login_failures": fields.integer(1, 1_000_000),
    "smtp_timeout": fields.duration(1),
    "data_timeout": fields.duration(1),
    "message_time": fields.duration(1),
    "handshake_timeout": fields.duration(1),
    "login_timeout": fields.duration(1),
    "pop3_timeout": fields.duration(1),
    "imap_timeout": fields.duration(1),
    "bare_newlines": fields.choice("refuse", "normalise"),
    "vrfy": _AUDIENCE,
    "expn": _AUDIENCE,
    "deliver_by_minimum": fields.duration(0, 999_999_999),  # RFC 2852 §2: nine digits
    "hold": fields.duration(0, 366 * 86400),
    "disk_reserve": fields.size(),
    "memory": fields.size(1 << 20),
}
_MODE = fields.choice("off", "log", "require")
CHECKS: Mapping[str, Reader[Any]] = {"reverse_dns": _MODE, "helo": _MODE}
RATES: Mapping[str, Reader[Any]] = {
    "messages_per_hour": fields.integer(0, 1_000_000_000),
    "recipients_per_hour": fields.integer(0, 1_000_000_000),
    "messages_per_day": fields.integer(0, 1_000_000_000),
    "recipients_per_day": fields.integer(0, 1_000_000_000),
}
GRANT: Mapping[str, Reader[Any]] = {
    "account": fields.address,
    "addresses": fields.array(fields.address_or_domain, at_least=1),
}
CALLOUT: Mapping[str, Reader[Any]] = {
    "known": fields.duration(60),
    "unknown": fields.duration(),
    "remember": fields.duration(),
    "timeout": fields.duration(1, 240),  # RFC 5321 §4.5.3.2.3: clients wait for five minutes
    "unanswered": fields.choice("defer", "accept"),
}
DNS: Mapping[str, Reader[Any]] = {
    "servers": fields.array(fields.dns_server),
    "timeout": fields.duration(0.1),
    "validating": fields.boolean,
}

FORWARD: Mapping[str, Reader[Any]] = {
    "srs": fields.boolean,
    "srs_domain": fields.domain,
    "srs_secret_file": fields.path,
    "srs_expire": fields.duration(DAY, MAX_EXPIRE),
    "srs_bounces_only": fields.boolean,
    "not_if_header": fields.array(fields.header_test),
    "instead": fields.choice("keep", "refuse"),
}
RULES: Mapping[str, Reader[Any]] = {
    "address": fields.address,
    "forwards": fields.integer(0, 100),
    "addresses": fields.integer(0, 100),
    "text": fields.integer(0, 100_000),
}
TLS_REPORTS: Mapping[str, Reader[Any]] = {
    "enabled": fields.boolean,
    "contact": fields.address,
    "organization": fields.text,
}


def table(
    cls: Callable[..., C],
    readers: Mapping[str, Reader[Any]],
    defaults: Mapping[str, Any],
    value: Any,
    reading: Reading,
    key: str,
) -> C:
    """Read one table into its class. Wrong and missing keys are noted, and `defaults` or the schema's stand in.

    Raises Invalid when it is no table, or when a key is missing or wrong that nothing can stand in for.
    """
    if not isinstance(value, dict):
        array, entry, _ = key.rpartition("[")  # "list[2]" is one of several
        header = f"[[{array}]]" if entry else f"[{key}]"
        raise Invalid(
            f"{quote(value)} is not a table: write {header} on a line of its own, and the keys below"
        )
    values = dict(defaults)
    values.update(read_keys(readers, value, reading, key))
    described: Any = cls
    for field in attrs.fields(described):
        if field.name in readers and field.name not in values and field.default is attrs.NOTHING:
            name = KEYS.get(field.name, field.name)
            if name not in value:
                raise Invalid(f'"{name}" is missing')
            raise _Unusable
    return cls(**values)


class _Unusable(Invalid):
    """What is wrong with the table has been noted already."""


def read_keys(
    readers: Mapping[str, Reader[Any]], value: Mapping[str, Any], reading: Reading, key: str
) -> dict[str, Any]:
    """The fields that the file gives and that could be read; the others are noted."""
    values: dict[str, Any] = {}
    names = {KEYS.get(field, field): field for field in readers}
    for name, raw in value.items():
        place = join_key(key, name)
        if name not in names:
            reading.problem(place, f"unknown key{_unknown(name, names, key)}")
            continue
        try:
            values[names[name]] = readers[names[name]](raw, reading, place)
        except _Unusable:
            continue
        except Invalid as error:
            reading.problem(place, str(error))
    return values


def _unknown(name: str, names: Mapping[str, str], key: str) -> str:
    """What may have been meant by an unknown key: a similar one here, or one of another table."""
    if hint := did_you_mean(name, names):
        return hint
    home = next((home for home, keys in _HOMES.items() if name in keys and home != key), None)
    if home is not None:
        return f"; it belongs {'above the first table' if not home else f'in [{home}]'}"
    return f"; valid: {', '.join(names)}"


def route(value: Any, reading: Reading, key: str) -> schema.Route:
    """ "host", "host:port" or a table {host = ..., port = ..., mx = true}."""
    if isinstance(value, str):
        host, port = fields.host_and_port(value, 25)
        return schema.Route(host=host, port=port)
    if not isinstance(value, dict):
        raise Invalid(
            f'{quote(value)} is no route: write "host:port", or {{ host = "example.org", mx = true }}'
        )
    found = table(schema.Route, ROUTE, {}, value, reading, key)
    try:
        host, port = fields.host_and_port(found.host, found.port)
    except Invalid as error:
        reading.problem(join_key(key, "host"), str(error))
        raise _Unusable from None
    if "port" in value and port != found.port:
        reading.problem(join_key(key, "port"), f"{found.port} contradicts the port in {quote(found.host)}")
    if bool(found.username) != (found.password_file is not None):
        missing = "password_file" if found.username else "username"
        reading.problem(key, f'to log in there "{missing}" is needed too')
    return attrs.evolve(found, host=host, port=port)


def routes(value: Any, reading: Reading, key: str) -> dict[str, schema.Route]:
    """Domain, or ".domain" for its subdomains -> route."""
    if not isinstance(value, dict):
        raise Invalid(
            f'{quote(value)} is not a table: write [relay.routes], and below it "example.org" = "host:25"'
        )
    found: dict[str, schema.Route] = {}
    for name, raw in value.items():
        if isinstance(raw, dict) and ("username" in raw or "password_file" in raw):
            reading.problem(join_key(key, name), "a login is possible at the smarthost only, not on a route")
        place = join_key(key, name)
        try:
            found[fields.domain_pattern(name, reading, place)] = route(raw, reading, place)
        except _Unusable:
            continue
        except Invalid as error:
            reading.problem(place, str(error))
    return found


def _domain(value: Any, reading: Reading, key: str) -> schema.Domain:
    found = table(schema.Domain, DOMAIN, {}, value, reading, key)
    return attrs.evolve(found, source=reading.source(key))


def _listen(value: Any, reading: Reading, key: str) -> schema.Listen:
    return table(schema.Listen, LISTEN, {}, value, reading, key)


def _tables(read: Reader[C]) -> Reader[tuple[C, ...]]:
    """An array of tables; those that can't be used are noted and left out."""

    def read_all(value: Any, reading: Reading, key: str) -> tuple[C, ...]:
        if not isinstance(value, list):
            raise Invalid(f"there may be several: write [[{key}]] with two brackets")
        found: list[C] = []
        for number, entry in enumerate(value, 1):
            place = f"{key}[{number}]"
            try:
                found.append(read(entry, reading, place))
            except _Unusable:
                continue
            except Invalid as error:
                reading.problem(place, str(error))
        return tuple(found)

    return read_all


TLS: Mapping[str, Reader[Any]] = {
    **CERTIFICATE,
    "minimum": fields.choice("1.2", "1.3"),
    "sni": _tables(partial(table, schema.Certificate, CERTIFICATE, {})),
}
#: The keys of [relay] that [[relay.domain]] has too.
_SENDING: Mapping[str, Reader[Any]] = {
    "concurrency": fields.integer(1, 10_000),
    "rate": fields.integer(0, 1_000_000),
    "max_messages": fields.integer(1, 1_000_000),
    "max_recipients": fields.integer(1, 100_000),
    "connect_timeout": fields.duration(1, 300),
    "bind": fields.bind_addresses,
}
RELAY_DOMAIN: Mapping[str, Reader[Any]] = {
    "names": fields.array(fields.domain_pattern, at_least=1),
    **_SENDING,
    "schedule": fields.schedule,
    "expire": fields.duration(60),
    "require": fields.require,
    "hosts": fields.array(fields.host_pattern),
}
RELAY_SOURCE: Mapping[str, Reader[Any]] = {
    "senders": fields.array(fields.domain_pattern, at_least=1),
    "bind": fields.bind_addresses,
    "helo": fields.hostname,
}
RELAY_TIMEOUTS: Mapping[str, Reader[Any]] = dict.fromkeys(
    ("greeting", "command", "data", "block", "final"), fields.duration(1, 86400)
)
RELAY: Mapping[str, Reader[Any]] = {
    "networks": fields.array(fields.network),
    "xclient_networks": fields.array(fields.proxy_network),
    "smarthost": route,
    "routes": routes,
    "port": fields.integer(1, 65535),
    **_SENDING,
    "keep_open": fields.duration(),
    "chunking": fields.boolean,
    "eightbit": fields.choice("convert", "bounce", "send"),
    "families": fields.array(fields.choice("ipv4", "ipv6"), at_least=1),
    "mta_sts": fields.boolean,
    "dane": fields.boolean,
    "own_addresses": fields.array(fields.ip_address),
    "timeouts": partial(table, schema.RelayTimeouts, RELAY_TIMEOUTS, {}),
    "overrides": _tables(partial(table, schema.RelayDomain, RELAY_DOMAIN, {})),
    "sources": _tables(partial(table, schema.RelaySource, RELAY_SOURCE, {})),
}
SUBMISSION: Mapping[str, Reader[Any]] = {
    "check_sender": fields.boolean,
    **RATES,
    "domain": partial(table, schema.Rates, RATES, {}),
    "grants": _tables(partial(table, schema.Grant, GRANT, {})),
}

COMMANDS: Mapping[str, Reader[Any]] = {
    "user": fields.name,
    "directory": fields.path,
    "timeout": fields.duration(1, 86400),
    "concurrency": fields.integer(1, 1000),
    "shell": fields.boolean,
    "path": fields.text,
}
DELIVERY: Mapping[str, Reader[Any]] = {
    "files": fields.array(fields.root),
    "command": partial(table, schema.Commands, COMMANDS, {}),
}
HANDLERS: Mapping[str, Reader[Any]] = {
    "modules": fields.array(fields.module),
    "path": fields.array(fields.path),
    "concurrency": fields.integer(1, 1000),
    "timeout": fields.duration(0.1, 3600),
}

#: The keys of the file above all tables, those read first in front.
TOP: Mapping[str, Reader[Any]] = {
    "hostname": fields.hostname,
    "domains": fields.array(fields.domain, at_least=1),
    "data": fields.path,
    "postmaster": fields.address,
    "user": fields.name,
    "group": fields.name,
    "workers": fields.workers,
    "greeting": fields.ascii_text,
    "help": fields.ascii_text,
    "log_format": fields.choice("plain", "json"),
    "aliases": fields.array(fields.path),
    "domain_blocks": _tables(_domain),
    "virtual": addresses.virtual,
    "listen": _tables(_listen),
    "tls": partial(table, schema.Tls, TLS, {}),
    "queue": partial(table, schema.Queue, QUEUE, {}),
    "limits": partial(table, schema.Limits, LIMITS, {}),
    "submission": partial(table, schema.Submission, SUBMISSION, {}),
    "forward": partial(table, schema.Forward, FORWARD, {}),
    "rules": partial(table, schema.UserRules, RULES, {}),
    "checks": partial(table, schema.Checks, CHECKS, {}),
    "delivery": partial(table, schema.Delivery, DELIVERY, {}),
    "handlers": partial(table, schema.Handlers, HANDLERS, {}),
    "callout": partial(table, schema.Callout, CALLOUT, {}),
    "dns": partial(table, schema.Dns, DNS, {}),
    "tls_reports": partial(table, schema.TlsReports, TLS_REPORTS, {}),
    "relay": partial(table, schema.Relay, RELAY, {}),
}

#: The keys of the tables that exist once, for hints about misplaced ones.
_HOMES: Mapping[str, Mapping[str, Any]] = {
    "": TOP,
    "tls": TLS,
    "accounts": ACCOUNTS,
    "queue": QUEUE,
    "limits": LIMITS,
    "submission": SUBMISSION,
    "forward": FORWARD,
    "rules": RULES,
    "checks": CHECKS,
    "delivery": DELIVERY,
    "delivery.command": COMMANDS,
    "handlers": HANDLERS,
    "callout": CALLOUT,
    "dns": DNS,
    "tls_reports": TLS_REPORTS,
    "relay": RELAY,
}


def data_directory(value: Mapping[str, Any], reading: Reading) -> Path:
    """Only the data directory of the whole file."""
    given = {name: raw for name, raw in value.items() if name == "data"}
    found: Path = read_keys({"data": TOP["data"]}, given, reading, "").get("data", Path(DEFAULT_DATA))
    return found


def config(value: dict[str, Any], reading: Reading, path: Path) -> schema.Config:
    """Read the whole file. Always gives something: what is wrong is noted, and placeholders stand in for it."""
    found: dict[str, Any] = {}

    def read(readers: Mapping[str, Reader[Any]], *names: str) -> None:
        found.update(read_keys(readers, {name: value[name] for name in names if name in value}, reading, ""))

    read(TOP, "domains")
    if found.get("domains"):
        reading.domain = found["domains"][0]
    read({**TOP, **_DEPENDENT}, *(name for name in value if name not in ("domains", "accounts", "list")))
    for name, message in _MISSING.items():
        if name not in value:
            reading.problem(name, message)
    stand_ins: dict[str, Any] = {
        "hostname": PLACEHOLDER,
        "domains": (),
        "postmaster": Address("postmaster", reading.domain),
        "listen": (),
        "data": Path(DEFAULT_DATA),
    }
    found = stand_ins | found
    accounts: dict[str, Any] = {
        "file": reading.base / DEFAULT_ACCOUNTS_FILE,
        "maildir": str(found["data"] / DEFAULT_MAILDIR),
    }
    found["accounts"] = schema.Accounts(**accounts)
    read({"accounts": partial(table, schema.Accounts, ACCOUNTS, accounts)}, "accounts")
    mailing_list = partial(table, schema.MailingList, LIST, {"owner": found["postmaster"]})
    read({"lists": _tables(mailing_list)}, "list")
    return schema.Config(path=path, **found)


def _elsewhere(value: Any, reading: Reading, key: str) -> Any:
    raise AssertionError(f"{key} is read on its own")


#: Keys that are known, but read after those they depend on.
_DEPENDENT: Mapping[str, Reader[Any]] = {"accounts": _elsewhere, "lists": _elsewhere}

_MISSING = {
    "hostname": 'missing: the full name of this machine, such as hostname = "mail.example.org"',
    "domains": 'missing: the domains whose mail ends here, such as domains = ["example.org"]',
    "postmaster": 'missing: who gets mail to the postmaster, such as postmaster = "alice"',
    "listen": 'missing: without [[listen]] the server would do nothing; write [[listen]], role = "mx", endpoint = "tcp:25"',
}
