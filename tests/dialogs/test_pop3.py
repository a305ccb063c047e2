"""Plays the transcripts in tests/dialogs/pop3 against the POP3 server core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twisted_mta.core.pop3.maildrop import top
from twisted_mta.core.pop3.questions import Drop, Listing, Login, Refusal, Retrieve, Update
from twisted_mta.core.pop3.server import Pop3Server, Pop3Settings
from twisted_mta.core.sasl import Credentials, Lookup, Proof
from twisted_mta.testing.dialogs import Transcript, play
from twisted_mta.testing.scram import known_secret

DIALOGS = Path(__file__).parent / "pop3"
MESSAGES = {
    11: b"Subject: one\r\n\r\n.dot\r\n..\r\nend\r\n",
    12: b"Subject: header only",
    15: b"",
}


def answer(question: Any) -> Any:
    """A maildrop of three; some logins find it in a bad way."""
    match question:
        case Lookup("busy"):
            return Refusal("SYS/TEMP", "Too many logins")
        case Lookup(login):
            return known_secret(login)
        case Login(Proof("alice", right)) if right:
            return [Drop(uid, len(MESSAGES.get(uid, b"")), f"m{uid}") for uid in MESSAGES]
        case Login(Credentials(login, b"pass word")) if login in ("alice", "full", "gone"):
            uids = {"alice": MESSAGES, "full": [15], "gone": [99]}[login]
            return [Drop(uid, len(MESSAGES.get(uid, b"")), f"m{uid}") for uid in uids]
        case Login(Credentials("broken")):
            return Refusal("SYS/TEMP", "The mailbox can't be used just now")
        case Login():
            return Refusal("AUTH", "Login or password is wrong")
        case Listing(octets):
            return octets
        case Retrieve(99):
            return Refusal("", "The message is gone")
        case Retrieve(uid, lines):
            return MESSAGES[uid] if lines is None else top(MESSAGES[uid], lines)
        case Update((15,)):
            return Refusal("SYS/TEMP", "Deleted messages were not removed: no room")
        case Update(uids):
            assert uids in ((11, 15), (12,))
            return None


@pytest.mark.parametrize("path", sorted(DIALOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_dialog(path: Path) -> None:
    transcript = Transcript.parse(path.read_text(encoding="utf-8"))
    core = Pop3Server(transcript.configure(Pop3Settings(hostname="mx.example.test", error_limit=50)))
    assert play(core, transcript.lines, answer) == transcript.lines
