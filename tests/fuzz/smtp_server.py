"""Random SMTP dialogues at the server core, the same for the same seed.

    python -m tests.fuzz.smtp_server --count 1000000 --seed 1

An input is one stream of octets for one session: mostly a dialogue that gets somewhere, with lines left out, doubled,
swapped, cut and garbled, given to the core in pieces of any size, while the world behind it accepts, refuses and fails
at random. A failure names its seed; `--count 1 --seed SEED` plays that one alone, and `--show` prints it.
"""

from __future__ import annotations

import argparse
import base64
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted_mta.core.effects import Ask, BodyChunk, Close, Effect, Send, StartTLS
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Lookup, Proof
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.commands import MAX_LINE
from twisted_mta.core.smtp.lines import MAX_GARBAGE
from twisted_mta.core.smtp.server import SmtpServer
from twisted_mta.core.smtp.settings import Audience, BareNewlines, Role, ServerSettings
from twisted_mta.core.smtp.states import State
from twisted_mta.testing.scram import ITERATIONS, NONCE, SALT, ScramClient, known_secret

SETTINGS = {
    "mx": ServerSettings(hostname="mx", tls_available=True),
    "submission": ServerSettings(
        hostname="mx", role=Role.SUBMISSION, tls_available=True, scram=True, hold_limit=3600, error_limit=50
    ),
    "lmtp": ServerSettings(hostname="mx", role=Role.LMTP, without=frozenset({"BINARYMIME"})),
    "small": ServerSettings(
        hostname="mx",
        size_limit=40,
        recipient_limit=2,
        message_limit=2,
        error_limit=4,
        idle_limit=4,
        refusal_limit=2,
        xclient=True,
    ),
    "plain": ServerSettings(hostname="mx", without=frozenset({"CHUNKING", "PIPELINING", "SMTPUTF8"})),
    "mending": ServerSettings(
        hostname="mx",
        bare_newlines=BareNewlines.NORMALISE,
        deliver_by_minimum=100,
        vrfy=Audience.ANYONE,
        expn=Audience.TRUSTED,
        trusted=True,
        error_limit=50,
    ),
    "behind": ServerSettings(
        hostname="mx", role=Role.SUBMISSION, tls_available=True, xclient=True, help="https://mx.test/"
    ),
}

_EFFECTS = (Send, Ask, BodyChunk, StartTLS, Close)
#: What the core says is one or more of these, whole.
_REPLIES = re.compile(
    rb"(?:[2-5][0-9][0-9]-[\x20-\x7e\x80-\xff]*\r\n)*[2-5][0-9][0-9] [\x20-\x7e\x80-\xff]*\r\n"
)
_OK = Reply(250, "2.0.0", "OK")
_SECRET = known_secret("alice")
_ANSWERS: dict[type, Sequence[Any]] = {
    q.Connected: (None,) * 30 + (Reply(554, "5.7.1", "no"), Reply(421, "4.7.0", "no")),
    q.Hello: (None,) * 15 + (Reply(550, "5.7.1", "no"),),
    q.MailFrom: (_OK,) * 12
    + (Reply(550, "5.7.1", "no"), Reply(451, "4.7.1", "no"), Reply(421, "4.3.2", "no")),
    q.RcptTo: (_OK,) * 12 + (Reply(550, "5.1.1", "no"), Reply(450, "4.2.1", "no"), Reply(421, "4.3.2", "no")),
    q.BeginMessage: (None,) * 9 + (Reply(452, "4.3.1", "full"),),
    q.DropMessage: (None,),
    q.ClientIs: (q.Standing(), q.Standing(True, False), q.Standing(False, True), Reply(550, "5.7.1", "no")),
    q.Authenticate: (True, True, False, Reply(454, "4.7.0", "later")),
    Lookup: (_SECRET, _SECRET, _SECRET, Reply(454, "4.7.0", "later")),
    q.Verify: (Reply(252, "2.1.5", "maybe"), Reply(550, "5.1.1", "no")),
    q.Expand: (Reply(250, "2.1.5", "<a@b>\n<c@d>"), Reply(550, "5.1.1", "no")),
}

# --- what a client says ----------------------------------------------------------------------------

_HELLO = [
    b"EHLO client",
    b"EHLO client",
    b"EHLO client",
    b"LHLO client",
    b"LHLO client",
    b"HELO client",
    b"EHLO [192.0.2.1]",
    b"ehlo",
    b"EHLO  x y",
]
_MAIL = [
    b"MAIL FROM:<a@b.test>", b"MAIL FROM:<a@b.test>", b"MAIL FROM:<>", b"mail from: a@b.test", b"MAIL FROM:<a@b.test> SIZE=30",
    b"MAIL FROM:<a@b.test> SIZE=99999999999999999999", b"MAIL FROM:<a@b.test> BODY=8BITMIME", b"MAIL FROM:<a@b.test> BODY=BINARYMIME",
    b"MAIL FROM:<a@b.test> SMTPUTF8", "MAIL FROM:<ü@b.test> SMTPUTF8".encode(), "MAIL FROM:<ü@b.test>".encode(),
    b"MAIL FROM:<a@b.test> RET=HDRS ENVID=a+2Bb", b"MAIL FROM:<a@b.test> AUTH=<>", b"MAIL FROM:<a@b.test> BY=120;R", b"MAIL FROM:<a@b.test> BY=9;R",
    b"MAIL FROM:<a@b.test> BODY=BINARYMIME", b"MAIL FROM:<a@b.test> BODY=BINARYMIME SIZE=3", b"MAIL FROM:<a@b.test> BODY=7BIT",
    b"MAIL FROM:<a@b.test> HOLDFOR=60", b"MAIL FROM:<a@b.test> MT-PRIORITY=3", b"MAIL FROM:<a@b.test> REQUIRETLS",
    b"MAIL FROM:<@x,@y:a@b.test>", b'MAIL FROM:<"a b"@[IPv6:::1]>', b"MAIL FROM:<a@b.test> X=1 X=2", b"MAIL FROM:a", b"MAIL FROM:<a",
    b"MAIL FROM:<a@b.test> SIZE= BODY", b"MAIL",
]  # fmt: skip
_RCPT = [
    b"RCPT TO:<c@d.test>", b"RCPT TO:<c@d.test>", b"RCPT TO:<e@d.test>", b"RCPT TO:<postmaster>", b"RCPT TO:<c@d.test> NOTIFY=NEVER",
    b"RCPT TO:<c@d.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c@d.test", b"RCPT TO:<c@d.test> ORCPT=utf-8;\\x{fc}@d.test",
    "RCPT TO:<é@d.test>".encode(), b"RCPT TO:<>", b"RCPT TO:<c@d..test>", b"RCPT TO:<c@d.test> NOTIFY=X", b"RCPT TO:", b"rcpt to: c@d.test",
]  # fmt: skip
_OTHER = [
    b"RSET", b"RSET", b"NOOP", b"NOOP x", b"QUIT", b"HELP", b"VRFY a", b"VRFY", b"EXPN l", b"STARTTLS", b"STARTTLS", b"STARTTLS x", b"DATA",
    b"DATA x", b"BDAT", b"BDAT x", b"BDAT -1", b"BDAT 99999999999999999999", b"XCLIENT NAME=x ADDR=192.0.2.9", b"XCLIENT FOO=1",
    b"XCLIENT LOGIN=a+ZZ", b"XCLIENT LOGIN=alice", b"XCLIENT LOGIN=alice ADDR=IPV6:2001:db8::1 PORT=25", b"XCLIENT LOGIN=[UNAVAILABLE]",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25", b"PROXY UNKNOWN", b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c", b"EXPN staff", b"HELP MAIL", b"TURN", b"", b" ", b"\t", b"GET / HTTP/1.1", b"MAIL\0", b"\xff\xfe", b"*", b".", b"=",
    b"AUTH", b"AUTH PLAIN", b"AUTH LOGIN", b"AUTH PLAIN =", b"AUTH PLAIN !", b"AUTH CRAM-MD5", b"AUTH SCRAM-SHA-256",
    b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=alice,r=abc"), b"AUTH PLAIN " + base64.b64encode(b"\0alice\0secret"),
    base64.b64encode(b"alice"), base64.b64encode(b"\0alice\0secret"), base64.b64encode(b"c=biws,r=abc,p=YQ=="),
]  # fmt: skip
_TEXT = [
    b"Subject: x\r\n", b"\r\n", b"text\r\n", b"..\r\n", b".x\r\n", b"\n", b"\r", b"\r\n.\n", b"\n.\r\n", b"\0", b"\xfc", b"\xff" * 9, b"y" * 60,
    b"\r\n.\r", b"RSET\r\n", b"", b"\r\n\0.\r\n", b"x\n\0", b"\n\n.\n", b"\r\r\n.\r\r\n", b"x\r",
]  # fmt: skip


def _scram(password: str) -> bytes:
    """A whole exchange, as the nonces are known beforehand."""
    client = ScramClient("alice", password, b"abc")
    first = base64.b64encode(client.first())
    answer = b"r=abc%b,s=%b,i=%d" % (NONCE, base64.b64encode(SALT), ITERATIONS)
    return b"AUTH SCRAM-SHA-256 %b\r\n%b\r\n" % (first, base64.b64encode(client.final(answer)))


_LOGIN = [
    b"AUTH PLAIN " + base64.b64encode(b"\0alice\0secret"),
    b"AUTH LOGIN\r\nYWxpY2U=\r\nc2VjcmV0",
    _scram("secret"),
    _scram("wrong"),
]


def dialogue(name: str, chance: random.Random) -> bytes:
    """One stream of octets for the settings of that name: commands that make sense together, then spoilt."""
    pick = chance.choice
    hello = b"LHLO client\r\n" if name == "lmtp" else b"EHLO client\r\n"
    lines = [hello if chance.random() < 0.8 else pick(_HELLO) + b"\r\n"]
    if chance.random() < (0.9 if name == "submission" else 0.2):
        lines += [b"STARTTLS\r\n", hello]
    if name == "behind" and chance.random() < 0.8:
        lines += [b"XCLIENT ADDR=192.0.2.9 LOGIN=alice\r\n", hello]
    if chance.random() < (0.9 if name == "submission" else 0.1):
        lines += [pick(_LOGIN) + b"\r\n"] * pick((1, 1, 1, 2))
    for _ in range(chance.randrange(4)):
        lines.append(_one_of(chance, _MAIL) + b"\r\n")
        lines += [_one_of(chance, _RCPT) + b"\r\n" for _ in range(chance.randrange(1, 4))]
        lines += _message(chance)
    for _ in range(chance.randrange(4)):
        lines.insert(chance.randrange(len(lines) + 1), pick(_OTHER) + pick((b"\r\n", b"\r\n", b"\n")))
    for _ in range(chance.randrange(3)):
        _spoil(chance, lines)
    return b"".join(lines)


def _one_of(chance: random.Random, lines: Sequence[bytes]) -> bytes:
    """Mostly the first, which is right everywhere."""
    return lines[0] if chance.random() < 0.7 else chance.choice(lines)


def _message(chance: random.Random) -> list[bytes]:
    text = [_one_of(chance, _TEXT) for _ in range(chance.randrange(5))]
    if chance.random() < 0.5:
        return [b"DATA\r\n", *text, *([b"\r\n"] if text and not text[-1].endswith(b"\r\n") else []), b".\r\n"]
    return [
        *(b"BDAT %d\r\n%b" % (len(piece), piece) for piece in text),
        b"BDAT %d last\r\nend\r\n" % chance.choice((5, 5, 5, 5, 4, 0)),
    ]


def _spoil(chance: random.Random, lines: list[bytes]) -> None:
    if not lines:
        return
    place = chance.randrange(len(lines))
    line = lines[place]
    at = chance.randrange(len(line) + 1)
    match chance.randrange(9):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, line)
        case 2:
            lines.insert(chance.randrange(len(lines)), lines.pop(place))
        case 3:
            lines[place] = line[:at]
        case 4:
            lines[place] = line[:at] + chance.randbytes(chance.randrange(1, 4)) + line[at:]
        case 5:
            lines[place] = (
                line[:at] + bytes([chance.choice(b'\0\r\n. <>@:;=+"\\\x7f\x80\xff')]) + line[at + 1 :]
            )
        case 6:
            lines[place] = line[:at] + line[at:].swapcase()
        case 7 if chance.random() < 0.1:
            lines[place] = line[:at] + b"x" * chance.choice((300, 1100, MAX_LINE, MAX_LINE + 3)) + line[at:]
        case 8 if chance.random() < 0.003:
            lines[place] = line[:at] + b"x" * (MAX_GARBAGE + MAX_LINE + 9)
        case _:
            lines[place] = line[::-1]


# --- the other side --------------------------------------------------------------------------------


class Run:
    """One session with a world that answers by chance. What must hold always is checked at each step."""

    def __init__(self, name: str, chance: random.Random) -> None:
        self.settings = SETTINGS[name]
        self.core = SmtpServer(self.settings)
        self._chance = chance
        self._asked = False
        self._message = False
        self._handshake = False
        self._secure = False
        self._logged_in = False
        self._trusted = self.settings.trusted
        self._text = bytearray()
        self._binary = False
        self.closed = False
        #: How many messages were taken.
        self.taken = 0
        #: The states that were seen.
        self.states: set[State] = set()

    def play(self, stream: bytes) -> None:
        """The whole session, with `stream` from the client in pieces."""
        self._perform(self.core.greet())
        start, most = 0, self._chance.choice((1, 20, 200, 200, *[1 << 16] * 8))
        if len(stream) > 1 << 16:
            most = 1 << 16
        while start < len(stream):
            size = int(self._chance.random() * most) + 1
            self._receive(stream[start : start + size])
            start += size
            if self._chance.random() < 0.001:
                break
        end = self._chance.choice((self.core.timed_out, self.core.shut_down, None))
        if end is not None and not self.closed:
            self._perform(end())
            _check(self.closed, "the session did not end when it was told to")

    def _receive(self, data: bytes) -> None:
        """One piece, and what it does to the time that the client has."""
        before, begun, state = self.core.pace, self.core.begun, self.core._talk.state
        self._perform(self.core.receive(data))
        after = self.core.pace
        _check(0 < after.silence <= after.whole, "no time, or more than for the whole", after)
        _check(self.core.begun >= begun, "time turns back", (begun, self.core.begun))
        if b"\n" not in data and self.core._talk.state is state:
            same = (before.doing, begun) == (after.doing, self.core.begun)
            _check(same, "dribbling gives it more time", (before, after))

    def _perform(self, effects: Sequence[Effect]) -> None:
        pending = list(effects)
        while pending:
            effect = pending.pop(0)
            _check(isinstance(effect, _EFFECTS), "not an effect", effect)
            _check(not self.closed, "after the end", effect)
            _check(not self._handshake, "during the handshake", effect)
            match effect:
                case Send(data):
                    _check(_REPLIES.fullmatch(data) is not None, "not a reply", data)
                case BodyChunk(data):
                    self._take(data)
                case StartTLS():
                    _check(self.settings.tls_available and not self._secure, "TLS that was not offered")
                    self._handshake = True
                case Close():
                    self.closed = True
                case Ask(question):
                    pending[:0] = self._answer(question)
            self._look()
            if self._handshake and not pending:
                pending += self._shake_hands()
        if self.closed:
            _check(list(self.core.receive(b"NOOP\r\n")) == [], "it listens after the end")

    def _shake_hands(self) -> Sequence[Effect]:
        _check(
            list(self.core.receive(b"RSET\r\nEHLO injected\r\n")) == [], "it hears what comes in the clear"
        )
        self._handshake, self._secure, self._logged_in = False, True, False
        effects = list(self.core.secured())
        _check(effects == [], "what came in the clear has an effect")
        _check(self.core._talk.state is State.CONNECTED, "the session does not begin anew after TLS")
        return effects

    def _take(self, data: bytes) -> None:
        _check(self._message, "octets of a message that was not begun")
        _check(bool(data), "an empty chunk")
        self._text += data
        _check(len(self._text) <= self.settings.size_limit, "more octets than a message may have")

    def _answer(self, question: Any) -> Sequence[Effect]:
        core, chance = self.core, self._chance
        self._expect(question)
        if chance.random() < 0.3:  # pipelining goes on while we think
            _check(list(core.receive(b"")) == [], "it did not wait for the answer")
        if chance.random() < 0.02:
            self._forget(question)
            return list(core.fault())
        if isinstance(question, q.EndMessage):
            self._message = False
            _check(
                question.refusal is not None or self._binary or _is_text(self._text), "no text", self._text
            )
            answer: Any = question.refusal or chance.choice((_OK, _OK, Reply(452, "4.3.1", "full")))
            self.taken += answer is _OK
        else:
            answer = chance.choice(_ANSWERS[type(question)])
        if isinstance(question, q.BeginMessage) and answer is None:
            self._message, self._text = True, bytearray()
            self._binary = question.envelope.body == "BINARYMIME"
        elif isinstance(question, q.DropMessage):
            self._message = False
        elif isinstance(answer, q.Standing):
            self._logged_in, self._trusted = answer.logged_in, answer.trusted
        elif isinstance(question, q.Authenticate):
            if isinstance(question.claim, Proof) and not question.claim.right:
                answer = False
            self._logged_in |= answer is True
        return list(core.answer(answer))

    def _forget(self, question: Any) -> None:
        """A question failed in the handler: how SmtpHandler stands then."""
        if isinstance(question, q.EndMessage | q.DropMessage):
            self._message = False

    def _expect(self, question: Any) -> None:
        """What may be asked now."""
        submission = self.settings.role is Role.SUBMISSION
        match question:
            case q.MailFrom() | q.RcptTo() | q.BeginMessage():
                _check(not self._message, "this in a message", question)
                _check(self._logged_in or not submission, "this without a login", question)
            case q.EndMessage():
                _check(self._message, "the end of a message that was not begun")
            case q.DropMessage():
                _check(self._message, "a message dropped that was not begun")
            case q.Authenticate():
                _check(submission and self._secure and not self._logged_in, "a login out of place")
            case q.Verify() | q.Expand():
                audience = self.settings.vrfy if isinstance(question, q.Verify) else self.settings.expn
                admitted = audience.admits(logged_in=self._logged_in, trusted=self._trusted)
                _check(admitted, "a question of one who may not ask", question)
            case q.ClientIs():
                _check(self.settings.xclient, "XCLIENT from a client that may not")
        if isinstance(question, q.BeginMessage):
            envelope = question.envelope
            _check(
                0 < len(envelope.recipients) <= self.settings.recipient_limit, "a wrong count of recipients"
            )

    def _look(self) -> None:
        """The state of the core itself."""
        core = self.core
        self.states.add(core._talk.state)
        _check(
            self.closed or core._transfer.open <= self._message,
            "the core has a message open, the world has none",
        )
        _check(len(core._talk.input.data) < 1 << 20, "the input grows")
        if core._talk.state in (State.CONNECTED, State.READY):
            _check(
                core._talk.envelope.sender is None and not core._talk.envelope.recipients,
                "an envelope is left over",
            )
        _check(core._login.done <= self._logged_in, "a login of nobody")
        _check(core._tls == self._secure, "wrong about TLS")


def _is_text(octets: bytes) -> bool:
    """Whether every server sees the same lines in it."""
    lines = octets.split(b"\r\n")
    return lines.pop() == b"" and not any(
        b"\r" in line or b"\n" in line or line.startswith(b"\0") for line in lines
    )


class Failed(AssertionError):
    """Something did not hold."""


def _check(holds: bool, what: str, about: object = "") -> None:
    if not holds:
        raise Failed(what, about)


def play(seed: int, show: Callable[[str], None] | None = None) -> Run:
    """Play the input of one seed. Raises Failed, or whatever came out of the core."""
    chance = random.Random(seed)
    name = chance.choice(list(SETTINGS))
    stream = dialogue(name, chance)
    if show is not None:
        show(f"{name}: {stream!r}")
    run = Run(name, chance)
    run.play(stream)
    return run


def main() -> None:
    """Play many; stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first input; the next has the next")
    parser.add_argument("--show", action="store_true", help="print each input")
    options = parser.parse_args()
    began = time.perf_counter()
    states: set[State] = set()
    taken = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            run = play(seed, print if options.show else None)
        except Exception:
            print(f"seed {seed} fails; again with --count 1 --show --seed {seed}")
            raise
        states |= run.states
        taken += run.taken
    took = time.perf_counter() - began
    print(f"{options.count} inputs from seed {options.seed} in {took:.0f} s: {taken} messages taken")
    print("states reached:", ", ".join(sorted(state.name for state in states)))


if __name__ == "__main__":
    main()
