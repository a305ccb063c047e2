"""What lasts: queue, mailboxes, accounts, aliases."""
