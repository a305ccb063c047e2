"""What the client knows of the selected mailbox: message numbers, flags in use. RFC 3501 §2.3.1.2, §7.4.1.

The numbers change only through `View.expunge` and `View.add`, and each change gives the responses that tell the
client, so both sides count alike.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from twisted_mta.core.imap.entries import Changes, Entry
from twisted_mta.core.imap.grammar import SYSTEM_FLAGS, SequenceSet
from twisted_mta.core.imap.questions import Opened
from twisted_mta.core.imap.responses import flag_list


class View:
    """The messages of one selected mailbox as they were told to the client."""

    def __init__(self, opened: Opened) -> None:
        self.read_only = opened.read_only
        self._uids = [entry.uid for entry in opened.entries]
        self._recent = {entry.uid for entry in opened.entries if entry.recent}
        self._keywords: set[str] = set()
        self._note_keywords(opened.entries)
        self._unseen = next(
            (n for n, entry in enumerate(opened.entries, 1) if "\\Seen" not in entry.flags), 0
        )
        self._uid_validity = opened.uid_validity
        self._uid_next = opened.uid_next

    # --- numbers -------------------------------------------------------------------------------

    @property
    def highest_uid(self) -> int:
        """The UID that ``*`` stands for; 0 in an empty mailbox."""
        return self._uids[-1] if self._uids else 0

    def number(self, uid: int) -> int | None:
        """The sequence number of a UID; None if the client does not know of it."""
        at = bisect_left(self._uids, uid)
        return at + 1 if at < len(self._uids) and self._uids[at] == uid else None

    def uids(self, chosen: SequenceSet, by_uid: bool) -> tuple[int, ...] | None:
        """The UIDs of a set in rising order; None if it names a message number that is not there.

        UIDs that are not there are passed over (RFC 3501 §6.4.8).
        """
        found: list[int] = []
        if by_uid:
            for first, last in chosen.resolve(self.highest_uid):
                found += self._uids[bisect_left(self._uids, first) : bisect_right(self._uids, last)]
            return tuple(found)
        for first, last in chosen.resolve(len(self._uids)):
            if first < 1:
                continue  # "*" in an empty mailbox, which every client asks for
            if last > len(self._uids):
                return None
            found += self._uids[first - 1 : last]
        return tuple(found)

    def uid_ranges(self, chosen: SequenceSet) -> tuple[tuple[int, int], ...]:
        """The UIDs of message numbers as ranges, for SEARCH; numbers that are not there match nothing."""
        count = len(self._uids)
        return tuple(
            (self._uids[first - 1], self._uids[min(last, count) - 1])
            for first, last in chosen.resolve(count)
            if 1 <= first <= count
        )

    # --- what the client is told ---------------------------------------------------------------

    def greeting(self) -> bytes:
        """The untagged responses of SELECT, RFC 3501 §6.3.1."""
        flags = self._flags_line()
        permanent = b"()" if self.read_only else flag_list([*SYSTEM_FLAGS, *self._keywords], "\\*")
        lines = [
            flags,
            b"* OK [PERMANENTFLAGS %s] what can be changed" % permanent,
            b"* %d EXISTS" % len(self._uids),
            b"* %d RECENT" % len(self._recent),
        ]
        if self._unseen:
            lines.append(b"* OK [UNSEEN %d] the first one unseen" % self._unseen)
        lines.append(b"* OK [UIDVALIDITY %d] UIDs are valid" % self._uid_validity)
        lines.append(b"* OK [UIDNEXT %d] the next UID" % self._uid_next)
        return b"".join(line + b"\r\n" for line in lines)

    def _flags_line(self) -> bytes:
        return b"* FLAGS " + flag_list([*SYSTEM_FLAGS, *self._keywords])

    def _note_keywords(self, entries: Iterable[Entry]) -> bool:
        """Whether there are keywords that were not known."""
        before = len(self._keywords)
        for entry in entries:
            self._keywords.update(flag for flag in entry.flags if not flag.startswith("\\"))
        return len(self._keywords) > before

    def changes(self, changes: Changes, with_uid: bool) -> bytes:
        """Take in what happened and tell it."""
        out = [self.expunge(changes.expunged), self.flags_changed(changes.changed, with_uid)]
        if changes.added:
            out.append(self._add(changes.added))
        return b"".join(out)

    def expunge(self, uids: Sequence[int]) -> bytes:
        """Messages are gone. Told from the last to the first, so that each number is still right."""
        gone = {uid for uid in uids if self.number(uid) is not None}
        lines = [b"* %d EXPUNGE\r\n" % (self.number(uid) or 0) for uid in sorted(gone, reverse=True)]
        if gone:
            self._uids = [uid for uid in self._uids if uid not in gone]
            self._recent -= gone
        return b"".join(lines)

    def _add(self, entries: Sequence[Entry]) -> bytes:
        out = [self._new_keywords(entries)]
        for entry in entries:
            if entry.uid > self.highest_uid:
                self._uids.append(entry.uid)
                if entry.recent:
                    self._recent.add(entry.uid)
        out.append(b"* %d EXISTS\r\n* %d RECENT\r\n" % (len(self._uids), len(self._recent)))
        return b"".join(out)

    def _new_keywords(self, entries: Iterable[Entry]) -> bytes:
        return self._flags_line() + b"\r\n" if self._note_keywords(entries) else b""

    def flags_changed(self, entries: Sequence[Entry], with_uid: bool, silent: bool = False) -> bytes:
        """FETCH responses with the flags of messages. With `silent` only new keywords are told."""
        out = [self._new_keywords(entries)]
        for entry in entries:
            number = self.number(entry.uid)
            if number is None or silent:
                continue
            uid = b"UID %d " % entry.uid if with_uid else b""
            flags = flag_list(entry.flags, "\\Recent" if entry.recent else "")
            out.append(b"* %d FETCH (%sFLAGS %s)\r\n" % (number, uid, flags))
        return b"".join(out)
