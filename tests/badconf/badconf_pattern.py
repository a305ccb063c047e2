"""Has a pattern with two names side by side."""

from twisted_mta.handlers import Mail, rcpt


@rcpt("ticket-{id}{more}@example.org")
def ticket(mail: Mail, id: str, more: str) -> None:
    """Never called."""
