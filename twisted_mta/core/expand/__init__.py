"""Where mail for an address goes: a pure function of the address and a directory.

`plan` is the answer, with the tree of steps that led there; `lookup` says what one address is; `walk` follows it through
aliases; `routing` makes the queue's recipients of it.
"""

from twisted_mta.core.expand.lookup import (
    ROLES,
    Lookups,
    canonical,
    home,
    is_relayed,
    leads_to_mailbox,
    resolves,
    too_large,
)
from twisted_mta.core.expand.plan import Destination, Kind, Plan, Problem, Step, render
from twisted_mta.core.expand.routing import Routed, members, posters, route, without_list
from twisted_mta.core.expand.walk import MAX_DEPTH, MAX_RECIPIENTS, MAX_STEPS, expand

__all__ = [
    "MAX_DEPTH",
    "MAX_RECIPIENTS",
    "MAX_STEPS",
    "ROLES",
    "Destination",
    "Kind",
    "Lookups",
    "Plan",
    "Problem",
    "Routed",
    "Step",
    "canonical",
    "expand",
    "home",
    "is_relayed",
    "leads_to_mailbox",
    "members",
    "posters",
    "render",
    "resolves",
    "route",
    "too_large",
    "without_list",
]
