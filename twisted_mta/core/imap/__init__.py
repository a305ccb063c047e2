"""The IMAP4rev1 protocol core."""
