"""Mailboxes as Maildir++ directories, with an index beside them."""

from twisted_mta.store.maildir.store import MaildirMailboxes, MaildirStore

__all__ = ["MaildirMailboxes", "MaildirStore"]
