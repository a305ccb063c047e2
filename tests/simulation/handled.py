"""Handlers of the made-up sites, which take everything and remember what they got."""

from __future__ import annotations

from twisted_mta.handlers import Mail, rcpt

#: (name of the handler, subject).
TAKEN: list[tuple[str, str]] = []


@rcpt("ticket-{id}@example.test")
def ticket(mail: Mail, id: str) -> None:
    """From the queue."""
    TAKEN.append((f"{__name__}.ticket", mail.message["subject"]))


@rcpt("desk-{id}@example.test", inline=True)
def desk(mail: Mail, id: str) -> None:
    """Before the message is acknowledged."""
    TAKEN.append((f"{__name__}.desk", mail.message["subject"]))
