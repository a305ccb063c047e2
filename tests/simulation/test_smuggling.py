"""SMTP smuggling: no spelling of the end of a message but CRLF . CRLF ends one, on the way in or on the way out.

Each variant stands in the middle of a message, with a second message behind it, as an attacker would send it. It goes
to the server core, and through the whole server to the next one, where the octets on the wire are looked at: after DATA
and in the chunks of BDAT, for each BODY, with bare_newlines = "refuse" and "normalise".
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.config.schema import Role
from twisted_mta.core.effects import Ask, BodyChunk, Send
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.server import SmtpServer
from twisted_mta.core.smtp.settings import BareNewlines, ServerSettings
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

#: What other servers are known, or could be feared, to take for the end of a message. Refused, all of them.
REFUSED = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r.\n", b"\n\n.\n\n", b"\r\r.\r\r",
    b"\r\r\n.\r\r\n", b"\r\n\r.\r\n", b"\r\n.\r\r\n", b"\n\r.\n\r", b"\r\n\n.\r\n", b"\r\n.\n\r\n", b"\n\r\n.\n\r\n",
    b"\r\n\0.\r\n", b"\r\n\0\0.\r\n", b"\r\n\0.\0\r\n", b"\r\0\n.\r\n", b"\r\0\n.\r\0\n", b"\r\n.\r\0\n", b"\r\n\0\n.\r\n", b"\0\r\n\0.\r\n",
    b"\r\n..\n", b"\r\n..\r", b"\n..\r\n", b"\r..\r", b"\r\n..\r\r\n", b"\n..\n",
    b"\x85\n.\x85\n", b"\r\x85.\r\x85", b"\r\n\r\n.\n\r\n", b"\xff\n.\xff\n",
]  # fmt: skip
#: Text like any other, for us and for all who keep to lines that end in CRLF.
HARMLESS = [
    b"\r\n..\r\n", b"\r\n...\r\n", b"\r\n. \r\n", b"\r\n.\t\r\n", b"\r\n .\r\n", b"\r\n\x0b.\x0b\r\n", b"\r\n\x0c.\x0c\r\n",
    b"\x85.\x85", b"\x8d\x8a.\x8d\x8a", b"\r\n\xae\r\n", b"\r\n.\x85\r\n", b"\r\n\x85.\r\n", b"\x1e.\x1e", b"\xc2\x85.\xc2\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8", b"\xe2\x80\xa9.\xe2\x80\xa9", b"\xe5\x98\x8a\xe5\x98\x8d.\xe5\x98\x8a\xe5\x98\x8d", b"\xef\xbc\x8e",
    b"\r\n\xef\xbc\x8e\r\n", b"\r\n\xc0\xae\r\n", b"\\r\\n.\\r\\n", b"=0D=0A.=0D=0A", b"%0d%0a.%0d%0a", b"\xef\xbb\xbf.\r\n", b"\r\n\x7f.\r\n",
    b"\r\n\x08.\r\n", b"\r\n\x1a\r\n", b"\r\n\x04\r\n",
]  # fmt: skip
HEAD = b"From: a@example.net\r\nSubject: outer\r\nMessage-ID: <1@example.net>\r\n\r\nbefore"
SECOND = (
    b"MAIL FROM:<admin@example.net>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\n"
    b"From: admin@example.net\r\nSubject: smuggled\r\n\r\nbelieve me\r\n"
)


def envelope(body: bytes) -> bytes:
    """The commands in front of a message of that BODY."""
    return b"EHLO client\r\nMAIL FROM:<a@example.net> BODY=%b\r\nRCPT TO:<carol@example.org>\r\n" % body


ENVELOPE = envelope(b"8BITMIME")
BODIES = (b"7BIT", b"8BITMIME", b"BINARYMIME")
END = b"\r\n.\r\n"
#: A line end is CRLF and nothing else; a line that begins with NUL is one that some see begin with the next octet.
UNSAFE = re.compile(rb"\r(?!\n)|(?<!\r)\n|\r\n\0")


def unstuffed(data: bytes) -> bytes:
    return (b"\r\n" + data).replace(b"\r\n.", b"\r\n")[2:]


def mended(data: bytes) -> bytes:
    """With each CR or LF that stands alone as a line end."""
    return re.sub(rb"\r\n|\r|\n", b"\r\n", data)


def chunked(*pieces: bytes) -> bytes:
    """Pieces as BDAT sends them."""
    commands = [b"BDAT %d\r\n%b" % (len(piece), piece) for piece in pieces]
    return b"".join(commands) + b"BDAT 0 LAST\r\n"


class Outcome:
    """What a server core made of one stream: its reply codes, its messages (None: refused) and who it let write them."""

    def __init__(self, stream: bytes, step: int, bare: BareNewlines = BareNewlines.REFUSE) -> None:
        self.messages: list[bytes | None] = []
        self.senders: list[str] = []
        self._replies = b""
        self._body = b""
        self._core = SmtpServer(ServerSettings(hostname="mx", bare_newlines=bare))
        self._perform(self._core.greet())
        for start in range(0, len(stream), step):
            self._perform(self._core.receive(stream[start : start + step]))
        self.codes = re.findall(rb"^(\d{3}) ", self._replies, re.M)

    def _perform(self, effects: Iterable[Any]) -> None:
        pending = list(effects)
        while pending:
            match pending.pop(0):
                case Send(data):
                    self._replies += data
                case BodyChunk(data):
                    self._body += data
                case Ask(question):
                    pending[:0] = self._core.answer(self._answer(question))

    def _answer(self, question: q.Question) -> Any:
        ok = Reply(250, "2.0.0", "OK")
        match question:
            case q.MailFrom(envelope):
                self.senders.append(str(envelope.sender))
                return ok
            case q.RcptTo():
                return ok
            case q.EndMessage(refusal):
                self.messages.append(None if refusal else self._body)
                self._body = b""
                return refusal or ok
            case q.DropMessage():
                self.messages.append(None)
                self._body = b""
        return None


class CoreTests(SynchronousTestCase):
    """What comes in."""

    bare = BareNewlines.REFUSE

    def check(self, stream: bytes, *messages: bytes | None, body: bytes = b"8BITMIME") -> None:
        """Whole and a byte at a time: these messages and no others, and only commands of the outer session are heard."""
        for step in (len(stream), 1, 3):
            outcome = Outcome(envelope(body) + stream + b"NOOP\r\n", step, self.bare)
            self.assertEqual(outcome.messages, list(messages), (stream, step))
            self.assertEqual(outcome.senders, ["a@example.net"], (stream, step))
            self.assertEqual(outcome.codes[-1], b"250", (stream, step))

    def test_data(self) -> None:
        for variant in REFUSED:
            self.check(b"DATA\r\n" + HEAD + variant + SECOND + END, None)
        for variant in HARMLESS:
            text = HEAD + variant + SECOND
            self.check(b"DATA\r\n" + text + END, unstuffed(text + b"\r\n"))

    def test_nul_behind_a_dot(self) -> None:
        """After DATA the dot is stuffing, and the NUL begins the line; in a chunk the dot does."""
        text = HEAD + b"\r\n.\0\r\n" + SECOND
        self.check(b"DATA\r\n" + text + END, None)
        self.check(chunked(text), text)

    def test_the_true_end_behind_a_lone_cr(self) -> None:
        """CRLF . CRLF ends a message whatever is in front of it; the message is refused, and commands follow."""
        outcome = Outcome(ENVELOPE + b"DATA\r\n" + HEAD + b"\r" + END + b"NOOP\r\n", 1)
        self.assertEqual((outcome.messages, outcome.codes[-2:]), ([None], [b"554", b"250"]))

    def test_the_true_end_at_the_beginning(self) -> None:
        """Behind the 354 the line end is that of the command."""
        self.check(b"DATA\r\n.\r\n", b"")
        for variant in (b".\n", b".\r", b"\0.\r\n", b"\n.\r\n", b"\r.\r\n", b".\0.\r\n"):
            self.check(b"DATA\r\n" + variant + SECOND + END, None)

    def test_chunks(self) -> None:
        for variant in REFUSED:
            if b"\r\n.." not in variant or UNSAFE.search(variant):
                self.check(chunked(HEAD + variant + SECOND), None)
        for variant in [*HARMLESS, END]:
            self.check(chunked(HEAD + variant + SECOND), HEAD + variant + SECOND)

    def test_chunks_cut_the_end_in_every_place(self) -> None:
        """In a chunk the end of a message is text; so it is where chunks cut it."""
        text = HEAD + END + SECOND
        for first in range(len(HEAD), len(HEAD) + 6):
            for second in range(first, len(HEAD) + 6):
                pieces = (text[:first], text[first:second], text[second:])
                self.check(chunked(*pieces), text)
                self.check(
                    chunked(*(bytes([octet]) for octet in pieces[1]), pieces[0] + pieces[2]),
                    *self.odd(pieces),
                )

    def odd(self, pieces: tuple[bytes, bytes, bytes]) -> Iterator[bytes | None]:
        """The middle first and octet by octet: refused if that leaves a CR or LF alone."""
        text = pieces[1] + pieces[0] + pieces[2]
        yield None if UNSAFE.search(b"\r\n" + text) else text

    def test_chunks_cut_each_variant(self) -> None:
        for variant in REFUSED:
            text = HEAD + variant + SECOND
            for cut in range(len(HEAD), len(HEAD) + len(variant) + 1):
                self.check(chunked(text[:cut], text[cut:]), None)

    def test_a_chunk_that_ends_within_a_line(self) -> None:
        for ending in (b"", b"\r", b"\n", b"\r\n.", b"\r\n.\r"):
            self.check(b"BDAT %d LAST\r\n%b" % (len(HEAD + ending), HEAD + ending), None)

    def test_chunks_that_hide_commands(self) -> None:
        """The size counts, whatever the octets look like, in a chunk that is taken and in one that is refused."""
        self.check(chunked(SECOND), SECOND)
        stream = b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (3, b"a\nb", len(SECOND), SECOND)
        self.check(stream, None)

    def test_each_body(self) -> None:
        """What is told of a message does not matter, but that a binary one has no lines: it comes as it is."""
        for body in BODIES:
            for variant in [*REFUSED, *HARMLESS, END, b"\r\n.\0\r\n"]:
                text = HEAD + variant + SECOND
                fine = body == b"BINARYMIME" or not UNSAFE.search(text)
                self.check(chunked(text), text if fine else None, body=body)
            self.check(chunked(SECOND), SECOND, body=body)
            # The size of the chunk is smaller than it looks: what is behind it are commands, of which none makes sense.
            self.check(b"BDAT 3 LAST\r\na\r\nQUIET\r\n", b"a\r\n", body=body)


class MendingCoreTests(CoreTests):
    """What comes in where bare newlines are mended. None of them ends a message."""

    bare = BareNewlines.NORMALISE

    def mended(self, text: bytes) -> bytes | None:
        """What becomes of a text: refused only for a NUL that begins a line then."""
        text = mended(text)
        return None if b"\r\n\0" in b"\r\n" + text else text

    def test_data(self) -> None:
        for variant in [*REFUSED, *HARMLESS]:
            text = HEAD + variant + SECOND
            self.check(b"DATA\r\n" + text + END, self.mended(unstuffed(text + b"\r\n")))

    def test_nul_behind_a_dot(self) -> None:
        super().test_nul_behind_a_dot()
        self.check(b"DATA\r\n" + HEAD + b"\n\0.\n" + SECOND + END, None)

    def test_the_true_end_behind_a_lone_cr(self) -> None:
        self.check(b"DATA\r\n" + HEAD + b"\r" + END, HEAD + b"\r\n\r\n")

    def test_the_true_end_at_the_beginning(self) -> None:
        self.check(b"DATA\r\n.\r\n", b"")
        for variant in (b".\n", b".\r", b"\0.\r\n", b"\n.\r\n", b"\r.\r\n", b".\0.\r\n"):
            text = unstuffed(variant + SECOND + b"\r\n")
            self.check(b"DATA\r\n" + variant + SECOND + END, self.mended(text))

    def test_chunks(self) -> None:
        for variant in [*REFUSED, *HARMLESS, END]:
            text = HEAD + variant + SECOND
            self.check(chunked(text), self.mended(text))

    def odd(self, pieces: tuple[bytes, bytes, bytes]) -> Iterator[bytes | None]:
        yield self.mended(pieces[1] + pieces[0] + pieces[2])

    def test_chunks_cut_each_variant(self) -> None:
        for variant in REFUSED:
            text = HEAD + variant + SECOND
            for cut in range(len(HEAD), len(HEAD) + len(variant) + 1):
                self.check(chunked(text[:cut], text[cut:]), self.mended(text))

    def test_a_chunk_that_ends_within_a_line(self) -> None:
        for ending in (b"", b"\r", b"\n", b"\r\n.", b"\r\n.\r"):
            text = HEAD + ending
            whole = mended(text)
            whole += b"" if whole.endswith(b"\r\n") else b"\r\n"
            self.check(b"BDAT %d LAST\r\n%b" % (len(text), text), whole)

    def test_chunks_that_hide_commands(self) -> None:
        self.check(chunked(SECOND), SECOND)
        stream = b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (3, b"a\nb", len(SECOND), SECOND)
        self.check(stream, b"a\r\nb" + SECOND)

    def test_each_body(self) -> None:
        for body in BODIES:
            for variant in [*REFUSED, *HARMLESS, END]:
                text = HEAD + variant + SECOND
                self.check(chunked(text), text if body == b"BINARYMIME" else self.mended(text), body=body)


class ServerTestCase(SynchronousTestCase):
    """A server and the next one."""

    limits = ""

    def setUp(self) -> None:
        config = f'\n[relay]\nnetworks = ["127.0.0.0/8"]\n{self.limits}'
        self.world = World(Path(self.mktemp()), config)
        self.addCleanup(self.world.close)
        self.peer = self.world.host("example.org", "192.0.2.1", SmtpPeer(extensions=["8BITMIME"]))

    def send(self, stream: bytes, step: int) -> list[str]:
        """Send octets over a connection of their own; the reply codes. Of earlier messages nothing is left."""
        self.world.advance(10)
        self.peer.messages.clear()
        self.peer.wire.clear()
        address = IPv4Address("TCP", "127.0.0.1", 40000)
        session: Any = self.world.listeners.factory(Role.MX).buildProtocol(address)
        transport: Any = StringTransport(peerAddress=address)
        session.makeConnection(transport)
        for start in range(0, len(stream), step):
            session.dataReceived(stream[start : start + step])
        self.world.network.pump([0.0] * 30)
        session.connectionLost()
        return re.findall(r"^(\d{3}) ", transport.value().decode(), re.M)

    def check(self, stream: bytes, text: bytes | None, body: bytes = b"8BITMIME") -> None:
        """`text` arrives at the next server (None: nothing does), and on the wire nothing else can be read from it."""
        for step in (len(stream), 1):
            codes = self.send(envelope(body) + stream + b"QUIT\r\n", step)
            verdicts = codes[4:-1]  # behind those of the greeting and the envelope
            self.assertEqual("554" in verdicts, text is None, (stream, step))
            # 503: a chunk behind one that was refused
            self.assertIn(verdicts[-1], ("250",) if text is not None else ("554", "503"), (stream, step))
            self.assertEqual(self.world.queued(), [])
            self.world.advance(1)
            if text is None:
                self.assertEqual(bytes(self.peer.wire), b"", (stream, step))
                continue
            [message] = self.peer.messages
            self.assertEqual(self.content(message.data, body), text, (stream, step))
            self.assertEqual(message.sender, "a@example.net")
            self.look_at_the_wire()

    def content(self, data: bytes, body: bytes) -> bytes:
        """Of a message that arrived: what stands below the trace, or, if it was binary, its body decoded."""
        if body != b"BINARYMIME":
            return data[data.index(HEAD[:6]) :]
        parsed = email.message_from_bytes(data, policy=email.policy.default)
        self.assertEqual((parsed["Subject"], parsed.get_all("From")), ("outer", ["a@example.net"]))
        content = parsed.get_payload(decode=True)
        assert isinstance(content, bytes)
        return content

    def look_at_the_wire(self) -> None:
        wire = bytes(self.peer.wire)
        self.assertIsNone(UNSAFE.search(wire), wire)
        _, _, after = wire.partition(b"DATA\r\n")
        self.assertEqual(after.count(END), 1, wire)
        self.assertIn(after.partition(END)[2], (b"", b"QUIT\r\n"), wire)
        # No line of the message but the last begins with a lone dot, or with one that a dot did not follow.
        self.assertEqual(re.findall(rb"\r\n\.(?!\.)", after), [b"\r\n."], wire)


class WholeServerTests(ServerTestCase):
    """What goes out."""

    def test_data(self) -> None:
        for variant in REFUSED:
            self.check(b"DATA\r\n" + HEAD + variant + SECOND + END, None)
        for variant in HARMLESS:
            text = HEAD + variant + SECOND
            self.check(b"DATA\r\n" + text + END, unstuffed(text + b"\r\n"))

    def test_chunks(self) -> None:
        for variant in REFUSED:
            self.check(chunked(HEAD + variant + SECOND), None)
        for variant in [*HARMLESS, END, END + END, b"\r\n..\r\n.\r\n"]:
            self.check(chunked(HEAD + variant + SECOND), HEAD + variant + SECOND)

    def test_chunks_that_cut_the_end(self) -> None:
        text = HEAD + END + SECOND
        for cut in range(len(HEAD), len(HEAD) + 6):
            self.check(chunked(text[:cut], text[cut:]), text)
            self.check(chunked(text[: cut - 1], text[cut - 1 : cut + 1], text[cut + 1 :]), text)

    def test_seven_bits(self) -> None:
        for variant in REFUSED:
            self.check(chunked(HEAD + variant + SECOND), None, b"7BIT")
        for variant in [*HARMLESS, END]:
            self.check(chunked(HEAD + variant + SECOND), HEAD + variant + SECOND, b"7BIT")

    def test_binary_messages(self) -> None:
        """They are converted as they come in: nothing of what would be refused in a text is left on the wire."""
        for variant in [*REFUSED, *HARMLESS, END, END + END, b"\r\n.\0\r\n"]:
            # Without a line end behind it: one that is missing at the end of a text is added.
            text = b"before" + variant + SECOND
            self.check(chunked(HEAD + variant + SECOND), text, b"BINARYMIME")
            self.check(chunked(HEAD + variant, SECOND), text, b"BINARYMIME")

    def whatever_comes(self, message: bytes) -> None:
        """A binary message is refused, or leaves in a form that nothing else can be read from."""
        for step in (len(message), 7):
            codes = self.send(envelope(b"BINARYMIME") + chunked(message), step)
            self.world.advance(1)
            self.assertEqual(codes[-1] == "250", bool(self.peer.wire), message)
            if self.peer.wire:
                self.look_at_the_wire()

    def test_binary_headers(self) -> None:
        """A header can't be encoded: with anything in it but lines the message is refused."""
        for variant in REFUSED:
            message = HEAD.replace(b"outer", b"outer" + variant + b"X-Inner: y") + SECOND
            self.whatever_comes(message)
            if b"\r\n\r\n" not in variant and b"\r\n.\r\n" not in variant:
                self.assertEqual(bytes(self.peer.wire), b"", variant)

    def test_binary_parts(self) -> None:
        """A part of a multipart message, its header, and what is around it."""
        head = HEAD.partition(b"\r\n\r\n")[0] + (
            b"\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\nprologue\r\n"
            b"--b\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        )
        for variant in REFUSED:
            text = b"before" + variant + SECOND
            message = head + text + b"\r\n--b--\r\n"
            self.whatever_comes(message)
            [received] = self.peer.messages
            [part] = email.message_from_bytes(received.data).get_payload()  # type: ignore[misc]
            self.assertEqual(part.get_payload(decode=True), text)
            for place in (b"boundary=b", b"prologue", b"--b\r", b"text/plain", b"binary", b"--b--"):
                spoilt = message.replace(place, place + variant)
                self.assertNotEqual(spoilt, message)
                self.whatever_comes(spoilt)


class MendingServerTests(ServerTestCase):
    """What goes out where bare newlines are mended."""

    limits = '[limits]\nbare_newlines = "normalise"\n'

    def mended(self, text: bytes) -> bytes | None:
        """What becomes of a text: refused only for a NUL that begins a line then."""
        text = mended(text)
        return None if b"\r\n\0" in text else text

    def test_data(self) -> None:
        for variant in [*REFUSED, *HARMLESS]:
            text = HEAD + variant + SECOND
            self.check(b"DATA\r\n" + text + END, self.mended(unstuffed(text + b"\r\n")))

    def test_chunks(self) -> None:
        for variant in [*REFUSED, *HARMLESS, END, END + END, b"\r\n..\r\n.\r\n"]:
            self.check(chunked(HEAD + variant + SECOND), self.mended(HEAD + variant + SECOND))
