"""Replays the transcripts in smtp_client/ against the SMTP client core.

``S:`` is a line of the server, ``C:`` one of the client, ``>`` what the caller does, ``!`` an event, ``=`` a setting.
Each is replayed with the server's lines whole and octet by octet: the split must not show.
"""

from __future__ import annotations

import itertools
import unittest
from collections.abc import Callable, Iterable, Sequence
from hashlib import pbkdf2_hmac
from pathlib import Path

from twisted_mta.core.address import Address
from twisted_mta.core.effects import Close, Send, StartTLS
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.smtp.client import (
    ClientEffect,
    Derive,
    Login,
    ReadyForBody,
    SendText,
    SessionFailed,
    SessionReady,
    SmtpClient,
    TlsUse,
    TransactionDone,
)
from twisted_mta.core.smtp.sending import can_chunk
from twisted_mta.core.smtp.transaction import Transaction
from twisted_mta.core.smtp.whole import MAX_WHOLE, Whole

HERE = Path(__file__).parent / "smtp_client"


def render(effects: Iterable[ClientEffect]) -> list[str]:
    lines: list[str] = []
    for effect in effects:
        match effect:
            case Send(data) | SendText(data):
                lines += [f"C: {line}" for line in data.decode().removesuffix("\r\n").split("\r\n")]
            case SessionReady():
                lines.append("! ready")
            case ReadyForBody():
                lines.append("! body")
            case StartTLS():
                lines.append("! starttls")
            case Derive(_, salt, iterations):
                lines.append(f"! derive {salt.hex()} {iterations}")
            case Close():
                lines.append("! close")
            case SessionFailed(state, reply):
                lines.append(f"! failed {state.value}: {reply}")
            case TransactionDone(replies, _, undecided, doubtful, sender_refused):
                tail = f" undecided {','.join(map(str, sorted(undecided)))}" if undecided else ""
                tail += f" doubtful {','.join(map(str, sorted(doubtful)))}" if doubtful else ""
                tail += " sender refused" if sender_refused else ""
                lines.append(f"! done {' | '.join(map(str, replies))}{tail}")
    return lines


def transaction(words: list[str]) -> Transaction:
    options = {word for word in words if word in {"8bit", "dsn", "big", "data", "whole", "probe"}}
    sender, *addresses = [word for word in words if word not in options]
    recipients = []
    for word in addresses:
        kind, _, address = word.rpartition(":")
        if kind == "never":
            recipients.append(Recipient(Address.parse(address), Notify.NEVER, "rfc822;b+x@x.test"))
        elif kind == "success":
            recipients.append(Recipient(Address.parse(address), Notify.SUCCESS | Notify.FAILURE, "utf-8;ö"))
        else:
            recipients.append(Recipient(Address.parse(address)))
    return Transaction(
        sender=None if sender == "<>" else Address.parse(sender),
        recipients=tuple(recipients),
        size=100000 if "big" in options else 10,
        chunking="data" not in options,
        probe="probe" in options,
        body_type="8BITMIME" if "8bit" in options else "7BIT",
        envid="a+b=c d" if "dsn" in options else "",
        ret="HDRS" if "dsn" in options else "",
    )


def act(client: SmtpClient, words: list[str]) -> Sequence[ClientEffect]:
    match words:
        case ["start", *rest]:
            chosen = transaction(rest)
            whole = "whole" in rest or (can_chunk(chosen, client.extensions) and chosen.size <= MAX_WHOLE)
            return client.start(chosen, Whole(b".one\r\ntwo") if whole else None)
        case ["body", text]:
            return client.body(text.encode() + b"\r\n")
        case ["end"]:
            return client.end_body()
        case ["secured"]:
            return client.secured()
        case ["secured", binding]:
            return client.secured({binding: b"bound"})
        case ["derived", password, salt]:
            return client.derived(pbkdf2_hmac("sha256", password.encode(), bytes.fromhex(salt), 4096))
        case ["timeout"]:
            return client.timed_out()
        case ["lost"]:
            return client.connection_lost()
        case ["quit"]:
            return client.quit()
        case ["abort"]:
            return client.abort("the body is gone")
    raise AssertionError(f"unknown action {words}")


def make(settings: Iterable[str]) -> SmtpClient:
    tls, login = TlsUse.OPPORTUNISTIC, None
    nonces: Callable[[], bytes] | None = None
    for setting in settings:
        match setting.split():
            case ["=", "tls", use]:
                tls = TlsUse(use)
            case ["=", "login", user, password]:
                login = Login(user, password)
            case ["=", "nonce", nonce]:
                nonces = itertools.repeat(nonce.encode()).__next__
            case _:
                raise AssertionError(setting)
    return SmtpClient("me.example.net", tls=tls, login=login, nonces=nonces)


def replay(lines: list[str], octets: int) -> list[str]:
    """The transcript as it really went, with the server's words in pieces of that many octets."""
    client = make(line for line in lines if line.startswith("="))
    actual: list[str] = []
    for kind, group in itertools.groupby(lines, key=lambda line: line[0]):
        chosen = list(group)
        if kind not in "CS>=!":
            raise AssertionError(f"unknown line {chosen[0]!r}")
        if kind in "C!":
            continue
        actual += chosen
        if kind == "S":
            wire = "".join(line.removeprefix("S:").removeprefix(" ") + "\r\n" for line in chosen).encode()
            for start in range(0, len(wire), octets):
                actual += render(client.receive(wire[start : start + octets]))
        elif kind == ">":
            for line in chosen:
                actual += render(act(client, line[1:].split()))
    return actual


class TranscriptTests(unittest.TestCase):
    maxDiff = None

    def test_transcripts(self) -> None:
        files = sorted(HERE.glob("*.txt"))
        self.assertGreater(len(files), 25)
        for path in files:
            lines = [line for line in path.read_text("utf-8").splitlines() if line and line[0] != "#"]
            for octets in (1, 7, 100000):
                with self.subTest(path.stem, octets=octets):
                    self.assertEqual(replay(lines, octets), lines)
