"""The queue's recipients for those of an envelope."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.expand.lookup import Lookups, is_elsewhere, too_large
from twisted_mta.core.expand.plan import Destination, Problem
from twisted_mta.core.expand.walk import expand, place
from twisted_mta.core.lists import MailingList
from twisted_mta.core.queue import NewRecipient, Transport
from twisted_mta.core.values import value


@value
class Routed:
    """What recipients of an envelope become. `problems` are for the log: each of them is also in `recipients`, as one that
    delivery will refuse, so that the sender is told the usual way."""

    recipients: tuple[NewRecipient, ...]
    problems: tuple[Problem, ...]


def route(recipients: Iterable[Recipient], directory: Lookups, size: int = 0) -> Routed:
    """Expand the recipients of a message for the queue. A place that several of them lead to gets one copy.

    `size`: the octets of the message, for domains that take only so many; 0 goes everywhere.
    """
    directory = directory.snapshot()
    routed: dict[object, NewRecipient] = {}
    problems: list[Problem] = []
    for recipient in recipients:
        found, wrong = _destinations(recipient.address, directory, size)
        problems += wrong
        for new in _places(recipient, (*found, *map(_refused, wrong)) if wrong else found):
            key = place(new.address, new.transport, new.target)
            known = routed.get(key)
            routed[key] = new if known is None else _merged(known, new)
    return Routed(tuple(routed.values()), tuple(problems))


def _destinations(
    address: Address, directory: Lookups, size: int
) -> tuple[Sequence[Destination], Sequence[Problem]]:
    large = too_large(address, size, directory)
    if large is not None:
        return (), (large,)
    if is_elsewhere(address, directory):
        return (Destination(address, Transport.SMTP, address),), ()
    if directory.is_mailbox(address):
        return (Destination(address, Transport.LOCAL, address),), ()
    plan = expand(address, directory)
    return plan.recipients, plan.problems


def _refused(problem: Problem) -> Destination:
    """A destination that refuses, with the problem's words."""
    text, address = str(problem.reply), problem.address
    return Destination(address, Transport.REFUSE, address, target=text, sender=problem.sender)


def _places(recipient: Recipient, found: Sequence[Destination]) -> Iterable[NewRecipient]:
    """One recipient as the queue gets it."""
    notify, orcpt = recipient.notify, recipient.orcpt
    copies = sum(one.transport is not Transport.VACATION for one in found)
    several = copies > 1 or any(one.sender is not None for one in found)
    if several and Notify.SUCCESS in notify:
        # RFC 3461 §5.2.7.3 (c): "expanded" is the success of the alias.
        notify &= ~Notify.SUCCESS
        yield NewRecipient(recipient.address, Transport.ALIAS, recipient.address, Notify.SUCCESS, orcpt)
    for one in found:
        if one.transport is Transport.VACATION:
            # Nobody is told of what is no copy.
            yield NewRecipient(one.address, one.transport, recipient.address, Notify.NEVER, via=one.via)
            continue
        yield NewRecipient(
            one.address,
            one.transport,
            recipient.address,
            # RFC 3461 §5.2.7.1 (b): with another sender what the first one asked for goes no further; the owner hears
            # of failures, and of nothing else.
            notify if one.sender is None else Notify.FAILURE,
            orcpt if one.sender is None else "",
            via=one.via,
            target=one.target,
            sender=one.sender,
        )


def _merged(known: NewRecipient, other: NewRecipient) -> NewRecipient:
    """One copy for two recipients that lead to one place: the sender hears all that was asked for about either.

    It is told of the first of them that it wanted to hear of at all. A copy under its own name comes before one under
    that of an alias's owner, who did not ask for anything.
    """
    if (known.sender is None) != (other.sender is None):
        return known if known.sender is None else other
    named = other if known.notify == Notify.NEVER else known
    notify = known.notify | other.notify
    if known.notify != other.notify:
        notify &= ~Notify.UNSAID  # one of them was said
    return attrs.evolve(named, notify=notify)


def members(settings: MailingList, directory: Lookups) -> Routed:
    """Who gets the posts of a list: each place once, the list itself left out.

    RFC 3461 §5.2.7.1 (b): what the author asked for with NOTIFY and ORCPT does not reach the members; the owner hears of
    failures, and of nothing else.
    """
    return without_list(
        settings, route((Recipient(member, Notify.FAILURE) for member in settings.members), directory)
    )


def without_list(settings: MailingList, routed: Routed) -> Routed:
    """The same without what leads back to a list."""
    ours = settings.address.folded
    kept = (
        one for one in routed.recipients if one.transport is not Transport.LIST or one.address.folded != ours
    )
    return Routed(tuple(kept), routed.problems)


def posters(settings: MailingList, directory: Lookups) -> frozenset[str]:
    """The folded addresses of the members of a list: as written in it, those that they lead to, and where these have
    their mail sent on to."""
    snapshot = directory.snapshot()
    found = [one.address for one in members(settings, snapshot).recipients]
    for member in settings.members:
        found += [one.address for one in expand(member, snapshot, rules=False).recipients]
    return frozenset(address.folded for address in (*settings.members, *found))
