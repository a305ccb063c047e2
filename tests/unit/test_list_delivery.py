"""The LIST transport: what becomes of a message to a mailing list."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import BinaryIO

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twisted_mta.config.schema import MailingList
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import (
    Delivered,
    Expanded,
    Failed,
    NewMessage,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
)
from twisted_mta.delivery import list as module
from twisted_mta.delivery.list import ListDelivery
from twisted_mta.interfaces import IDelivery, IDirectory, IStoredBody
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.directory import make_directory, make_list
from twisted_mta.testing.queued import queued_message, queued_recipient

TEAM = "team@example.test"
HEADER = b"From: alice@example.test\r\nSubject: hello\r\n\r\n"


@implementer(IStoredBody)
class Body:
    """A body in memory; `error` is raised by `open`."""

    def __init__(self, data: bytes, error: OSError | None = None) -> None:
        self.data = data
        self.size = len(data)
        self.error = error
        self.opened: list[io.BytesIO] = []

    def open(self) -> BinaryIO:
        if self.error:
            raise self.error
        self.opened.append(io.BytesIO(self.data))
        return self.opened[-1]


def queued(sender: str | None = "alice@example.test", **more: object) -> QueuedMessage:
    message = queued_message(
        id="parent",
        sender=Address.parse(sender) if sender else None,
        prefix=b"Received: from x\r\n",
        expires=1500.0,
        body_type="8BITMIME",
        smtputf8=True,
        envid="env",
        ret="FULL",
        message_id="m@example.test",
        origin="alice",
    )
    return attrs.evolve(message, **more)


def recipient(address: str = TEAM, notify: Notify = Notify.SUCCESS | Notify.FAILURE) -> QueuedRecipient:
    return queued_recipient(address, transport=Transport.LIST, notify=notify, orcpt="rfc822;x@example.org")


class ListDeliveryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(2000)
        self.set_up()

    def set_up(
        self,
        members: Sequence[str] = ("alice@example.test", "staff@example.test", "x@example.org"),
        *,
        owner: str = "carol@example.test",
        aliases: str = "staff: bob, alice\n",
        more: Sequence[MailingList] = (),
        **options: bool,
    ) -> None:
        self.directory: IDirectory = make_directory(
            ["alice", "bob", "carol"], aliases, lists=[make_list(TEAM, members, owner, **options), *more]
        )
        ids = itertools.count(1)
        self.delivery = ListDelivery(self.directory, lambda: f"child{next(ids)}", self.clock, InlineWorkers())

    def outcomes(
        self, message: QueuedMessage, header: bytes = HEADER, recipients: Sequence[QueuedRecipient] = ()
    ) -> Sequence[Outcome]:
        self.body = Body(header)
        return self.successResultOf(
            Deferred.fromCoroutine(
                self.delivery.deliver(message, self.body, recipients or [recipient()], TEAM)
            )
        )

    def post(self, message: QueuedMessage | None = None, header: bytes = HEADER) -> NewMessage:
        """Deliver, and return the one message that comes of it."""
        (outcome,) = self.outcomes(message or queued(), header)
        assert isinstance(outcome, Expanded), outcome
        (child,) = outcome.messages
        return child

    def refusal(self, message: QueuedMessage | None = None, header: bytes = HEADER) -> str:
        (outcome,) = self.outcomes(message or queued(), header)
        assert isinstance(outcome, Failed), outcome
        return str(outcome.reply)

    def places(self, child: NewMessage) -> list[str]:
        return [f"{one.transport} {one.address}" for one in child.recipients]

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(IDelivery, self.delivery))
        self.assertEqual(self.delivery.destination(recipient("Team@example.test")), TEAM)
        self.successResultOf(Deferred.fromCoroutine(self.delivery.close()))

    def test_members_local_and_remote_get_one_copy_each(self) -> None:
        child = self.post()
        self.assertEqual(
            self.places(child), ["local alice@example.test", "local bob@example.test", "smtp x@example.org"]
        )
        self.assertEqual(
            [str(one.original) for one in child.recipients],
            ["alice@example.test", "staff@example.test", "x@example.org"],
        )

    def test_post_is_sent_by_the_list_and_nothing_of_the_authors_wishes_reaches_the_members(self) -> None:
        child = self.post()
        self.assertEqual(str(child.sender), "team-bounces@example.test")
        self.assertEqual((child.envid, child.ret), ("", ""))
        self.assertEqual({(one.notify, one.orcpt) for one in child.recipients}, {(Notify.FAILURE, "")})

    def test_post_keeps_what_describes_the_body(self) -> None:
        child = self.post()
        self.assertEqual((child.id, child.parent, child.message_id), ("child1", "parent", "m@example.test"))
        self.assertEqual((child.body_type, child.smtputf8), ("8BITMIME", True))
        self.assertEqual(child.origin, "list team@example.test")

    def test_post_lives_as_long_as_its_original_was_given(self) -> None:
        child = self.post()
        self.assertEqual((child.arrived, child.expires), (2000.0, 2500.0))

    def test_list_fields_stand_above_the_trace(self) -> None:
        child = self.post()
        self.assertTrue(
            child.prefix.startswith(b"Delivered-To: team@example.test\r\nList-Id: <team.example.test>\r\n")
        )
        self.assertTrue(child.prefix.endswith(b"Precedence: list\r\nReceived: from x\r\n"))

    def test_fields_of_the_message_are_not_doubled(self) -> None:
        child = self.post(header=b"List-Id: <big.example.org>\r\nPrecedence: bulk\r\n" + HEADER)
        self.assertNotIn(b"List-Id", child.prefix)
        self.assertNotIn(b"Precedence", child.prefix)
        self.assertIn(b"List-Post", child.prefix)

    def test_fields_in_the_body_are_not_read(self) -> None:
        child = self.post(header=HEADER + b"List-Id: <team.example.test>\r\n")
        self.assertEqual(len(child.recipients), 3)

    def test_body_is_closed(self) -> None:
        self.post()
        self.assertTrue(all(file.closed for file in self.body.opened))

    def test_header_is_searched_up_to_a_bound(self) -> None:
        filler = b"X-Filler: " + b"x" * module.MAX_HEADER + b"\r\n"
        self.assertEqual(
            len(self.post(header=filler + b"Auto-Submitted: auto-replied\r\n" + HEADER).recipients), 3
        )

    def test_own_post_that_comes_back(self) -> None:
        for header, prefix in (
            (b"List-Id: <team.example.test>\r\n" + HEADER, b""),
            (HEADER, b"Delivered-To: team@example.test\r\n"),
        ):
            self.assertIn("554 5.4.6", self.refusal(queued(prefix=prefix), header))

    def test_lists_that_are_members_of_each_other_end(self) -> None:
        other = make_list("other@example.test", [TEAM, "bob@example.test"], "carol@example.test")
        self.set_up(["other@example.test", "alice@example.test"], more=[other])
        first = self.post()
        self.assertEqual(self.places(first), ["list other@example.test", "local alice@example.test"])
        message = queued(str(first.sender), prefix=first.prefix)
        (outcome,) = self.outcomes(message, recipients=[recipient("other@example.test")])
        assert isinstance(outcome, Expanded)
        (second,) = outcome.messages
        self.assertEqual(self.places(second), ["list team@example.test", "local bob@example.test"])
        self.assertIn(b"Delivered-To: other@example.test\r\n", second.prefix)
        self.assertEqual(second.prefix.count(b"List-Id:"), 1)
        self.assertIn("5.4.6", self.refusal(queued(str(second.sender), prefix=second.prefix)))

    def test_list_that_is_its_own_member(self) -> None:
        self.set_up([TEAM, "all@example.test"], aliases="all: team, bob\n")
        self.assertEqual(self.places(self.post()), ["local bob@example.test"])

    def test_null_sender_goes_to_the_owner_as_it_is(self) -> None:
        child = self.post(queued(None))
        self.assertIsNone(child.sender)
        self.assertEqual(self.places(child), ["local carol@example.test"])
        self.assertEqual(child.prefix, b"Delivered-To: team@example.test\r\nReceived: from x\r\n")

    def test_mail_of_programs_goes_to_the_owner(self) -> None:
        child = self.post(header=b"Auto-Submitted: auto-replied (vacation)\r\n" + HEADER)
        self.assertEqual(str(child.sender), "alice@example.test")
        self.assertEqual(self.places(child), ["local carol@example.test"])

    def test_owner_who_leads_nowhere_or_back_is_replaced_by_the_postmaster(self) -> None:
        for owner in ("ghost@example.test", TEAM):
            self.set_up(owner=owner)
            self.assertEqual(self.places(self.post(queued(None))), ["local alice@example.test"])

    def test_nobody_to_take_mail_of_programs(self) -> None:
        self.set_up(owner="ghost@example.test", aliases="alice: ghost\n")
        self.assertIn("550 5.2.4", self.refusal(queued(None)))

    def test_members_only(self) -> None:
        self.set_up(members_only=True)
        for sender in (
            "alice@example.test",
            "ALICE@example.test",
            "bob@example.test",
            "staff@example.test",
            "x@example.org",
        ):
            self.assertEqual(len(self.post(queued(sender)).recipients), 3, sender)
        self.assertIn(
            "550 5.7.2 only members may post to team@example.test", self.refusal(queued("eve@example.org"))
        )

    def test_member_who_does_not_exist_is_refused_later_so_that_the_owner_hears(self) -> None:
        self.set_up(["ghost@example.test", "bob@example.test"])
        child = self.post()
        self.assertEqual(self.places(child), ["refuse ghost@example.test", "local bob@example.test"])

    def test_no_members(self) -> None:
        self.set_up([])
        self.assertIn("550 5.2.4", self.refusal())

    def test_list_twice_among_the_recipients(self) -> None:
        outcomes = self.outcomes(queued(), recipients=[recipient(), recipient("Team@example.test")])
        self.assertEqual([type(one) for one in outcomes], [Expanded, Delivered])

    def test_refusal_is_for_each_recipient(self) -> None:
        self.set_up([])
        outcomes = self.outcomes(queued(), recipients=[recipient(), recipient("Team@example.test")])
        self.assertEqual([type(one) for one in outcomes], [Failed, Failed])

    def test_list_that_a_reload_took_away(self) -> None:
        (outcome,) = self.outcomes(queued(), recipients=[recipient("gone@example.test")])
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.reply.enhanced, "5.1.1")

    def test_body_that_can_not_be_read(self) -> None:
        body = Body(b"", OSError(5, "Input/output error"))
        (outcome,) = self.successResultOf(
            Deferred.fromCoroutine(self.delivery.deliver(queued(), body, [recipient()], TEAM))
        )
        assert isinstance(outcome, TryLater)
        self.assertEqual(str(outcome.reply), "451 4.3.0 can't read the message: Input/output error")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_senders_that_name_the_members(self) -> None:
        self.set_up(verp=True)
        child = self.post()
        self.assertEqual(
            [str(one.sender or "") for one in child.recipients],
            ["", "", "team-bounces+x=example.org@example.test"],
        )

    def test_message_that_expires_before_it_arrived(self) -> None:
        child = self.post(queued(expires=10.0))
        self.assertEqual(child.expires, child.arrived)
