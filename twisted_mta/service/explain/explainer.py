"""What would become of a message: a rehearsed session, the expansion of its recipient, and where its copies would go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from twisted_mta.config.schema import Config, Role
from twisted_mta.core.address import Address
from twisted_mta.core.expand import Plan, Problem, Step, canonical, expand
from twisted_mta.core.explanation import Finding, Note, as_json
from twisted_mta.core.message import format_date
from twisted_mta.core.queue import Transport
from twisted_mta.core.sasl import Claim, Secret
from twisted_mta.core.values import value
from twisted_mta.interfaces import Account, Client, IAuthenticator, IDelivery, Peer
from twisted_mta.net.smtp import session_settings
from twisted_mta.policy.base import is_within
from twisted_mta.service.explain.onward import Onward, Queue
from twisted_mta.service.explain.rehearsal import Lines, NoQueue, Rehearsal, finding_of, witnessed
from twisted_mta.service.incoming import Intake
from twisted_mta.service.listeners import greeting_delay, smtp_settings
from twisted_mta.service.reception import Reception
from twisted_mta.service.rules import Rules
from twisted_mta.store.threads import InlineWorkers, Workers

#: Who asks, where nobody is named: a stranger, at an address for examples.
STRANGER = "203.0.113.1"
#: Steps of the expansion that are shown.
MAX_STEPS = 1000


@value(kw_only=True)
class Question:
    """The mail to be explained."""

    recipient: Address
    sender: Address | None
    role: Role
    #: "": a stranger, whose address is of no meaning.
    ip: str = ""
    helo: str = "client.example"
    login: str = ""
    #: Declared at MAIL, octets; None: that of the message.
    size: int | None = None
    tls: bool = False
    #: The message with CRLF line ends; b"": a small one is made up.
    message: bytes = b""


@value(kw_only=True)
class Explainer:
    """Asks the parts of a server, or parts that were made for this only. Nothing that it asks changes anything."""

    config: Callable[[], Config]
    rules: Callable[[], Rules]
    #: Its queue is not used but for `check_room`.
    intake: Intake
    deliveries: Mapping[Transport, IDelivery]
    queue: Queue
    clock: IReactorTime
    workers: Workers | InlineWorkers
    #: Why a client at an IP address would not be let in at a listener of a role; "" if it would be.
    admission: Callable[[str, Role], str] = lambda host, role: ""
    #: Whether STARTTLS is offered, and SCRAM.
    tls: Callable[[], bool]
    #: What an administrator should know before anything else.
    warnings: Callable[[], list[str]] = list

    async def explain(self, question: Question) -> dict[str, Any]:
        """The answer as JSON; see docs/operations.md."""
        question = attrs.evolve(question, message=question.message or self._message(question))
        steps = [self._listener(question)]
        queue = NoQueue(self.intake.queue.check_room)
        reply, accepted = self._turned_away(question), False
        if steps[0].finding is Finding.FACT and reply:
            steps.append(Note("admission", reply, Finding.LATER, "limits"))
        if not reply:
            rehearsal = await self._rehearse(question, queue)
            reply, accepted = str(rehearsal.reply), rehearsal.reply.positive
            steps += rehearsal.notes
        steps += self._expansion(question.recipient)
        onward = Onward(self.deliveries, self.queue, self.clock, len(question.message))
        if accepted:
            body = queue.body
            assert body is not None  # what was accepted came into it
            header = await body.header(1 << 18)  # as it was mended
            for message in queue.messages:
                steps += await onward.follow(message, header)
        ends = onward.ends
        return {
            "recipient": str(question.recipient),
            "sender": str(question.sender or ""),
            "role": question.role.value,
            "accepted": accepted,
            "reply": reply,
            "places": list(ends.places),
            "remote": ends.remote,
            "failures": [{"address": name, "reply": str(failure)} for name, failure in ends.failures],
            "complete": not ends.cut,
            "warnings": self.warnings(),
            "steps": [as_json(step) for step in steps],
        }

    def _turned_away(self, question: Question) -> str:
        """Why there would be no session at all; "" if there would be one."""
        if all(listen.role is not question.role for listen in self.config().listen):
            return f"no listener has the role {question.role.value}"
        refused = self.admission(question.ip, question.role) if question.ip else ""
        return f"421 4.7.0 Too many connections: {refused}" if refused else ""

    # --- parts ---------------------------------------------------------------------------------

    def _message(self, question: Question) -> bytes:
        """One that nobody could object to."""
        author = question.sender or Address("postmaster", self.config().hostname)
        lines = [
            f"From: <{author}>",
            f"To: <{question.recipient}>",
            "Subject: mta explain",
            f"Date: {format_date(self.clock.seconds())}",
            f"Message-ID: <explain@{self.config().hostname}>",
            *([] if question.sender else ["Auto-Submitted: auto-replied"]),
            "",
            "",
        ]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")

    def _listener(self, question: Question) -> Note:
        """The first listener of the role."""
        config = self.config()
        listens = [listen for listen in config.listen if listen.role is question.role]
        if not listens:
            return Note(
                "listener", f"no listener has the role {question.role.value}", Finding.REFUSED, "listen"
            )
        waits = greeting_delay(config, question.role, question.ip or STRANGER)
        children: tuple[Note, ...] = ()
        if waits:
            told = f"the client waits {waits:g} seconds for the greeting, and is refused if it does not"
            children = (Note("greeting", told, where="limits.greeting_delay"),)
        who = question.ip or "somewhere (see --ip)"
        text = f"role {question.role.value}, {listens[0].endpoint}: a client at {who}"
        return Note("listener", text, where="listen", data={"role": question.role.value}, children=children)

    async def _rehearse(self, question: Question, queue: NoQueue) -> Rehearsal:
        config, notes = self.config(), list[Note]()
        host = question.ip or STRANGER
        peer = Peer(address=host, port=0, role=question.role.value, session_id="explain", remarks=[])
        rules = witnessed(self.rules(), notes, invented=not question.ip)
        # An application's handler is not called: it would take the message for one that came.
        intake = attrs.evolve(self.intake, queue=queue, ids=lambda: "EXPLAINED", inline=None)
        authenticator = _Believing()
        reception = Reception(rules, intake, authenticator, self.workers)
        authenticator.account = reception.account
        trusts = partial(is_within, networks=config.relay.networks)
        settings = smtp_settings(config, question.role, host, scram=False)
        rehearsal = Rehearsal(
            session_settings(settings, host, tls=self.tls(), trusts=trusts),
            reception,
            peer,
            notes,
            implicit_tls=question.role.implicit_tls,
            trusts=trusts,
            seconds=self.clock.seconds,
        )
        await rehearsal.play(_lines(question))
        return rehearsal

    def _expansion(self, address: Address) -> list[Note]:
        """The steps from the address to where its mail goes, where they say more than the address does."""
        directory = self.intake.directory
        address = canonical(address, directory)
        if not directory.is_local(address.domain):
            return []
        plan = expand(address, directory)
        if not plan.root.children and not plan.problems:
            return []
        return [_Tree(plan).note(plan.root)]


class _Tree:
    """Notes of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._left = MAX_STEPS
        #: The problems by what a step says of them, in the order of the steps.
        self._problems: dict[tuple[str, str], list[Problem]] = defaultdict(list)
        for problem in plan.problems:
            self._problems[problem.kind.value, problem.source].append(problem)

    def note(self, step: Step) -> Note:
        """A step and what is below it."""
        self._left -= 1
        problems = self._problems.get((step.kind.value, step.source))
        problem = problems.pop(0) if problems else None
        text = f"{step.name}: {problem.text if problem else step.kind}"
        finding = finding_of(problem.reply) if problem else Finding.FACT
        children = []
        for child in step.children:
            if self._left <= 0:
                children.append(Note("more", "and more"))
                break
            children.append(self.note(child))
        data = {"name": step.name, "kind": step.kind.value}
        return Note("expansion", text, finding, step.source, data, tuple(children))


@implementer(IAuthenticator)
class _Believing:
    """IAuthenticator that believes every login that exists: it is the administrator who says so."""

    def __init__(self) -> None:
        #: Set once the reception is there, which knows the logins.
        self.account: Callable[[str], Account | None] = lambda login: None

    async def authenticate(self, claim: Claim, client: Client) -> Account | None:
        """See IAuthenticator."""
        return self.account(claim.login)

    async def secret(self, login: str, client: Client) -> Secret:
        """See IAuthenticator: SCRAM is not offered."""
        raise AssertionError("nobody asked for SCRAM")

    def offers_scram(self) -> bool:
        """See IAuthenticator."""
        return False


def _lines(question: Question) -> Lines:
    sender = str(question.sender or "")
    utf8 = "" if (sender + str(question.recipient)).isascii() else " SMTPUTF8"
    size = "" if question.size is None else f" SIZE={question.size}"
    return Lines(
        helo=question.helo,
        tls=question.tls or bool(question.login),
        login=question.login,
        mail=f"MAIL FROM:<{sender}>{size}{utf8}",
        rcpt=f"RCPT TO:<{question.recipient}>",
        message=question.message,
    )
