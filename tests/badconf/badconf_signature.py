"""Has a handler that does not take what its pattern captures."""

from twisted_mta.handlers import Mail, rcpt


@rcpt("ticket-{id}@example.org")
def ticket(mail: Mail, number: str) -> None:
    """Never called."""
