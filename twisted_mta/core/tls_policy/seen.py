"""What TLS was like in the last session with each domain's hosts, so that a fall back to plaintext is not forgotten."""

from __future__ import annotations

import attrs

from twisted_mta.core.values import value


@value(kw_only=True)
class Sighting:
    """One session in which mail could be sent, or what kept it from that. Times are Unix seconds."""

    #: The policy domain.
    domain: str
    time: float
    host: str
    #: "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" in plaintext, and where there was no session.
    tls: str = ""
    #: What was asked of the host: `decision.Source`.
    source: str = "none"
    #: Whether its certificate proved something.
    verified: bool = False
    #: Why there was no TLS, or no session at all; "" if all went well.
    problem: str = ""
    #: Whether mail could be sent.
    usable: bool = True


@value(kw_only=True)
class Seen:
    """What is known of one domain: its last sighting, and what came before."""

    last: Sighting
    #: When a session had TLS for the last time, and when one had none; 0.0: never.
    tls_at: float = 0.0
    plaintext_at: float = 0.0
    #: Sessions in plaintext since the last one with TLS.
    plaintext_count: int = 0


def after(before: Seen | None, sighting: Sighting) -> Seen:
    """What is known after one more sighting."""
    seen = before or Seen(last=sighting)
    if not sighting.usable:
        return attrs.evolve(seen, last=sighting)
    if sighting.tls:
        return attrs.evolve(seen, last=sighting, tls_at=sighting.time, plaintext_count=0)
    return attrs.evolve(
        seen, last=sighting, plaintext_at=sighting.time, plaintext_count=seen.plaintext_count + 1
    )


def is_fall(before: Seen | None, sighting: Sighting) -> bool:
    """Whether a domain that had TLS has none now: for the log, once until it has TLS again."""
    lost = sighting.usable and not sighting.tls
    return lost and before is not None and before.tls_at > 0 and before.plaintext_count == 0
