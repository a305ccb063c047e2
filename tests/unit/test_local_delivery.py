"""delivery.local: durable, once, and with a clear outcome for whatever the disk does."""

from __future__ import annotations

import errno
import gc
import os
import stat
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.interpreter import counts_references
from twisted_mta.core.address import Address
from twisted_mta.core.queue import (
    Delivered,
    Failed,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
)
from twisted_mta.delivery import copies
from twisted_mta.delivery.local import LocalDelivery
from twisted_mta.interfaces import Account, Consignment, IBatchDelivery, IDelivery
from twisted_mta.store.maildir import files
from twisted_mta.store.maildir.syncing import ENOUGH, Syncs
from twisted_mta.store.queue.bodies import MemoryBody
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.queued import queued_message, queued_recipient

T = TypeVar("T")
BODY = b"Subject: hello\r\nFrom: a@example.org\r\n\r\n.line\r\nlast\r\n"


class FakeSyncfs:
    """Counts, and fails with `error`."""

    def __init__(self) -> None:
        self.calls = self.error = 0

    def trusts(self, descriptor: int) -> bool:
        return True

    def __call__(self, descriptor: int) -> None:
        os.fstat(descriptor)
        self.calls += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


class HeldWorkers:
    """Runs nothing until told."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.jobs.append((lambda: function(*args), done))
        return done

    def step(self) -> None:
        job, done = self.jobs.pop(0)
        done.callback(job())


def message(**changes: Any) -> QueuedMessage:
    usual: dict[str, Any] = {
        "id": "0Aa1",
        "sender": Address.parse("a@example.org"),
        "prefix": b"Received: by mx.example.test\r\n",
        "body_size": len(BODY),
        "arrived": 2000.5,
        "body_type": "8BITMIME",
    }
    return queued_message(**(usual | changes))


def recipient(address: str, attempts: int = 0) -> QueuedRecipient:
    return queued_recipient(address, transport=Transport.LOCAL, attempts=attempts)


class LocalDeliveryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.told: list[tuple[str, str]] = []
        self.syncfs = FakeSyncfs()
        self.delivery = self.make(InlineWorkers())

    def make(self, workers: Any, started: float = 1000.0) -> LocalDelivery:
        return LocalDelivery(
            self,  # type: ignore[arg-type]
            workers,
            hostname="mx.example.test",
            started=started,
            told=lambda account, name: self.told.append((account.name, name)),
            syncs=Syncs(self.syncfs),
        )

    def account(self, address: Address) -> Account | None:
        """IDirectory: alice and bob exist, with any detail."""
        name = address.with_local(address.local.partition("+")[0].lower())
        if str(name) not in ("alice@example.test", "bob@example.test"):
            return None
        return Account(str(name), str(self.top / name.local))

    def without_detail(self, address: Address) -> Address | None:
        """IDirectory."""
        name, plus, _ = address.local.partition("+")
        return address.with_local(name) if plus else None

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def deliver(
        self, *recipients: str, attempts: int = 0, body: bytes = BODY, **changes: Any
    ) -> list[Outcome]:
        parsed = [recipient(each, attempts) for each in recipients]
        return list(self.get(self.delivery.deliver(message(**changes), MemoryBody(body), parsed, "local")))

    def files(self, who: str = "alice", *parts: str) -> list[Path]:
        return sorted(path for part in parts or ("new", "cur") for path in (self.top / who / part).iterdir())

    def outcome(self, kind: type[Outcome], code: int, enhanced: str, outcome: Outcome) -> None:
        self.assertIsInstance(outcome, kind)
        self.assertEqual((outcome.reply.code, outcome.reply.enhanced), (code, enhanced))

    def test_interface(self) -> None:
        verifyObject(IDelivery, self.delivery)
        verifyObject(IBatchDelivery, self.delivery)
        self.assertEqual(
            self.delivery.destination(recipient("alice@example.test")),
            self.delivery.destination(recipient("bob@example.test")),
        )

    def test_a_message_with_its_trace(self) -> None:
        (outcome,) = self.deliver("Alice@example.test")
        self.outcome(Delivered, 250, "2.0.0", outcome)
        (file,) = self.files("alice", "new")
        expected = (
            b"Return-Path: <a@example.org>\r\nDelivered-To: Alice@example.test\r\nReceived: by mx.example.test\r\n"
            + BODY
        )
        self.assertEqual(file.read_bytes(), expected.replace(b"\r\n", b"\n"))
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)
        self.assertRegex(file.name, r"^2000\.Q0Aa1R[0-9a-f]{12}\.mx\.example\.test,S=\d+,W=\d+$")
        self.assertEqual(files.virtual_size_of(file.name), len(expected))
        self.assertEqual(self.files("alice", "tmp"), [])
        self.assertEqual(self.told, [("alice@example.test", "INBOX")])

    @counts_references
    def test_the_body_is_let_go_of_without_the_garbage_collector(self) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        body = MemoryBody(BODY)
        gone = weakref.ref(body)
        self.get(self.delivery.deliver(message(), body, [recipient("alice@example.test")], "local"))
        del body
        self.assertIsNone(gone())

    def test_copies_with_senders_and_fields_of_their_own(self) -> None:
        owner = queued_recipient(
            "bob@example.test",
            transport=Transport.LOCAL,
            sender=Address("owner-team", "example.test"),
            prefix=b"X: y\r\n",
        )
        parsed = [recipient("alice@example.test"), owner]
        self.get(self.delivery.deliver(message(), MemoryBody(BODY), parsed, "local"))
        (one,), (two,) = self.files("alice", "new"), self.files("bob", "new")
        self.assertTrue(one.read_bytes().startswith(b"Return-Path: <a@example.org>\nDelivered-To: alice@"))
        self.assertTrue(
            two.read_bytes().startswith(
                b"Return-Path: <owner-team@example.test>\nDelivered-To: bob@example.test\nX: y\nReceived: "
            )
        )

    def test_a_bounce_has_the_null_return_path(self) -> None:
        self.deliver("alice@example.test", sender=None)
        self.assertTrue(self.files()[0].read_bytes().startswith(b"Return-Path: <>\n"))

    def test_several_recipients_each_have_their_outcome(self) -> None:
        outcomes = self.deliver("alice@example.test", "nobody@example.test", "bob@example.test")
        self.outcome(Delivered, 250, "2.0.0", outcomes[0])
        self.outcome(Failed, 550, "5.1.1", outcomes[1])
        self.outcome(Delivered, 250, "2.0.0", outcomes[2])
        self.assertIn("nobody@example.test", outcomes[1].reply.text)
        self.assertIn(b"Delivered-To: bob@example.test\n", self.files("bob")[0].read_bytes())

    def test_only_unknown_recipients(self) -> None:
        self.outcome(Failed, 550, "5.1.1", self.deliver("nobody@example.test")[0])

    def test_one_mailbox_gets_one_copy(self) -> None:
        outcomes = self.deliver("alice@example.test", "ALICE@example.test", "alice+nothing@example.test")
        for outcome in outcomes:
            self.outcome(Delivered, 250, "2.0.0", outcome)
        self.assertEqual(len(self.files()), 1)
        self.assertEqual(len(self.told), 1)

    def test_a_large_message_in_chunks(self) -> None:
        body = b"Subject: x\r\n\r\n" + b"a line\r\n" * 30_000
        self.deliver("alice@example.test", body=body)
        self.assertTrue(self.files()[0].read_bytes().endswith(body.replace(b"\r\n", b"\n")))

    # --- detail ----------------------------------------------------------------------------------

    def make_folder(self, directory: str) -> None:
        self.deliver("alice@example.test", id="first")
        for part in ("tmp", "new", "cur"):
            (self.top / "alice" / directory / part).mkdir(parents=True)
        self.told.clear()

    def test_detail_names_a_mailbox_that_exists(self) -> None:
        self.make_folder(".work")
        self.deliver("alice+work@example.test", "alice@example.test")
        self.assertEqual(len(self.files("alice", ".work/new")), 1)
        self.assertEqual(len(self.files("alice", "new")), 2)
        self.assertEqual(self.told, [("alice@example.test", "work"), ("alice@example.test", "INBOX")])

    def test_other_details_go_to_the_inbox(self) -> None:
        self.make_folder(".work")
        for number, detail in enumerate(("play", "", "../../bob", "a.b", "INBOX", "work.", "/work")):
            (outcome,) = self.deliver(f'"alice+{detail}"@example.test', id=f"q{number}")
            self.outcome(Delivered, 250, "2.0.0", outcome)
        self.assertEqual(self.files("alice", ".work/new"), [])
        self.assertEqual(len(self.files("alice", "new")), 8)

    # --- once ------------------------------------------------------------------------------------

    def test_a_repeated_attempt_finds_its_own_work(self) -> None:
        self.deliver("alice@example.test")
        (file,) = self.files()
        for name in (f"new/{file.name}", f"cur/{file.name}:2,S", f"cur/{file.name.partition(',')[0]},U=7:2,"):
            self.files()[0].rename(self.top / "alice" / name)
            self.told.clear()
            (outcome,) = self.deliver("alice@example.test", attempts=1)
            self.assertIsInstance(outcome, Delivered)
            self.assertIn("earlier attempt", outcome.reply.text)
            self.assertEqual((len(self.files()), self.told), (1, []))

    def test_a_message_from_before_this_process_may_have_been_delivered(self) -> None:
        self.deliver("alice@example.test")
        (file,) = self.files()
        file.rename(self.top / "alice" / "cur" / f"{file.name}:2,S")
        self.delivery = self.make(InlineWorkers(), started=3000.0)
        self.deliver("alice@example.test")
        self.assertEqual(len(self.files()), 1)

    def test_found_in_the_inbox_though_the_detail_has_a_mailbox_by_now(self) -> None:
        self.deliver("alice+work@example.test")
        for part in ("tmp", "new", "cur"):
            (self.top / "alice" / ".work" / part).mkdir(parents=True)
        self.deliver("alice+work@example.test", attempts=1)
        self.assertEqual(self.files("alice", ".work/new"), [])

    def test_first_attempts_do_not_look(self) -> None:
        listdir, calls = os.listdir, []
        self.patch(os, "listdir", lambda path: calls.append(path) or listdir(path))
        self.deliver("alice@example.test")
        self.assertEqual(calls, [])

    def test_other_messages_and_recipients_are_not_mistaken(self) -> None:
        self.deliver("alice@example.test", attempts=1)
        self.deliver("alice@example.test", attempts=1, id="0Aa2")
        self.deliver("bob@example.test", attempts=1)
        self.assertEqual((len(self.files("alice")), len(self.files("bob"))), (2, 1))

    def test_an_attempt_that_was_cut_off_leaves_no_obstacle(self) -> None:
        self.deliver("alice@example.test")
        (file,) = self.files()
        key = file.name.partition(",")[0]
        file.unlink()
        (self.top / "alice" / "tmp" / key).write_bytes(b"half")
        self.deliver("alice@example.test", attempts=1)
        self.assertTrue(self.files()[0].read_bytes().startswith(b"Return-Path"))

    # --- loops -----------------------------------------------------------------------------------

    def test_a_message_that_was_here_before(self) -> None:
        for body, prefix in (
            (b"X: y\r\nDELIVERED-TO:  Alice@Example.test \r\n\r\n", b""),
            (BODY, b"Delivered-To: alice@example.test\r\n"),
            (b"X: " + b"y" * 100_000 + b"\r\nDelivered-To: alice@example.test\r\n\r\nbody", b""),
        ):
            outcomes = self.deliver("alice@example.test", "bob@example.test", body=body, prefix=prefix)
            self.outcome(Failed, 554, "5.4.6", outcomes[0])
            self.assertIsInstance(outcomes[1], Delivered)
        self.assertFalse((self.top / "alice").exists())

    def test_what_is_no_loop(self) -> None:
        for number, body in enumerate(
            (
                b"Subject: x\r\n\r\nDelivered-To: alice@example.test\r\n",
                b"\r\nDelivered-To: alice@example.test\r\n",
                b"Delivered-To: alice@example.org\r\n\r\n",
                b"X: y\r\n Delivered-To: alice@example.test\r\n\r\n",
                b"",
            )
        ):
            (outcome,) = self.deliver(
                "alice@example.test", body=body, id=f"q{number}", prefix=b"Received: x\r\n"
            )
            self.assertIsInstance(outcome, Delivered, body)

    # --- trouble ---------------------------------------------------------------------------------

    def failing(self, code: int, only: str = "") -> Callable[..., Any]:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError(code, os.strerror(code))

        return fail

    def test_full_disk_at_each_step(self) -> None:
        self.deliver("alice@example.test", id="first")
        for number, name in enumerate(("write", "fsync", "rename", "open")):
            original = getattr(os, name)
            patch = self.patch(os, name, self.failing(errno.ENOSPC))
            (outcome,) = self.deliver("alice@example.test", id=f"q{number}")
            patch.restore()
            self.assertIs(getattr(os, name), original)
            self.outcome(TryLater, 452, "4.3.1", outcome)
            self.assertEqual((len(self.files()), self.files("alice", "tmp")), (1, []), name)

    def test_no_permission(self) -> None:
        for code in (errno.EACCES, errno.EROFS, errno.EIO):
            patch = self.patch(os, "mkdir", self.failing(code))
            (outcome,) = self.deliver("alice@example.test")
            patch.restore()
            self.outcome(TryLater, 451, "4.3.0", outcome)
        self.assertEqual(self.told, [])

    def test_the_directory_can_not_be_synced(self) -> None:
        self.deliver("alice@example.test", id="first")
        patch = self.patch(copies, "sync_directory", self.failing(errno.EIO))
        (outcome,) = self.deliver("alice@example.test")
        self.outcome(TryLater, 451, "4.3.0", outcome)
        patch.restore()
        (outcome,) = self.deliver("alice@example.test", attempts=1)
        self.assertIn("earlier attempt", outcome.reply.text)
        self.assertEqual(len(self.files()), 2)

    def test_trouble_of_one_is_not_that_of_others(self) -> None:
        (self.top).mkdir(parents=True)
        (self.top / "bob").write_text("a file is in the way")
        outcomes = self.deliver("bob@example.test", "alice@example.test")
        self.outcome(TryLater, 451, "4.3.0", outcomes[0])
        self.outcome(Delivered, 250, "2.0.0", outcomes[1])

    # --- batches ---------------------------------------------------------------------------------

    def consignment(self, *recipients: str, **changes: Any) -> Consignment:
        return Consignment(message(**changes), MemoryBody(BODY), [recipient(each) for each in recipients])

    def start(self, *batch: Consignment) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.delivery.deliver_batch(batch))

    def test_a_batch_has_the_outcomes_of_each_message(self) -> None:
        outcomes = self.successResultOf(
            self.start(
                self.consignment("alice@example.test", "nobody@example.test", id="q1"),
                self.consignment("nobody@example.test", id="q2"),
                self.consignment("bob@example.test", "alice@example.test", id="q3"),
            )
        )
        kinds = [[type(outcome) for outcome in each] for each in outcomes]
        self.assertEqual(kinds, [[Delivered, Failed], [Failed], [Delivered, Delivered]])
        self.assertEqual((len(self.files("alice")), len(self.files("bob"))), (2, 1))
        self.assertEqual(len(self.told), 3)

    def test_nothing_for_the_disk_to_do(self) -> None:
        self.delivery = self.make(HeldWorkers())
        self.successResultOf(self.start(self.consignment("nobody@example.test")))

    def test_a_few_files_and_directories_are_synced_by_themselves(self) -> None:
        self.deliver("alice@example.test", "bob@example.test", id="q0")
        synced: list[str] = []
        self.patch(copies, "sync_directory", synced.append)
        self.successResultOf(
            self.start(*[self.consignment("alice@example.test", id=f"q{n}") for n in (1, 2)])
        )
        self.assertEqual(synced, [str(self.top / "alice" / "new")])
        self.assertEqual(self.syncfs.calls, 0)

    def test_many_files_are_synced_as_a_whole(self) -> None:
        self.deliver("alice@example.test", id="q0")
        self.patch(os, "fsync", self.failing(errno.EIO))
        synced: list[str] = []
        self.patch(copies, "sync_directory", synced.append)
        batch = [self.consignment("alice@example.test", id=f"q{n}") for n in range(1, 1 + ENOUGH)]
        for (outcome,) in self.successResultOf(self.start(*batch)):
            self.assertIsInstance(outcome, Delivered)
        self.assertEqual((self.syncfs.calls, len(synced), len(self.files())), (1, 1, 1 + ENOUGH))

    def test_where_all_can_not_be_synced_each_file_is(self) -> None:
        self.deliver("alice@example.test", id="q0")
        self.syncfs.error = errno.EIO
        fsync, count = os.fsync, [0]

        def second_fails(descriptor: int) -> None:
            count[0] += 1
            if count[0] == 2:
                raise OSError(errno.EIO, "broken")
            fsync(descriptor)

        self.patch(os, "fsync", second_fails)
        batch = [self.consignment("alice@example.test", id=f"q{n}") for n in range(1, 1 + ENOUGH)]
        outcomes = [each for (each,) in self.successResultOf(self.start(*batch))]
        self.assertEqual(
            [type(each) for each in outcomes], [Delivered, TryLater, *[Delivered] * (ENOUGH - 2)]
        )
        self.assertEqual((count[0], len(self.files())), (ENOUGH + 1, ENOUGH))

    def test_a_bug_with_one_is_not_that_of_the_others(self) -> None:
        broken: Any = object()
        batch = [self.consignment("alice@example.test"), self.consignment("bob@example.test", id="q2")]
        batch[0] = attrs.evolve(batch[0], body=broken)
        (first,), (second,) = self.successResultOf(self.start(*batch))
        self.outcome(TryLater, 451, "4.3.0", first)
        self.assertIsInstance(second, Delivered)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_the_end_waits_for_what_is_under_way(self) -> None:
        workers = HeldWorkers()
        self.delivery = self.make(workers)
        delivering = self.start(self.consignment("alice@example.test"))
        closing = Deferred.fromCoroutine(self.delivery.close())
        self.assertNoResult(closing)
        workers.step()
        self.successResultOf(delivering)
        self.successResultOf(closing)

    def test_cancelled_by_the_caller(self) -> None:
        workers = HeldWorkers()
        self.delivery = self.make(workers)
        cancelled = self.start(self.consignment("alice@example.test"))
        cancelled.cancel()
        self.failureResultOf(cancelled)
        closing = Deferred.fromCoroutine(self.delivery.close())
        workers.step()
        self.successResultOf(closing)
        self.assertEqual(len(self.files()), 1)
