"""What a configuration says about receiving, and how its checks are asked."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
from twisted.logger import Logger

from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value
from twisted_mta.interfaces import IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting

Verdict = Awaitable[Reply | None] | Reply | None
#: One stage of one check, which gets what IPolicyCheck says.
Ask = Callable[..., Verdict]

log = Logger()

#: Where a word begins in the name of a class.
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


@value(kw_only=True)
class Rules:
    """What a configuration says about receiving; replaced whole on reload."""

    hostname: str
    #: Seconds that a message may stay in the queue.
    expire: float
    #: In the order in which they are asked; the first that objects decides.
    checks: tuple[IPolicyCheck, ...]
    #: Mends the header section of what users submit: (header section, peer, queue id, Unix time). Raises SubmissionError.
    mend: Callable[[bytes, Peer, str, float], bytes] | None = None
    #: What the checks are called in the history: "reverse dns" for a ReverseDnsCheck.
    check_names: tuple[str, ...] = attrs.field(init=False)
    #: What `judge` asks at each stage of a session.
    at_connect: Sequence[Ask] = attrs.field(init=False, eq=False, repr=False)
    at_helo: Sequence[Ask] = attrs.field(init=False, eq=False, repr=False)
    at_mail: Sequence[Ask] = attrs.field(init=False, eq=False, repr=False)
    at_rcpt: Sequence[Ask] = attrs.field(init=False, eq=False, repr=False)
    at_message: Sequence[Ask] = attrs.field(init=False, eq=False, repr=False)

    @check_names.default
    def _name_checks(self) -> tuple[str, ...]:
        return tuple(
            _WORDS.sub(" ", type(check).__name__.removesuffix("Check")).lower() for check in self.checks
        )

    @at_connect.default
    def _find_at_connect(self) -> Sequence[Ask]:
        return _stage(self.checks, "on_connect")

    @at_helo.default
    def _find_at_helo(self) -> Sequence[Ask]:
        return _stage(self.checks, "on_helo")

    @at_mail.default
    def _find_at_mail(self) -> Sequence[Ask]:
        return _stage(self.checks, "on_mail")

    @at_rcpt.default
    def _find_at_rcpt(self) -> Sequence[Ask]:
        return _stage(self.checks, "on_rcpt")

    @at_message.default
    def _find_at_message(self) -> Sequence[Ask]:
        return _stage(self.checks, "on_message")


def _stage(checks: Sequence[IPolicyCheck], method: str) -> Sequence[Ask]:
    """The checks that look at a stage, without those that let everything pass there."""
    idle = getattr(Accepting, method)
    return [getattr(check, method) for check in checks if getattr(type(check), method, None) is not idle]


def judge(stage: Sequence[Ask], otherwise: Reply | None, *what: Any) -> Verdict:
    """The first refusal of a stage, else `otherwise`; without a detour as long as the checks answer at once.

    `what` is what IPolicyCheck says that a check gets at that stage: the peer, and more.
    """
    for index, ask in enumerate(stage):
        verdict = ask(*what)
        if verdict is None:
            continue
        if isinstance(verdict, Reply):
            return refused(what[0], verdict)
        return _judge_on(verdict, stage[index + 1 :], otherwise, *what)
    return otherwise


async def _judge_on(
    pending: Awaitable[Reply | None], stage: Sequence[Ask], otherwise: Reply | None, *what: Any
) -> Reply | None:
    refusal = await pending
    for ask in stage:
        if refusal is not None:
            break
        verdict = ask(*what)
        refusal = verdict if verdict is None or isinstance(verdict, Reply) else await verdict
    return otherwise if refusal is None else refused(what[0], refusal)


def refused(peer: Peer, reply: Reply) -> Reply:
    """The reply, noted in the log."""
    if peer.remarks is not None:
        return reply
    log.info(
        "refused {client}: {reply}",
        client=client_of(peer),
        peer=peer.address,
        session=peer.session_id,
        login=peer.account.name if peer.account else "",
        reply=str(reply),
    )
    return reply


def client_of(peer: Peer) -> str:
    """For the log: the address, behind the name that it has for certain."""
    if not peer.address:
        return "this host"
    return f"{peer.host} [{peer.address}]" if peer.host_verified else peer.address
