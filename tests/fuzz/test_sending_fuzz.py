"""Hostile octets for the sending side: mail servers and name servers that say anything at all."""

from __future__ import annotations

import itertools
import unittest

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.names import dns

from twisted_mta.core.address import Address
from twisted_mta.core.effects import Close
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.smtp.client import Login, SessionFailed, SmtpClient, State, TransactionDone
from twisted_mta.core.smtp.reply_parser import MAX_LINE, MAX_LINES, ReplyError, ReplyParser
from twisted_mta.core.smtp.transaction import Transaction
from twisted_mta.core.smtp.whole import Whole
from twisted_mta.net.dns_message import MAX_TTL, BadMessage, Question, parse_response, read_answer

_WIRE = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [b"\r\n", b"\n", b"220 ", b"250-", b"250 ", b"354 ", b"4", b"550 5.1.1 ", b"421 ", b"PIPELINING"]
        ),
        st.sampled_from(
            [
                b"220 mx\r\n",
                b"250 ok\r\n",
                b"250-mx\r\n250 AUTH PLAIN LOGIN\r\n",
                b"250-mx\r\n250 AUTH SCRAM-SHA-256 PLAIN\r\n",
                b"250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n",
                b"334 x\r\n",
                # r=nonce+,s=c2FsdA==,i=4096
                b"334 cj1ub25jZSsscz1jMkZzZEE9PSxpPTQwOTY=\r\n",
                b"235 in\r\n",
                b"354 go\r\n",
            ]
        ),
    ),
    max_size=12,
).map(b"".join)

MESSAGE = Transaction(
    sender=Address("ö", "a.test"),
    recipients=(Recipient(Address("b", "x.test")),) * 3,
    size=5,
    body_type="8BITMIME",
)


class FuzzSendingTests(unittest.TestCase):
    @settings(max_examples=200)
    @given(st.lists(_WIRE, max_size=5))
    def test_reply_parser(self, chunks: list[bytes]) -> None:
        parser = ReplyParser()
        try:
            for chunk in chunks:
                parser.feed(chunk)
                while (reply := parser.next()) is not None:
                    self.assertTrue(200 <= reply.code < 600)
                    self.assertLessEqual(len(reply.text), MAX_LINE * MAX_LINES)
                    self.assertTrue(all(char >= " " or char == "\n" for char in reply.text))
        except ReplyError:
            pass

    @settings(max_examples=200)
    @given(
        st.lists(_WIRE, max_size=6),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from([5, 100_000]),
    )
    def test_client(self, chunks: list[bytes], secured: bool, login: bool, whole: bool, size: int) -> None:
        """Nothing is raised; a transaction ends once; the session ends once; after that nothing more is said."""
        client = SmtpClient(
            "me.test", login=Login("me", "x") if login else None, nonces=itertools.repeat(b"nonce").__next__
        )
        message = attrs.evolve(MESSAGE, size=size)
        if secured:
            client.secured()
        started = done = closed = failed = 0
        for chunk in [*chunks, b""]:
            effects = list(client.receive(chunk))
            if client.state is State.HANDSHAKE:
                effects += client.secured()
            if client.state is State.DERIVING:
                effects += client.derived(b"salted")
            if client.can_start and SessionFailed not in map(type, effects) and started < 3:
                effects += client.start(message, Whole(b"text\r\n") if whole else None)
                started += 1
            if client.wants_body:
                effects += [*client.body(b"text\r\n"), *client.body(b"more\r\n"), *client.end_body()]
            self.assertFalse(closed and effects)
            done += sum(isinstance(effect, TransactionDone) for effect in effects)
            closed += sum(isinstance(effect, Close) for effect in effects)
            failed += sum(isinstance(effect, SessionFailed) for effect in effects)
            self.assertEqual(closed, client.state is State.CLOSED)
        effects = list(client.connection_lost())
        done += sum(isinstance(effect, TransactionDone) for effect in effects)
        closed += sum(isinstance(effect, Close) for effect in effects)
        self.assertEqual((done, closed), (started, 1))

    @settings(max_examples=300)
    @given(st.binary(max_size=200), st.sampled_from([dns.MX, dns.A, dns.AAAA, dns.TXT, dns.PTR]))
    def test_dns_response(self, tail: bytes, kind: int) -> None:
        question = Question("x.test", kind)
        query = question.encode(7, False)
        wire = (
            query[:2]
            + b"\x81\x80\0\1"
            + bytes([0, tail[0] % 4 if tail else 0, 0, 1, 0, 1])
            + query[12:]
            + tail
        )
        try:
            response = parse_response(wire, question, 7)
        except BadMessage:
            return
        if response is not None:
            self.assertTrue(0 <= read_answer(response, question).ttl <= MAX_TTL)
