"""Plays the transcripts in tests/dialogs/imap against the IMAP core, its handler and mailboxes in memory.

The account alice (password "secret") has the messages of tests/dialogs/imap/messages in her INBOX, in order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.imap_world import Whole
from twisted_mta.core.imap.session import ImapSettings
from twisted_mta.testing.dialogs import Transcript, play

DIALOGS = Path(__file__).parent / "imap"


def messages() -> list[bytes]:
    paths = sorted((DIALOGS / "messages").glob("*.eml"))
    return [path.read_bytes().replace(b"\n", b"\r\n") for path in paths]


def replay(text: str) -> tuple[list[str], list[str]]:
    """(a transcript as written, as it really went)."""
    transcript = Transcript.parse(text)
    settings = ImapSettings(hostname="imap.example.test", plaintext_login=True, append_limit=1000)
    whole: Any = Whole(transcript.configure(settings), messages())
    return transcript.lines, play(whole, transcript.lines, whole.ask)


@pytest.mark.parametrize("path", sorted(DIALOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_dialog(path: Path) -> None:
    written, played = replay(path.read_text(encoding="utf-8"))
    assert played == written
