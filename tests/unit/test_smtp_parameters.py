"""core.smtp.parameters: what the transcripts can't set, and that nothing but CommandError escapes."""

from __future__ import annotations

from unittest import TestCase

from hypothesis import given
from hypothesis import strategies as st

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DeliverBy, Envelope, Recipient
from twisted_mta.core.smtp.commands import CommandError
from twisted_mta.core.smtp.parameters import Context, read_mail, read_rcpt

ALL = frozenset(
    "SIZE 8BITMIME BINARYMIME SMTPUTF8 DSN REQUIRETLS DELIVERBY FUTURERELEASE MT-PRIORITY".split()
)
CONTEXT = Context(size_limit=1000, offered=ALL, now=1000.0, hold_limit=500.0, deliver_by_minimum=60)
NAMES = st.sampled_from(
    "SIZE BODY AUTH SMTPUTF8 RET ENVID REQUIRETLS BY HOLDFOR HOLDUNTIL MT-PRIORITY NOTIFY ORCPT X".split()
)
VALUES = st.text(st.sampled_from("019+-;:=NRTZ,FULLHDRS{}\\x.\u00e9A"), max_size=25)


class ParameterTests(TestCase):
    def test_deliver_by(self) -> None:
        with self.assertRaises(CommandError) as refused:
            read_mail(Envelope(None), {"BY": "59;R"}, CONTEXT)
        self.assertEqual(str(refused.exception), "555 5.5.4 BY with R needs 60 seconds at least")
        self.assertEqual(
            read_mail(Envelope(None), {"BY": "60;rt"}, CONTEXT).deliver_by, DeliverBy(1060.0, True, True)
        )
        for said, time in (("-5", 995.0), ("+5", 1005.0), ("0", 1000.0)):  # RFC 2852 §4: by-time has a sign
            self.assertEqual(
                read_mail(Envelope(None), {"BY": f"{said};N"}, CONTEXT).deliver_by, DeliverBy(time, False)
            )

    @given(st.dictionaries(NAMES, VALUES, max_size=4))
    def test_only_declared_errors(self, parameters: dict[str, str]) -> None:
        recipient = Recipient(Address("a", "example.org"))
        for read in (
            lambda: read_mail(Envelope(None), parameters, CONTEXT),
            lambda: read_rcpt(recipient, parameters, CONTEXT),
        ):
            try:
                read()
            except CommandError as error:
                self.assertIn(error.reply.code, (501, 552, 555))
