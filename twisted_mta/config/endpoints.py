"""Endpoints of Twisted, as a listener names one."""

from __future__ import annotations

import re
from typing import Any

from twisted_mta.config.errors import Invalid, did_you_mean, quote
from twisted_mta.config.fields import (
    Reading,
    is_ip,
    text,
)

_FIELD_END = re.compile(r"(?<!\\):")


def endpoint(value: Any, reading: Reading, key: str) -> str:
    """A Twisted server endpoint string that a listener can use: tcp, tcp6, unix or systemd."""
    written = text(value, reading, key)
    kind, arguments, options = split_endpoint(written)
    example = {
        "tcp": '"tcp:25" or "tcp:25:interface=127.0.0.1"',
        "tcp6": r'"tcp6:25" or "tcp6:25:interface=\:\:1"',
        "unix": '"unix:/run/mta/smtp.sock"',
        "systemd": '"systemd:domain=INET:index=0" or "systemd:domain=INET:name=smtp"',
    }
    if kind == "ssl":
        raise Invalid(f'{quote(value)}: use "tcp:", the role decides about TLS (submissions, imaps, pop3s)')
    if kind not in example:
        raise Invalid(
            f"{quote(value)} is no endpoint{did_you_mean(kind, example) or ';'} "
            f"valid: tcp, tcp6, unix, systemd, such as {example['tcp']}"
        )
    known = {
        "tcp": {"port", "interface", "backlog"},
        "tcp6": {"port", "interface", "backlog"},
        "unix": {"address", "mode", "backlog", "lockfile"},
        "systemd": {"domain", "index", "name"},
    }[kind]
    for option in options:
        if option not in known:
            raise Invalid(f'{quote(value)}: "{option}" is no option of {kind}{did_you_mean(option, known)}')
    first = arguments[0] if arguments else options.get("port", options.get("address", ""))
    if kind in ("tcp", "tcp6") and not (re.fullmatch(r"[0-9]{1,5}", first) and int(first) < 65536):
        raise Invalid(f"{quote(value)} has no port: write {example[kind]}")
    if kind == "unix" and not first.startswith("/"):
        raise Invalid(f"{quote(value)} needs an absolute path: write {example[kind]}")
    if kind == "systemd" and not ("domain" in options and ("index" in options or "name" in options)):
        raise Invalid(f"{quote(value)} needs a domain and an index or a name: write {example[kind]}")
    if kind == "systemd" and options["domain"] not in ("INET", "INET6", "UNIX"):
        raise Invalid(f"{quote(value)}: the domain of a socket is INET, INET6 or UNIX")
    if kind == "systemd" and not re.fullmatch(r"[0-9]{1,4}", options.get("index", "0")):
        raise Invalid(f"{quote(value)}: index is the number of the socket, from 0")
    if kind == "systemd" and "index" in options and "name" in options:
        raise Invalid(f"{quote(value)} has both, an index and a name: one is enough")
    interface = options.get("interface", "")
    if interface and not is_ip(interface):
        raise Invalid(f"{quote(value)}: interface is an IP address of this machine, such as 127.0.0.1")
    return written


def split_endpoint(written: str) -> tuple[str, list[str], dict[str, str]]:
    r"""Take an endpoint string apart: (kind, positional arguments, options). A backslash keeps the next character."""
    fields = _FIELD_END.split(written)
    arguments: list[str] = []
    options: dict[str, str] = {}
    for field in fields[1:]:
        option, equals, value = field.partition("=")
        if equals:
            options[option] = _unescape(value)
        else:
            arguments.append(_unescape(field))
    return fields[0], arguments, options


def _unescape(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)
