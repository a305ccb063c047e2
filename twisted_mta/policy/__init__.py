"""Decisions at connect, HELO, MAIL, RCPT and DATA."""
