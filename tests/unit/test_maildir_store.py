"""store.maildir: what the contract leaves open, above all living with other programs and losing the index."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.interfaces import Account, MailboxError, StoreFull
from twisted_mta.store.maildir import MaildirMailboxes, folder
from twisted_mta.store.maildir import store as store_module
from twisted_mta.store.maildir.index import FILE
from twisted_mta.store.threads import InlineWorkers

T = TypeVar("T")
ONE = b"Subject: one\r\n\r\nbody\r\n"
TWO = b"Subject: two\r\n\r\nbody\r\n"


class MaildirTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute() / "Maildir"
        self.account = Account("alice@example.test", str(self.root))
        self.clock = Clock()
        self.now = time.time
        self.opened: list[MaildirMailboxes] = []
        self.restart()

    def tearDown(self) -> None:
        for mailboxes in self.opened:
            self.get(mailboxes.close())

    def restart(self, **options: Any) -> None:
        """As a new process."""
        self.mailboxes = MaildirMailboxes(InlineWorkers(), self.clock, now=lambda: self.now(), **options)
        self.opened.append(self.mailboxes)
        self.store = self.mailboxes.of(self.account)

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def fails(self, error: type[Exception], coroutine: Coroutine[Any, Any, Any]) -> str:
        return str(self.failureResultOf(Deferred.fromCoroutine(coroutine), error).value)

    def append(self, *messages: bytes) -> None:
        for message in messages:
            self.get(self.store.append("INBOX", message))

    def uids(self, mailbox: Any) -> list[int]:
        return [entry.uid for entry in mailbox.entries]

    def files(self, *parts: str) -> list[Path]:
        return sorted(path for part in parts or ("new", "cur") for path in (self.root / part).iterdir())


class IndexTests(MaildirTestCase):
    def test_uids_last_over_restarts_and_renames_by_others(self) -> None:
        self.append(ONE, TWO)
        before = self.get(self.store.open("INBOX", read_only=True))
        one, two = self.files("new")
        self.restart()
        one.rename(self.root / "cur" / f"{one.name}:2,S")  # mutt
        two.rename(self.root / "cur" / f"{two.name},U=7:2,")  # mbsync
        after = self.get(self.store.open("INBOX"))
        self.assertEqual(after.uid_validity, before.uid_validity)
        self.assertEqual(self.uids(after), [1, 2])
        self.assertEqual([entry.flags for entry in after.entries], [{"\\Seen"}, set()])
        self.assertEqual(
            [entry.unique_name for entry in after.entries], [entry.unique_name for entry in before.entries]
        )
        self.assertEqual([self.get(after.read(uid)) for uid in (1, 2)], [ONE, TWO])

    def test_without_its_index_a_mailbox_has_a_new_uidvalidity(self) -> None:
        self.now = lambda: 1000.0
        self.append(ONE, TWO)
        before = self.get(self.store.open("INBOX"))
        self.get(before.remove([1]))
        self.get(self.mailboxes.close())
        for path in self.root.glob(FILE + "*"):
            path.unlink()
        self.now = lambda: 2000.0
        self.restart()
        after = self.get(self.store.open("INBOX"))
        self.assertEqual((before.uid_validity, after.uid_validity), (1000, 2000))
        self.assertEqual(
            [(entry.uid, self.get(after.read(entry.uid))) for entry in after.entries], [(1, TWO)]
        )

    def test_a_damaged_index_is_set_aside(self) -> None:
        self.append(ONE)
        self.get(self.mailboxes.close())
        for path in self.root.glob(FILE + "-*"):
            path.unlink()
        (self.root / FILE).write_bytes(b"not a database, " * 1000)
        self.restart()
        mailbox = self.get(self.store.open("INBOX"))
        self.assertEqual(self.get(mailbox.read(1)), ONE)
        self.assertTrue((self.root / (FILE + ".damaged")).exists())

    def test_an_index_of_another_version_is_left_alone(self) -> None:
        self.append(ONE)
        self.get(self.mailboxes.close())
        db = sqlite3.connect(self.root / FILE)
        db.execute("PRAGMA user_version=99")
        db.close()
        self.restart()
        self.assertIn("another version (99)", self.fails(RuntimeError, self.store.status("INBOX")))

    def test_the_index_is_private_and_may_lie_elsewhere(self) -> None:
        self.append(ONE)
        self.assertEqual((self.root / FILE).stat().st_mode & 0o777, 0o600)
        elsewhere = Path(self.mktemp())
        elsewhere.mkdir()
        self.root = self.root.with_name("other") / "Maildir"
        self.account = Account("bob@example.test", str(self.root))
        self.restart(index_directory=str(elsewhere))
        self.append(ONE)
        self.assertFalse((self.root / FILE).exists())
        self.assertTrue(list(elsewhere.glob("Maildir-*.sqlite")))

    def test_two_processes(self) -> None:
        first = self.store
        inbox = self.get(first.open("INBOX"))
        self.restart()
        self.append(ONE)
        self.assertEqual(self.get(first.append("INBOX", TWO))[1], 2)
        self.append(ONE)
        self.assertEqual([entry.uid for entry in self.get(inbox.refresh()).added], [1, 2, 3])
        other = self.get(self.store.open("INBOX"))
        self.get(other.remove([2]))
        self.assertEqual(self.get(inbox.refresh()).expunged, (2,))

    def test_idle_indexes_are_closed_and_reopened(self) -> None:
        self.patch(store_module, "_KEPT_OPEN", 1)
        self.append(ONE)
        other = self.mailboxes.of(Account("bob@example.test", str(self.root.with_name("bob"))))
        self.get(other.append("INBOX", ONE))
        self.assertIs(self.mailboxes.of(self.account), self.store)
        self.append(TWO)
        self.assertEqual(self.get(self.store.status("INBOX")).messages, 2)

    def test_a_mailbox_whose_index_is_lost_under_a_session(self) -> None:
        self.append(ONE)
        inbox = self.get(self.store.open("INBOX"))
        self.get(self.mailboxes.close())
        for path in self.root.glob(FILE + "*"):
            path.unlink()
        self.now = lambda: time.time() + 100
        self.assertEqual(self.get(inbox.refresh()).expunged, (1,))
        self.fails(MailboxError, inbox.read(1))
        self.assertEqual(self.uids(self.get(self.store.open("INBOX"))), [1])


class ScanTests(MaildirTestCase):
    def put(self, name: str, content: bytes = b"Subject: x\n\nbody\n") -> Path:
        path = self.root / name
        path.write_bytes(content)
        return path

    def settle(self, seconds: int = 1000) -> None:
        """The directories were last changed so many seconds ago."""
        then = int(self.now()) - seconds
        for part in ("cur", "new"):
            os.utime(self.root / part, (then, then))

    def test_unchanged_directories_are_not_read(self) -> None:
        moment = time.time()
        self.now = lambda: moment
        inbox = self.get(self.store.open("INBOX"))
        self.settle()
        self.get(inbox.refresh())
        self.put("cur/1.a.b:2,S")
        self.settle()  # as if nothing had happened
        self.assertEqual(self.get(inbox.refresh()).added, ())
        self.settle(999)
        self.assertEqual(len(self.get(inbox.refresh()).added), 1)

    def test_a_directory_changed_just_now_is_read_again(self) -> None:
        moment = time.time()
        self.now = lambda: moment
        inbox = self.get(self.store.open("INBOX"))
        self.settle(1)
        self.get(inbox.refresh())
        self.put("cur/1.a.b:2,S")
        self.settle(1)  # the same second
        self.assertEqual(len(self.get(inbox.refresh()).added), 1)

    def test_files_of_other_programs(self) -> None:
        self.get(self.store.create("x"))
        self.put("new/200.b.c", b"Subject: b\n\nline\n")
        self.put("cur/100.a.c:2,FRab", b"Subject: a\r\n\r\nline\r\n")
        self.put("cur/.hidden")
        (self.root / "cur" / "300.directory").mkdir()
        (self.root / "cur" / "400.link:2,").symlink_to(self.root / FILE)
        (self.root / "dovecot-keywords").write_text("0 $Forwarded\n")
        inbox = self.get(self.store.open("INBOX"))
        self.assertEqual(self.uids(inbox), [1, 2])
        self.assertEqual(self.get(inbox.read(1)), b"Subject: a\r\n\r\nline\r\n")
        self.assertEqual(self.get(inbox.read(2)), b"Subject: b\r\n\r\nline\r\n")
        self.assertEqual([entry.size for entry in inbox.entries], [20, 20])
        self.assertEqual(inbox.entries[0].flags, {"\\Flagged", "\\Answered", "$Forwarded"})
        self.assertEqual([entry.recent for entry in inbox.entries], [False, True])

    def test_keywords_named_later(self) -> None:
        inbox = self.get(self.store.open("INBOX"))
        self.put("cur/1.a.c:2,a")
        self.get(inbox.refresh())
        self.assertEqual(inbox.entries[0].flags, set())
        (self.root / "dovecot-keywords").write_text("0 Work\n")
        self.assertEqual([entry.flags for entry in self.get(inbox.refresh()).changed], [{"Work"}])

    def test_letters_of_others_survive(self) -> None:
        inbox = self.get(self.store.open("INBOX"))
        self.put("cur/1.a.c:2,PS")
        self.get(inbox.refresh())
        self.get(inbox.set_flags([1], ["\\Flagged"], "set"))
        self.get(inbox.set_flags([1], ["\\Answered"], "add"))
        self.get(inbox.set_flags([1], ["\\Flagged"], "remove"))
        self.assertEqual([path.name for path in self.files("cur")], ["1.a.c:2,PR"])

    def test_two_messages_of_one_key(self) -> None:
        inbox = self.get(self.store.open("INBOX"))
        self.put("cur/1.a.c,U=1:2,", b"one\n")
        self.put("cur/1.a.c,U=2:2,", b"two\n")
        self.get(inbox.refresh())
        self.assertEqual([self.get(inbox.read(uid)) for uid in self.uids(inbox)], [b"one\r\n", b"two\r\n"])
        self.assertEqual(self.get(inbox.refresh()).added, ())

    def test_a_file_passed_over_by_one_reading_is_not_gone(self) -> None:
        self.append(ONE, TWO)
        inbox = self.get(self.store.open("INBOX"))
        listdir, calls = os.listdir, []

        def forgetful(path: str) -> list[str]:
            names = listdir(path)
            calls.append(path)
            return names[1:] if len(calls) == 2 else names

        self.patch(folder.os, "listdir", forgetful)
        self.assertEqual(self.get(inbox.refresh()).expunged, ())
        self.assertEqual(len(calls), 4)

    def test_odd_names_of_messages(self) -> None:
        long = "x" * 100
        self.get(self.store.open("INBOX"))
        self.put(f"cur/{long}:2,")
        self.put("cur/with space\u00e9:2,")
        inbox = self.get(self.store.open("INBOX"))
        for entry in inbox.entries:
            self.assertRegex(entry.unique_name, "^[0-9a-f]{64}$")
            self.assertEqual(len(self.get(inbox.read(entry.uid))), entry.size)

    def test_messages_renamed_under_us_are_found(self) -> None:
        self.append(ONE, TWO, ONE)
        self.get(self.store.create("copies"))
        inbox = self.get(self.store.open("INBOX"))
        moment = time.time()
        self.now = lambda: moment

        def rename_all() -> None:
            """So that only the missing files tell of it."""
            self.settle()
            self.get(inbox.refresh())
            for path in self.files("cur"):
                base, _, letters = path.name.partition(":2,")
                path.rename(self.root / "cur" / f"{base}:2,{'' if 'F' in letters else 'F'}")
            self.settle()

        rename_all()
        self.assertEqual(self.get(inbox.read(2)), TWO)
        rename_all()
        self.assertEqual(len(self.get(inbox.set_flags([1, 2], ["\\Deleted"], "add"))), 2)
        rename_all()
        self.assertEqual(list(self.get(inbox.copy([1, 2], "copies"))[1]), [1, 2])
        self.get(inbox.set_flags([1, 2, 3], ["\\Deleted"], "add"))
        rename_all()  # and takes \Deleted away again
        self.assertEqual(list(self.get(inbox.expunge())), [])
        rename_all()
        self.get(inbox.remove([1, 3]))
        self.assertEqual(len(self.files("cur")), 1)

    def test_what_was_left_in_tmp_goes_after_36_hours(self) -> None:
        self.get(self.store.open("INBOX"))
        old, fresh = self.put("tmp/old"), self.put("tmp/fresh")
        os.utime(old, (self.now() - 36 * 3600 - 1,) * 2)
        self.get(self.store.open("INBOX"))
        self.assertEqual(self.files("tmp"), [fresh])

    def test_read_of_a_message_that_was_removed(self) -> None:
        self.append(ONE)
        inbox = self.get(self.store.open("INBOX"))
        self.files("cur")[0].unlink()
        self.assertEqual(self.fails(MailboxError, inbox.read(1)), "the message is gone")


class CopyTests(MaildirTestCase):
    def test_keyword_letters_differ_from_mailbox_to_mailbox(self) -> None:
        self.get(self.store.create("a"))
        self.get(self.store.append("a", ONE, ["Other"]))
        self.get(self.store.append("INBOX", ONE, ["Work"]))
        inbox = self.get(self.store.open("INBOX"))
        self.get(inbox.copy([1], "a"))
        self.assertEqual((self.root / ".a" / "dovecot-keywords").read_text(), "0 Other\n1 Work\n")
        self.assertEqual(self.get(self.store.open("a")).entries[1].flags, {"Work"})

    def test_copies_are_links_where_the_file_system_has_them(self) -> None:
        self.append(ONE)
        inbox = self.get(self.store.open("INBOX"))
        self.get(inbox.copy([1], "INBOX"))
        self.assertEqual([path.stat().st_nlink for path in self.files()], [2, 2])

        def no_links(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.EXDEV, "other device")

        self.patch(folder.os, "link", no_links)
        self.get(inbox.copy([1], "INBOX"))
        self.get(inbox.refresh())
        self.assertEqual(sorted(path.stat().st_nlink for path in self.files()), [1, 2, 2])
        self.assertEqual(self.get(inbox.read(3)), ONE)
        self.assertEqual(inbox.entries[2].internal_date, inbox.entries[0].internal_date)

    def test_a_copy_that_fails_leaves_nothing(self) -> None:
        self.append(ONE, TWO)
        inbox = self.get(self.store.open("INBOX"))
        calls: list[str] = []
        link = os.link

        def second_fails(*args: Any, **kwargs: Any) -> None:
            calls.append("link")
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "full")
            link(*args, **kwargs)

        self.patch(folder.os, "link", second_fails)
        self.assertEqual(
            self.fails(MailboxError, inbox.copy([1, 2], "INBOX")), "there is no room on the disk"
        )
        self.assertEqual((len(self.files()), self.files("tmp")), (2, []))

    def test_26_keywords_are_enough(self) -> None:
        flags = [f"k{number}" for number in range(26)]
        self.get(self.store.append("INBOX", ONE, flags))
        self.assertIn("26 keywords", self.fails(MailboxError, self.store.append("INBOX", ONE, ["k26"])))
        self.assertEqual((len(self.files()), self.files("tmp")), (1, []))


class TroubleTests(MaildirTestCase):
    def break_fsync(self, code: int) -> None:
        def fsync(fd: int) -> None:
            raise OSError(code, os.strerror(code))

        self.patch(os, "fsync", fsync)

    def test_full_disk(self) -> None:
        self.append(ONE)
        self.break_fsync(errno.ENOSPC)
        self.assertEqual(
            self.fails(StoreFull, self.store.append("INBOX", TWO)), "there is no room on the disk"
        )
        self.assertEqual((len(self.files()), self.files("tmp")), (1, []))

    def test_full_disk_at_the_last_moment(self) -> None:
        self.append(ONE)
        self.patch(folder, "sync_directory", lambda path: self.raise_full())
        self.fails(StoreFull, self.store.append("INBOX", TWO))
        self.assertEqual((len(self.files()), self.files("tmp")), (1, []))
        self.assertEqual(self.get(self.store.status("INBOX")).uid_next, 2)

    def raise_full(self) -> None:
        raise OSError(errno.ENOSPC, "full")

    def test_full_index(self) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL

        def full(*args: Any) -> None:
            raise error

        self.append(ONE)
        inbox = self.get(self.store.open("INBOX"))
        self.patch(folder.Index, "put", full)
        self.fails(MailboxError, inbox.set_flags([1], ["\\Seen"], "add"))
        self.fails(StoreFull, self.store.append("INBOX", TWO))
        self.assertEqual(len(self.files()), 1)

    def test_other_trouble_is_logged_and_told_without_details(self) -> None:
        self.append(ONE)
        self.break_fsync(errno.EIO)
        self.assertEqual(
            self.fails(MailboxError, self.store.append("INBOX", TWO)), "the mailbox can't be used just now"
        )

    def test_mailboxes_that_can_not_be_shown_are_logged(self) -> None:
        self.get(self.store.create("a"))
        (self.root / ".a").rename(self.root / ".\u00e9")
        self.assertEqual(len(self.get(self.store.list_mailboxes())), 1)


class HeldWorkers(InlineWorkers):
    """Counts the jobs that are under way, and ends them when told."""

    def __init__(self) -> None:
        self.held: list[tuple[Deferred[Any], Any]] = []

    def run(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.held.append((done, function))
        return done


class PoolTests(MaildirTestCase):
    def test_an_account_has_one_thread(self) -> None:
        workers = HeldWorkers()
        store = MaildirMailboxes(workers, self.clock).of(self.account)
        waiting = [Deferred.fromCoroutine(store.subscriptions()) for _ in range(3)]
        waiting[1].cancel()
        self.failureResultOf(waiting[1])
        for each in (waiting[0], waiting[2]):
            ((done, function),) = workers.held
            workers.held.clear()
            done.callback(function())
            self.assertEqual(self.successResultOf(each), [])


class OpenIndexTests(MaildirTestCase):
    def others_come(self) -> None:
        for number in range(100):
            other = self.mailboxes.of(
                Account(f"{number}@example.test", str(self.root.with_name(str(number))))
            )
            self.get(other.subscriptions())

    def is_open(self) -> bool:
        links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return any(os.readlink(link).startswith(f"{self.root}/") for link in links if os.path.lexists(link))

    def test_one_that_a_session_had_opened_again_is_closed_after_it(self) -> None:
        inbox = self.get(self.store.open("INBOX"))
        self.others_come()
        self.assertFalse(self.is_open())
        self.append(ONE)
        self.assertTrue(self.is_open())
        self.get(inbox.close())
        self.assertTrue(self.is_open())  # it may come back soon
        self.others_come()
        self.assertFalse(self.is_open())


class WatchTests(MaildirTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.append(ONE)
        self.inbox = self.get(self.store.open("INBOX"))
        moment = time.time() + 1000  # what happened up to now is long ago
        self.now = lambda: moment
        self.get(self.inbox.refresh())
        self.told = 0

    def tell(self) -> None:
        self.told += 1

    def test_what_others_do_is_polled_for(self) -> None:
        stop = self.inbox.watch(self.tell)
        self.clock.pump([1.0] * 10)
        self.assertEqual(self.told, 0)
        (self.root / "new" / "1.a.b").write_bytes(ONE)
        self.clock.pump([1.0] * 3)
        self.assertEqual(self.told, 1)
        self.assertEqual(len(self.get(self.inbox.refresh()).added), 1)
        self.clock.pump([1.0] * 3)  # our own move from new/ to cur/ looks like another's doing, once
        self.get(self.inbox.refresh())
        told = self.told
        self.clock.pump([1.0] * 10)
        self.assertEqual(self.told, told)
        stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deliveries_are_told_at_once(self) -> None:
        self.inbox.watch(self.tell)
        self.mailboxes.delivered(self.account)
        self.mailboxes.delivered(self.account, "other")
        self.mailboxes.delivered(Account("bob@example.test", "/nowhere"))
        self.assertEqual(self.told, 1)
        self.get(self.inbox.close())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_mailbox_that_was_removed_by_others(self) -> None:
        self.inbox.watch(self.tell)
        for path in self.files():
            path.unlink()
        for part in ("cur", "new"):
            (self.root / part).rmdir()
        self.clock.advance(3)
        self.assertEqual(self.told, 1)
        self.assertEqual(self.get(self.inbox.refresh()).expunged, (1,))

    def test_a_watcher_may_stop_another_amid_telling(self) -> None:
        stops = [self.inbox.watch(lambda: stops[1]()), self.inbox.watch(self.tell)]
        self.mailboxes.delivered(self.account)
        self.assertEqual(self.told, 0)
