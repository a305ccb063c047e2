"""`mta simulate` foretells what the whole server does: the same attempts, at the same times, with the same end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.conditions import Condition, Conditions, Kind
from twisted_mta.service.simulation.run import Arrival, Setup, Simulation
from twisted_mta.service.simulation.timeline import What
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import BEGIN, World

HOUR, DAY = 3600.0, 86400.0
MESSAGE = b"From: alice@example.test\r\nSubject: hello\r\n\r\nbody\r\n"
CONFIG = '\n[relay]\nnetworks = ["127.0.0.0/8"]\n[queue]\nschedule = "20m, 1h*2, 3h"\nexpire = "2d"\nwarn_after = "4h"\n'
ADDRESS = "192.0.2.1"
CAROL = "carol@example.org"

#: When the next attempt is due, or None at the end; and the notifications so far.
Steps = list[tuple[float | None, int]]


def in_the_world(kind: Kind, seconds: float) -> tuple[Steps, int]:
    """What becomes of a message in a world where that is the matter; and how many copies arrive."""
    world = World(Path(tempfile.mkdtemp()), CONFIG)
    judge: Any = world.parts.queue._judge
    judge.random = lambda: 0.5
    peer = world.host("example.org", ADDRESS)
    network = world.network
    if kind is Kind.DOWN:
        network.unreachable.add(ADDRESS)
        network.callLater(seconds, network.unreachable.discard, ADDRESS)
    elif kind is Kind.TEMPFAIL:
        busy = SmtpPeer(replies={"RCPT": "451 4.3.2 try again later"})
        network.servers[ADDRESS, 25] = busy
        network.callLater(seconds, network.servers.__setitem__, (ADDRESS, 25), peer)
    else:
        peer.replies["RCPT"] = "550 5.7.1 refused"
    assert world.send("alice@example.test", [CAROL], MESSAGE).code == 250
    steps: Steps = []
    end = BEGIN + 3 * DAY
    try:
        while True:
            state = waiting(world), len(world.mail("alice"))
            if not steps or steps[-1] != state:
                steps.append(state)
            following = [call.getTime() for call in network.getDelayedCalls()]
            if not following or min(following) > end:
                break
            network.advance(max(min(following) - network.seconds(), 0.0))
    finally:
        world.close()
    return changes(steps), len(peer.messages)


def waiting(world: World) -> float | None:
    """When carol's copy is due."""
    found = [
        recipient.next_attempt - BEGIN
        for item in listing(world)
        for recipient in item.recipients
        if str(recipient.address) == CAROL
    ]
    return found[0] if found else None


def listing(world: World) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(world._listing()).addCallback(found.extend)
    return found


def changes(steps: Steps) -> Steps:
    """From the first attempt on, and without what is in between: a step ends when the notification that belongs to it
    is in the mailbox."""
    last = dict(steps)
    last.pop(0.0, None)
    return list(last.items())


def foretold(kind: Kind, seconds: float) -> tuple[Steps, int]:
    """The same by the simulation, set up as that server is."""
    world = World(Path(tempfile.mkdtemp()), CONFIG)
    config, directory = world.config, world.parts.accounts.directory
    world.close()
    simulation = Simulation(
        Setup(
            queue=config.queue,
            relay=config.relay,
            directory=directory,
            hostname=config.hostname,
            postmaster=config.postmaster,
            conditions=Conditions([Condition(kind, "example.org", seconds)]),
            random=lambda: 0.5,
            begin=BEGIN,
            seconds=3 * DAY,
        )
    )
    alice = Address("alice", "example.test")
    timeline = simulation.run([Arrival(0.0, alice, [Address.parse(CAROL)], MESSAGE)])
    (events,) = next(iter(timeline.stories.values())).recipients.values()
    told = 0
    steps: Steps = []
    for event in events:
        told += event.told
        deferred = event.what is What.DEFERRED
        steps.append((event.next_attempt - BEGIN if deferred else None, told))
    return changes(steps), sum(event.what is What.DELIVERED for event in events)


class AgreementTests(SynchronousTestCase):
    def assert_same(self, kind: Kind, seconds: float) -> None:
        expected, arrived = in_the_world(kind, seconds)
        found, delivered = foretold(kind, seconds)
        self.assertEqual(len(found), len(expected), (found, expected))
        for (mine, told), (theirs, heard) in zip(found, expected, strict=True):
            self.assertEqual((mine is None, told), (theirs is None, heard))
            if mine is not None and theirs is not None:
                self.assertAlmostEqual(mine, theirs, delta=0.01)
        self.assertEqual(delivered, arrived)

    def test_a_bounce_in_the_end(self) -> None:
        self.assert_same(Kind.DOWN, 3 * DAY)

    def test_refused(self) -> None:
        self.assert_same(Kind.REJECT, 0.0)

    # The same ten each time, as all simulations are.
    @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from([Kind.DOWN, Kind.TEMPFAIL]), st.integers(1, 50 * 60))
    def test_any_time(self, kind: Kind, minutes: int) -> None:
        self.assert_same(kind, minutes * 60.0 + 7.0)  # not at the very moment of an attempt
