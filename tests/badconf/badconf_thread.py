"""Has an async function that is to run in a thread."""

from twisted_mta.handlers import Mail, rcpt


@rcpt("thread@example.org", thread=True)
async def thread(mail: Mail) -> None:
    """Never called."""
