"""The explainer of a running server: asks its very parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted_mta.config.schema import Role
from twisted_mta.service.explain.explainer import Explainer
from twisted_mta.service.listeners import Serving
from twisted_mta.service.parts import Parts


def explainer(
    parts: Parts, reactor: Any, serving: Callable[[], Serving], admission: Callable[[str, Role], str]
) -> Explainer:
    """`serving` gives what is in force; `admission` tells why a client would not be let in."""
    return Explainer(
        config=lambda: serving().config,
        rules=lambda: parts.reception.rules,
        intake=parts.reception.intake,
        deliveries=parts.deliveries,
        queue=parts.queue,
        clock=reactor,
        workers=parts.disk,
        admission=admission,
        tls=lambda: serving().tls is not None,
        warnings=parts.warnings,
    )
