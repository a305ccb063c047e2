"""Mailboxes as Maildir++ directories, with an index beside them."""
