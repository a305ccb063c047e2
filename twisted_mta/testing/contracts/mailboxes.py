"""The contract of IMailboxStore and IMailbox. Mix `MailboxContract` into a SynchronousTestCase and say how to make a store."""

# mypy: disable-error-code="no-untyped-call"
# (trial's assertions have no annotations)

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.interfaces import (
    IMailbox,
    IMailboxStore,
    MailboxError,
    MailboxExists,
    MailboxInfo,
    MessageEntry,
    NoSuchMailbox,
)

T = TypeVar("T")

ONE = b"Subject: one\r\n\r\nThe first.\r\n"
TWO = b"Subject: two\r\n\r\n.The second,\r\n\r\nin two parts, without a line end"
THREE = b"Subject: three\r\n\r\n"


class MailboxContract(SynchronousTestCase):
    """Subclasses set `store` in setUp, and say how another program works on the INBOX."""

    #: Not run by itself.
    __test__ = False
    store: Any

    def deliver(self, message: bytes) -> None:
        """Another program puts a message into INBOX."""
        raise NotImplementedError

    def change_flags(self, entry: MessageEntry, flags: set[str]) -> None:
        """Another program changes the (system) flags of a message in INBOX."""
        raise NotImplementedError

    def vanish(self, entry: MessageEntry) -> None:
        """Another program removes a message from INBOX."""
        raise NotImplementedError

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of what must be done by now."""
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def fails(self, error: type[Exception], coroutine: Coroutine[Any, Any, Any]) -> str:
        """It raises `error`, and says why."""
        text = str(self.failureResultOf(Deferred.fromCoroutine(coroutine), error).value)
        self.assertTrue(text, "an error without a text")
        return text

    def inbox(self, *messages: bytes, read_only: bool = False) -> Any:
        for message in messages:
            self.get(self.store.append("INBOX", message))
        return self.get(self.store.open("INBOX", read_only))

    def names(self) -> list[str]:
        return [info.name for info in self.get(self.store.list_mailboxes())]

    # --- the store -------------------------------------------------------------------------------

    def test_interfaces(self) -> None:
        verifyObject(IMailboxStore, self.store)
        verifyObject(IMailbox, self.inbox())

    def test_inbox_is_there_from_the_start(self) -> None:
        self.assertEqual(self.get(self.store.list_mailboxes()), [MailboxInfo(name="INBOX")])
        status = self.get(self.store.status("inbox"))
        self.assertEqual((status.messages, status.recent, status.unseen, status.uid_next), (0, 0, 0, 1))

    def test_create_and_list(self) -> None:
        for name in ("Zürich & more", "Lists/python/dev", "Drafts/"):
            self.get(self.store.create(name))
        self.assertEqual(
            self.get(self.store.list_mailboxes()),
            [
                MailboxInfo(name="INBOX"),
                MailboxInfo(name="Drafts"),
                MailboxInfo(name="Lists", selectable=False, has_children=True),
                MailboxInfo(name="Lists/python", selectable=False, has_children=True),
                MailboxInfo(name="Lists/python/dev"),
                MailboxInfo(name="Zürich & more"),
            ],
        )
        self.fails(MailboxExists, self.store.create("Drafts"))
        self.fails(MailboxExists, self.store.create("InBox"))
        self.get(self.store.create("Lists"))
        self.assertIn(MailboxInfo(name="Lists", has_children=True), self.get(self.store.list_mailboxes()))

    def test_impossible_names(self) -> None:
        for name in ("", "/", "a//b", "/a", "example.org", "..", "a/../b", "a\nb", "x" * 300, "é" * 120):
            with self.subTest(name=name):
                self.fails(MailboxError, self.store.create(name))

    def test_delete(self) -> None:
        self.get(self.store.create("a/b"))
        self.get(self.store.create("a"))
        self.get(self.store.delete("a"))
        self.assertEqual(self.names(), ["INBOX", "a", "a/b"])
        self.fails(NoSuchMailbox, self.store.delete("a"))
        self.fails(MailboxError, self.store.delete("Inbox"))

    def test_a_name_used_again_is_another_mailbox(self) -> None:
        self.get(self.store.create("a"))
        old = self.get(self.store.append("a", ONE))
        self.get(self.store.delete("a"))
        self.get(self.store.create("a"))
        self.assertNotEqual(self.get(self.store.append("a", TWO))[0], old[0])

    def test_rename_takes_children_and_uids_along(self) -> None:
        self.get(self.store.create("a"))
        self.get(self.store.create("a/b/c"))
        added = self.get(self.store.append("a/b/c", ONE))
        self.get(self.store.rename("a", "x/y"))
        self.assertEqual(self.names(), ["INBOX", "x", "x/y", "x/y/b", "x/y/b/c"])
        mailbox = self.get(self.store.open("x/y/b/c"))
        self.assertEqual((mailbox.uid_validity, mailbox.entries[0].uid), added)
        self.assertEqual(self.get(mailbox.read(added[1])), ONE)

    def test_rename_of_a_parent_without_messages(self) -> None:
        self.get(self.store.create("a/b"))
        self.get(self.store.rename("a", "x"))
        self.assertEqual(self.names(), ["INBOX", "x", "x/b"])

    def test_refused_renames(self) -> None:
        for name in ("a", "a/c", "b", "x/c"):
            self.get(self.store.create(name))
        self.fails(NoSuchMailbox, self.store.rename("nothing", "new"))
        self.fails(MailboxExists, self.store.rename("a", "b"))
        self.fails(MailboxExists, self.store.rename("a", "a"))
        self.fails(MailboxExists, self.store.rename("a", "x"))
        self.fails(MailboxExists, self.store.rename("INBOX", "b"))
        self.fails(MailboxError, self.store.rename("a", "a/b"))
        self.fails(MailboxError, self.store.rename("a", "b.c"))
        self.assertEqual(self.names(), ["INBOX", "a", "a/c", "b", "x", "x/c"])

    def test_rename_of_inbox_moves_its_messages(self) -> None:
        inbox = self.inbox(ONE, TWO)
        self.get(inbox.set_flags([1], ["\\Seen", "$Junk"], "add"))
        self.get(self.store.rename("inbox", "old"))
        self.assertEqual(self.get(self.store.status("INBOX")).messages, 0)
        self.assertEqual(self.get(inbox.refresh()).expunged, (1, 2))
        old = self.get(self.store.open("old"))
        self.assertEqual([self.get(old.read(entry.uid)) for entry in old.entries], [ONE, TWO])
        self.assertEqual(old.entries[0].flags, {"\\Seen", "$Junk"})

    def test_subscriptions(self) -> None:
        for name in ("inbox", "Lists/Zürich", "never made"):
            self.get(self.store.subscribe(name, True))
        self.get(self.store.subscribe("Lists/Zürich", True))
        self.assertEqual(
            sorted(self.get(self.store.subscriptions())), ["INBOX", "Lists/Zürich", "never made"]
        )
        self.get(self.store.subscribe("never made", False))
        self.get(self.store.subscribe("never made", False))
        self.assertEqual(sorted(self.get(self.store.subscriptions())), ["INBOX", "Lists/Zürich"])
        self.assertTrue(self.get(self.store.list_mailboxes())[0].subscribed)

    def test_nothing_happens_in_missing_mailboxes(self) -> None:
        inbox = self.inbox(ONE)
        self.fails(NoSuchMailbox, self.store.open("nothing"))
        self.fails(NoSuchMailbox, self.store.status("nothing"))
        self.fails(NoSuchMailbox, self.store.append("nothing", ONE))
        self.fails(NoSuchMailbox, inbox.copy([1], "nothing"))
        self.assertEqual(self.names(), ["INBOX"])

    # --- messages --------------------------------------------------------------------------------

    def test_append_and_read_byte_for_byte(self) -> None:
        validity, uid = self.get(self.store.append("INBOX", ONE, ["\\Seen", "\\Recent", "$Work"], 12345.0))
        self.get(self.store.append("INBOX", TWO))
        self.get(self.store.append("INBOX", b""))
        inbox = self.inbox()
        self.assertEqual((inbox.uid_validity, inbox.entries[0].uid), (validity, uid))
        self.assertEqual([entry.uid for entry in inbox.entries], [1, 2, 3])
        self.assertEqual(inbox.uid_next, 4)
        self.assertEqual(inbox.entries[0].flags, {"\\Seen", "$Work"})
        self.assertEqual(inbox.entries[0].internal_date, 12345.0)
        for entry, message in zip(inbox.entries, (ONE, TWO, b""), strict=True):
            self.assertEqual(self.get(inbox.read(entry.uid)), message)
            self.assertEqual(entry.size, len(message))
        unique = {entry.unique_name for entry in inbox.entries}
        self.assertEqual(len(unique), 3)
        self.assertTrue(all(1 <= len(name) <= 70 and name.isprintable() for name in unique))

    def test_a_view_changes_only_by_refresh(self) -> None:
        inbox = self.inbox(ONE)
        self.get(self.store.append("INBOX", TWO))
        self.deliver(THREE)
        self.assertEqual(len(inbox.entries), 1)
        changes = self.get(inbox.refresh())
        self.assertEqual(changes.added, tuple(inbox.entries[1:]))
        self.assertEqual((changes.expunged, changes.changed), ((), ()))
        self.assertEqual([self.get(inbox.read(entry.uid)) for entry in inbox.entries], [ONE, TWO, THREE])
        self.assertEqual(self.get(inbox.refresh()).added, ())

    def test_what_others_do_is_told_once(self) -> None:
        inbox = self.inbox(ONE, TWO, THREE)
        self.change_flags(inbox.entries[0], {"\\Seen", "\\Flagged"})
        self.vanish(inbox.entries[1])
        changes = self.get(inbox.refresh())
        self.assertEqual(changes.expunged, (2,))
        self.assertEqual(
            [(entry.uid, entry.flags) for entry in changes.changed], [(1, {"\\Seen", "\\Flagged"})]
        )
        self.assertEqual([entry.uid for entry in inbox.entries], [1, 3])
        again = self.get(inbox.refresh())
        self.assertEqual((again.expunged, again.changed, again.added), ((), (), ()))

    def test_recent_belongs_to_one_session(self) -> None:
        self.deliver(ONE)
        looker = self.inbox(read_only=True)
        first = self.inbox()
        second = self.inbox()
        self.assertEqual([box.entries[0].recent for box in (looker, first, second)], [True, True, False])
        self.deliver(TWO)
        self.get(first.refresh())
        self.get(second.refresh())
        self.assertEqual([entry.recent for entry in first.entries], [True, True])
        self.assertEqual([entry.recent for entry in second.entries], [False, False])
        self.deliver(THREE)
        self.assertEqual(self.get(self.store.status("INBOX")).recent, 1)

    def test_uids_are_never_given_twice(self) -> None:
        inbox = self.inbox(ONE, TWO)
        self.get(inbox.remove([2]))
        self.assertEqual(self.get(self.store.append("INBOX", THREE))[1], 3)
        self.get(inbox.refresh())
        self.assertEqual([entry.uid for entry in inbox.entries], [1, 3])

    def test_flags(self) -> None:
        inbox = self.inbox(ONE, TWO)
        added = self.get(inbox.set_flags([1, 2, 99], ["\\Seen", "$Forwarded"], "add"))
        self.assertEqual(
            [(entry.uid, entry.flags) for entry in added], [(uid, {"\\Seen", "$Forwarded"}) for uid in (1, 2)]
        )
        self.get(inbox.set_flags([1], ["$Forwarded", "\\Recent"], "remove"))
        self.get(inbox.set_flags([2], ["\\Draft", "\\Answered", "\\Deleted", "\\Flagged"], "set"))
        self.assertEqual(
            [entry.flags for entry in inbox.entries],
            [{"\\Seen"}, {"\\Draft", "\\Answered", "\\Deleted", "\\Flagged"}],
        )
        self.assertEqual(self.get(inbox.refresh()).changed, ())
        self.get(inbox.set_flags([1], [], "set"))
        self.assertEqual(inbox.entries[0].flags, set())
        self.assertEqual(self.get(self.store.status("INBOX")).unseen, 2)
        self.assertEqual(
            [entry.flags for entry in self.inbox().entries], [entry.flags for entry in inbox.entries]
        )

    def test_other_sessions_see_flags_after_refresh(self) -> None:
        inbox, other = self.inbox(ONE), self.inbox()
        self.get(inbox.set_flags([1], ["\\Seen", "$Label"], "add"))
        self.assertEqual(other.entries[0].flags, set())
        self.assertEqual([entry.flags for entry in self.get(other.refresh()).changed], [{"\\Seen", "$Label"}])

    def test_read_only_changes_nothing(self) -> None:
        self.deliver(ONE)
        inbox = self.inbox(read_only=True)
        self.assertTrue(inbox.read_only)
        self.fails(MailboxError, inbox.set_flags([1], ["\\Seen"], "add"))
        self.fails(MailboxError, inbox.expunge())
        self.fails(MailboxError, inbox.remove([1]))
        self.assertEqual(self.get(inbox.read(1)), ONE)

    def test_expunge(self) -> None:
        inbox, other = self.inbox(ONE, TWO, THREE), self.inbox()
        self.get(inbox.set_flags([1, 3], ["\\Deleted"], "add"))
        self.assertEqual(list(self.get(inbox.expunge([2, 3]))), [3])
        self.assertEqual([entry.uid for entry in inbox.entries], [1, 2])
        self.assertEqual(list(self.get(inbox.expunge())), [1])
        self.assertEqual(list(self.get(inbox.expunge())), [])
        self.assertEqual(self.get(inbox.refresh()).expunged, ())
        self.assertEqual(len(other.entries), 3)
        self.fails(MailboxError, other.read(3))
        self.assertEqual(list(self.get(other.expunge())), [])
        self.assertEqual(self.get(other.refresh()).expunged, (1, 3))

    def test_expunge_leaves_what_the_session_was_not_told_of(self) -> None:
        inbox = self.inbox(ONE)
        self.get(self.store.append("INBOX", TWO, ["\\Deleted"]))
        self.assertEqual(list(self.get(inbox.expunge())), [])
        self.assertEqual(len(self.get(inbox.refresh()).added), 1)

    def test_remove_whatever_the_flags(self) -> None:
        inbox, other = self.inbox(ONE, TWO), self.inbox()
        self.get(inbox.remove([1]))
        self.get(other.remove([1, 2]))  # one is gone already: no harm
        self.get(other.refresh())
        self.assertEqual(other.entries, [])
        self.assertEqual(self.get(self.store.status("INBOX")).messages, 0)

    def test_copy(self) -> None:
        self.get(self.store.create("Archive/2024"))
        self.get(self.store.append("Archive/2024", ONE, ["$Other"]))
        self.get(self.store.append("INBOX", TWO, ["\\Seen", "$Label"], 12345.0))
        inbox = self.inbox(THREE)
        validity, uids = self.get(inbox.copy([1, 2], "Archive/2024"))
        archive = self.get(self.store.open("Archive/2024"))
        self.assertEqual(
            (archive.uid_validity, [entry.uid for entry in archive.entries]), (validity, [1, *uids])
        )
        self.assertEqual([self.get(archive.read(uid)) for uid in uids], [TWO, THREE])
        self.assertEqual(archive.entries[1].flags, {"\\Seen", "$Label"})
        self.assertEqual(archive.entries[1].internal_date, 12345.0)
        self.assertEqual(archive.entries[1].size, len(TWO))
        # And the two are independent of each other.
        self.get(inbox.remove([1]))
        self.assertEqual(self.get(archive.read(uids[0])), TWO)

    def test_copy_into_itself(self) -> None:
        inbox = self.inbox(ONE)
        self.assertEqual(list(self.get(inbox.copy([1], "INBOX"))[1]), [2])
        self.get(inbox.refresh())
        self.assertEqual(len({entry.unique_name for entry in inbox.entries}), 2)

    def test_copy_is_all_or_none(self) -> None:
        self.get(self.store.create("a"))
        inbox = self.inbox(ONE, TWO)
        self.vanish(inbox.entries[1])
        self.fails(MailboxError, inbox.copy([1, 2], "a"))
        self.assertEqual(self.get(self.store.status("a")).messages, 0)

    def test_sessions_of_a_removed_mailbox_find_it_empty(self) -> None:
        self.get(self.store.create("a"))
        self.get(self.store.append("a", ONE))
        mailbox = self.get(self.store.open("a"))
        self.get(self.store.delete("a"))
        self.get(self.store.create("a"))
        self.get(self.store.append("a", TWO))
        self.assertEqual(self.get(mailbox.refresh()).expunged, (1,))
        self.fails(MailboxError, mailbox.read(1))
        self.assertEqual(mailbox.entries, [])
        self.assertEqual(self.get(mailbox.refresh()).added, ())

    # --- watching --------------------------------------------------------------------------------

    def test_watchers_are_told_of_other_sessions(self) -> None:
        told: list[str] = []
        inbox, other = self.inbox(ONE), self.inbox()
        stop = inbox.watch(lambda: told.append("x"))
        for change in (
            lambda: self.get(self.store.append("INBOX", TWO)),
            lambda: self.get(other.refresh()),
            lambda: self.get(other.set_flags([1], ["\\Deleted"], "add")),
            lambda: self.get(other.expunge()),
            lambda: self.get(other.copy([2], "INBOX")),
            lambda: self.get(other.remove([2])),
        ):
            told.clear()
            change()
            if told:
                self.get(inbox.refresh())
        self.assertEqual([entry.uid for entry in inbox.entries], [3])
        stop()
        stop()
        told.clear()
        self.get(self.store.append("INBOX", TWO))
        self.assertEqual(told, [])
        inbox.watch(lambda: told.append("y"))
        self.get(inbox.close())
        self.get(inbox.close())
        self.get(self.store.append("INBOX", TWO))
        self.assertEqual(told, [])
