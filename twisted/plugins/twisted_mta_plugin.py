"""Makes `twistd mta` known to twistd. This directory must never get an __init__.py."""

from twisted.application.service import ServiceMaker

mta = ServiceMaker(
    "twisted_mta",
    "twisted_mta.tap",
    "A mail server: SMTP, submission, queue, lists, POP3 and IMAP.",
    "mta",
)
