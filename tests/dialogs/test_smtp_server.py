"""Plays the transcripts in tests/dialogs/smtp_server against the SMTP server core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Credentials, Lookup, Proof
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.server import SmtpServer
from twisted_mta.core.smtp.settings import ServerSettings
from twisted_mta.testing.dialogs import Transcript, play
from twisted_mta.testing.scram import known_secret

DIALOGS = Path(__file__).parent / "smtp_server"


#: Left out of the answers to EHLO unless a transcript says "set without=": they would only repeat themselves.
QUIET = frozenset(
    [
        "SMTPUTF8",
        "CHUNKING",
        "BINARYMIME",
        "DSN",
        "LIMITS",
        "DELIVERBY",
        "FUTURERELEASE",
        "MT-PRIORITY",
        "REQUIRETLS",
        "XCLIENT",
    ]
)
NOW = 1_800_000_000.0


def answer(question: Any) -> Any:
    """A world with one login, and in which addresses say how they want to be answered."""
    match question:
        case q.MailFrom(envelope):
            if envelope.sender is not None and envelope.sender.local == "refused":
                return Reply(550, "5.7.1", "Not from you")
            return Reply(250, "2.1.0", "Sender OK")
        case q.RcptTo(_, recipient):
            if recipient.address.local == "unknown":
                return Reply(550, "5.1.1", "No such user here")
            if recipient.address.local == "later":
                return Reply(450, "4.2.1", "Not now")
            if recipient.address.local == "shutdown":
                return Reply(421, "4.3.2", "Closing")
            return Reply(250, "2.1.5", "Recipient OK")
        case q.EndMessage(refusal):
            return refusal or Reply(250, "2.0.0", "Queued as 1")
        case q.BeginMessage(envelope):
            if envelope.sender is not None and envelope.sender.local == "full":
                return Reply(452, "4.3.1", "No room")
            return None
        case q.Hello(name):
            return Reply(550, "5.7.1", "Not you") if name == "spammer" else None
        case Lookup("busy"):
            return Reply(454, "4.7.0", "Too many logins")
        case Lookup(login):
            return known_secret(login)
        case q.Authenticate(_, Proof("alice", right)):
            return right
        case q.Authenticate(_, Credentials("busy")):
            return Reply(454, "4.7.0", "Too many logins")
        case q.Authenticate(_, credentials):
            return credentials == Credentials("alice", b"secret")
        case q.Verify(argument) if argument.startswith("unknown"):
            return Reply(550, "5.1.1", f"There is no {argument}")
        case q.Verify(argument):
            return Reply(250, "2.1.5", f"<{argument}@example.test>")
        case q.Expand(argument):
            return Reply(250, "2.1.5", f"<one@{argument}>\n<two@{argument}>")
        case q.ClientIs(attributes):
            if attributes.get("NAME") == "evil" or attributes.get("LOGIN") == "nobody":
                return Reply(550, "5.7.1", "Not for you")
            return q.Standing(logged_in=bool(attributes.get("LOGIN")))
        case _:
            return None


@pytest.mark.parametrize("path", sorted(DIALOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_dialog(path: Path) -> None:
    transcript = Transcript.parse(path.read_text(encoding="utf-8"))
    settings = ServerSettings(
        hostname="mx.example.test", size_limit=200, recipient_limit=3, error_limit=50, without=QUIET
    )
    core = SmtpServer(transcript.configure(settings), lambda: NOW)
    assert play(core, transcript.lines, answer) == transcript.lines
