"""What a configuration says about receiving, and how its checks are asked."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

import attrs
from twisted.logger import Logger

from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IPolicyCheck, Peer

Verdict = Awaitable[Reply | None] | Reply | None
#: Puts one question to a check.
Ask = Callable[[IPolicyCheck], Verdict]

log = Logger()

#: Where a word begins in the name of a class.
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


@attrs.frozen(kw_only=True)
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

    @check_names.default
    def _name_checks(self) -> tuple[str, ...]:
        return tuple(
            _WORDS.sub(" ", type(check).__name__.removesuffix("Check")).lower() for check in self.checks
        )

    def judge(self, peer: Peer, ask: Ask, otherwise: Reply | None = None) -> Verdict:
        """The first refusal, else `otherwise`; without a detour as long as the checks answer at once."""
        for index, check in enumerate(self.checks):
            verdict = ask(check)
            if isinstance(verdict, Reply):
                return refused(peer, verdict)
            if verdict is not None:
                return _judge_on(peer, verdict, self.checks[index + 1 :], ask, otherwise)
        return otherwise


async def _judge_on(
    peer: Peer,
    pending: Awaitable[Reply | None],
    checks: Sequence[IPolicyCheck],
    ask: Ask,
    otherwise: Reply | None,
) -> Reply | None:
    refusal = await pending
    for check in checks:
        if refusal is not None:
            break
        verdict = ask(check)
        refusal = verdict if verdict is None or isinstance(verdict, Reply) else await verdict
    return otherwise if refusal is None else refused(peer, refusal)


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
