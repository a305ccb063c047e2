"""What callouts found, for an administrator: the `callout.*` commands of the control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted_mta.core.address import Address, AddressError, parse_domain
from twisted_mta.delivery.callouts import Callouts
from twisted_mta.service.control import ControlError, Handler

#: Addresses listed at most.
MAX_LISTED = 100_000


def callout_handlers(callouts: Callouts) -> Mapping[str, Handler]:
    """`callout.list` {"limit"} -> {"words": [{"address", "exists", "time", "remote", "text"}]}, the latest first;
    `callout.forget` {"address": an address, or "@domain"} -> {"forgotten": how many}."""

    async def listing(arguments: Mapping[str, Any]) -> Any:
        limit = arguments.get("limit", 1000)
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LISTED:
            raise ControlError(f"the limit is 1 to {MAX_LISTED}")
        words = [
            {
                "address": address,
                "exists": word.exists,
                "time": word.time,
                "remote": word.remote,
                "text": word.text,
            }
            for address, word in await callouts.words(limit)
        ]
        return {"words": words}

    async def forget(arguments: Mapping[str, Any]) -> Any:
        return {"forgotten": await callouts.forget(_folded(arguments.get("address")))}

    return {"callout.list": listing, "callout.forget": forget}


def _folded(text: object) -> str:
    """The address as it is remembered, or "@domain". Raises ControlError."""
    try:
        if not isinstance(text, str):
            raise ControlError("the address is missing")
        return f"@{parse_domain(text[1:])}" if text.startswith("@") else Address.parse(text).folded
    except AddressError as error:
        raise ControlError(f"{text!r} is no address, and no @domain: {error}") from None
