"""`mta tls`: which TLS other domains have and demand, as the running server knows it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from twisted_mta.admin.client import call
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import CONTROL
from twisted_mta.core.schedule import format_duration


def show(options: argparse.Namespace) -> int:
    """mta tls [DOMAIN] [--plaintext]"""
    result = call(
        load_data_directory(config_path(options)) / CONTROL,
        "tls.list",
        {"limit": options.limit, "domain": options.domain, "plaintext": options.plaintext},
    )
    if options.json:
        print(json.dumps(result))
    else:
        for line in lines(result, time.time()):
            print(line)
    return 0


def lines(result: Mapping[str, Any], now: float) -> Iterator[str]:
    """For people: what there was last, and below it the policy and the problems."""
    if not result["domains"]:
        yield "No mail has gone to other domains yet, or none that this asks for."
    for each in result["domains"]:
        yield f"{each['domain']}: {_last(each, now)}"
        for line in _details(each, now):
            yield f"    {line}"
    if result["more"]:
        yield f"and {result['more']} more (see --limit)"


def _last(each: Mapping[str, Any], now: float) -> str:
    if not each["seen_at"]:
        return "no session yet"
    ago = f"{format_duration(max(0.0, now - each['seen_at']))} ago, {_visible(each['host'])}"
    if not each["usable"]:
        return f"no mail could be sent ({ago})"
    if not each["tls"]:
        return f"PLAINTEXT ({ago})"
    return f"{each['tls']}, {'proven by ' + _PROOFS[each['source']] if each['verified'] else 'not proven'} ({ago})"


_PROOFS = {
    "pin": "what the configuration requires",
    "dane": "DANE",
    "sts": "MTA-STS",
    "requiretls": "REQUIRETLS",
    "none": "its certificate",
}


def _details(each: Mapping[str, Any], now: float) -> Iterator[str]:
    if each["plaintext_count"] and each["tls_at"]:
        since = format_duration(max(0.0, now - each["tls_at"]))
        yield f"had TLS until {since} ago; {each['plaintext_count']} sessions in plaintext since"
    if each["problem"]:
        yield f"because: {_visible(each['problem'])}"
    policy = each["policy"]
    if policy is not None:
        left = format_duration(max(0.0, policy["expires"] - now))
        hosts = _visible(", ".join(policy["mx"]) or "no hosts")
        yield f"MTA-STS: {policy['mode']}, id {policy['id']}, for {left} more: {hosts}"
    if each["policy_problem"]:
        yield f"MTA-STS could not be fetched: {_visible(each['policy_problem'])}"


def _visible(text: str) -> str:
    """What others wrote must not move the administrator's cursor."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
