"""Which points are killed by which trial, and episodes: a few kills of one server, decided by a seed.

The seed decides the plan. Which instruction a thread has reached when another one dies is up to the machine, so a
replay may need a few runs to fail again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.crash.edits import EditTrial
from tests.crash.mail import MailTrial
from tests.crash.mailboxes import MailboxTrial
from tests.crash.nursery import Nursery
from twisted_mta.store.faults import DONE, STEPS

POINTS = (*STEPS, *DONE)
_DELIVERY = ("create", "write", "sync", "sync-all", "deliver", "sync-directory", "synced")
#: What comes by on the way of a message; what an IMAP session does; what `mta user` does.
MAIL = tuple(
    point
    for point in POINTS
    if (point.startswith(("queue.", "body.", "file.", "mbox.")) and point != "mbox.cut")
    or point in [f"maildir.{step}" for step in _DELIVERY]
)
#: Passed only after another step has failed.
MENDING = ("mbox.cut",)
EDITS = tuple(point for point in POINTS if point.startswith("edit."))
#: Not killed here: what is lost of it is fetched again, and the deliveries of the trials fetch nothing.
CACHES = ("tls.policy",)
MAILBOXES = (
    *tuple(point for point in POINTS if point not in (*EDITS, *CACHES, *MENDING, *MAIL, "maildir.deliver")),
    "maildir.sync-directory",
    "maildir.synced",
    "maildir.sync",
)

Trial = MailTrial | MailboxTrial | EditTrial


@contextmanager
def closing_trial(trial: Trial) -> Iterator[Trial]:
    """Close it; after a failure the server's log is printed."""
    try:
        yield trial
    except BaseException:
        print(trial.site.log()[-4000:])
        raise
    finally:
        trial.close()


def mail_episode(nursery: Nursery, seed: int, kills: int = 8) -> int:
    """Kills, disk errors and an account of it all; how many kills."""
    chance = random.Random(seed)
    trial = MailTrial(nursery, seed)
    with closing_trial(trial):
        while trial.kills < kills:
            dice = chance.random()
            point, passes = chance.choice(MAIL), int(chance.expovariate(0.15)) + 1
            if dice < 0.65:
                trial.kill_at(f"{point}:{passes}:kill")
            elif dice < 0.8:
                trial.kill_sometime()
            elif point in STEPS:
                trial.live_through(f"{point}:{passes}:{chance.choice(('ENOSPC', 'EIO'))}")
        trial.settle()
        return trial.kills


def mailbox_episode(nursery: Nursery, seed: int, kills: int = 4) -> int:
    """The same for mailboxes."""
    chance = random.Random(seed)
    trial = MailboxTrial(nursery)
    with closing_trial(trial):
        while trial.kills < kills:
            trial.kill_at(f"{chance.choice(MAILBOXES)}:{chance.randint(1, 6)}:kill")
        return trial.kills
