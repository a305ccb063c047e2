"""The real server, killed at every durable step: nothing acknowledged is lost, no mailbox gets anything twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.edits import EditTrial
from tests.crash.episodes import (
    CACHES,
    EDITS,
    MAIL,
    MAILBOXES,
    MENDING,
    POINTS,
    closing_trial,
    mail_episode,
    mailbox_episode,
)
from tests.crash.mail import Entry, Lost, MailTrial
from tests.crash.mailboxes import MailboxTrial
from tests.crash.nursery import Nursery

_EPISODES = 20


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


def test_each_point_has_a_trial() -> None:
    assert set(MAIL) | set(MAILBOXES) | set(EDITS) | set(CACHES) | set(MENDING) == set(POINTS)


@pytest.mark.parametrize("point", MAIL)
def test_mail(nursery: Nursery, point: str) -> None:
    trial = MailTrial(nursery, seed=MAIL.index(point))
    with closing_trial(trial):
        assert trial.kill_at(f"{point}:1:kill"), "the point was not reached"
        for passes in (2, 3, 5, 8):
            trial.kill_at(f"{point}:{passes}:kill")
        assert trial.settle()


@pytest.mark.parametrize("failing", ["mbox.write:2", "mbox.sync:1", "mbox.sync:2"])
def test_killed_while_it_mends_what_failed(nursery: Nursery, failing: str) -> None:
    trial = MailTrial(nursery, seed=7)
    with closing_trial(trial):
        assert trial.kill_at(f"{failing}:EIO,mbox.cut:1:kill"), "the point was not reached"
        assert trial.settle()


@pytest.mark.parametrize("point", MAILBOXES)
def test_mailboxes(nursery: Nursery, point: str) -> None:
    trial = MailboxTrial(nursery)
    with closing_trial(trial):
        assert trial.kill_at(f"{point}:1:kill"), "the point was not reached"
        trial.kill_at(f"{point}:2:kill")


@pytest.mark.parametrize("point", EDITS)
def test_edits(nursery: Nursery, point: str) -> None:
    trial = EditTrial(nursery)
    with closing_trial(trial):
        assert trial.kill_at(f"{point}:1:kill"), "the point was not reached"
        trial.settle()


def test_a_worker_is_killed(nursery: Nursery) -> None:
    trial = MailTrial(nursery, seed=1, workers=2)
    with closing_trial(trial):
        for number in (0, 1):
            trial.kill_worker(number)
        assert trial.settle()


def test_the_parent_is_killed(nursery: Nursery) -> None:
    trial = MailTrial(nursery, seed=2, workers=2)
    with closing_trial(trial):
        trial.kill_parent()
        trial.kill_parent()
        assert trial.settle()


def test_the_number_of_workers_changes(nursery: Nursery) -> None:
    """What the ones that are gone had in their parts of the queue is delivered by those that there are, once."""
    trial = MailTrial(nursery, seed=3, workers=3)
    with closing_trial(trial):
        trial.kill_parent()
        trial.site.set_workers(2)
        trial.kill_parent()
        trial.site.set_workers(1)
        trial.kill_sometime()
        trial.site.set_workers(2)
        trial.kill_parent()
        trial.site.set_workers(1)
        assert trial.settle()


@pytest.mark.parametrize("seed", range(_EPISODES))
def test_episodes(nursery: Nursery, seed: int) -> None:
    assert (mailbox_episode if seed % 10 == 9 else mail_episode)(nursery, seed)


def test_the_ledger_notices(nursery: Nursery) -> None:
    """A harness that can't fail would prove nothing: a lost message, a second copy, one that is cut short."""
    trial = MailTrial(nursery, seed=0)
    with closing_trial(trial):
        trial.settle()
        trial._ledger["lost"] = Entry(("bob",), together=True, acknowledged=True)
        with pytest.raises(Lost, match="lost, acknowledged"):
            trial.settle()
        del trial._ledger["lost"]
        name = next(name for name, user in trial._seen if user == "bob")
        trial._seen[name, "bob"] += 1
        with pytest.raises(Lost, match=f"{name}: bob has it 2 times"):
            trial.settle()
        trial._seen[name, "bob"] -= 1
        half = trial.site.directory / "mail/bob@example.test/new/half"
        half.write_bytes(f"Subject: {name} {'0' * 64}\n\nhalf".encode())
        with pytest.raises(Lost, match="not whole"):
            trial.settle()
