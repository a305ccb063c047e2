"""Has two handlers for the same addresses."""

from twisted_mta.handlers import Mail, rcpt


@rcpt("order-{id}@example.org")
def order(mail: Mail, id: str) -> None:
    """Never called."""


@rcpt("Order-{number}@example.org")
def other(mail: Mail, number: str) -> None:
    """Never called."""
