"""What is known of others' TLS, for an administrator: the `tls.*` commands of the control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted_mta.core.tls_policy.cache import StsEntry
from twisted_mta.core.tls_policy.seen import Seen
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.service.control import ControlError, Handler

#: Domains listed at most.
MAX_LISTED = 100_000


def tls_handlers(memory: TlsMemory) -> Mapping[str, Handler]:
    """The handlers of the `tls.*` commands."""

    async def listing(arguments: Mapping[str, Any]) -> Any:
        limit, domain = arguments.get("limit", 1000), arguments.get("domain")
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LISTED:
            raise ControlError(f"the limit is 1 to {MAX_LISTED}")
        if domain is not None and not isinstance(domain, str):
            raise ControlError("the domain must be text")
        only_plaintext = arguments.get("plaintext") is True
        policies = {entry.domain: entry for entry in await memory.policies()}
        seen = {one.last.domain: one for one in await memory.sightings(MAX_LISTED)}
        now = memory.seconds()
        names = [*seen, *(name for name in policies if name not in seen)]
        found = [
            describe(name, seen.get(name), policies.get(name), now)
            for name in names
            if domain is None or name == domain.lower()
        ]
        if only_plaintext:
            found = [each for each in found if each["plaintext_at"] and not each["tls"]]
        return {"domains": found[:limit], "more": max(0, len(found) - limit)}

    return {"tls.list": listing}


def describe(domain: str, seen: Seen | None, entry: StsEntry | None, now: float) -> dict[str, Any]:
    """A domain as JSON. Times are Unix seconds, 0.0 for never; `policy` null without an MTA-STS policy in force."""
    policy = entry.in_force(now) if entry is not None else None
    last = seen.last if seen is not None else None
    return {
        "domain": domain,
        "seen_at": last.time if last else 0.0,
        "host": last.host if last else "",
        "tls": last.tls if last else "",
        "verified": last.verified if last else False,
        "source": last.source if last else "none",
        "problem": last.problem if last else "",
        "usable": last.usable if last else True,
        "tls_at": seen.tls_at if seen else 0.0,
        "plaintext_at": seen.plaintext_at if seen else 0.0,
        "plaintext_count": seen.plaintext_count if seen else 0,
        "policy": None
        if policy is None or entry is None
        else {
            "mode": policy.mode.value,
            "id": entry.id,
            "mx": list(policy.mx),
            "fetched": entry.fetched,
            "expires": entry.expires,
        },
        "policy_problem": entry.problem if entry is not None else "",
    }
