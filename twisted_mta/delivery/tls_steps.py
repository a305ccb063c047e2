"""From what is asked of a host to how sessions with it are tried, and what is noted of how they went."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import attrs

from twisted_mta.core.route import LookupFailed
from twisted_mta.core.smtp.client import State, TlsUse
from twisted_mta.core.tls_policy.decision import HostPolicy, Source
from twisted_mta.core.tls_policy.results import Failure, Result
from twisted_mta.core.tls_policy.seen import Sighting
from twisted_mta.core.tls_report import Session
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.delivery.tls_policy import Check, Demand, Need, Next, Pin, TlsPolicies, lookup_failed
from twisted_mta.net.smtp_client import SessionError, SmtpConnection

#: Characters of a problem that are remembered.
MAX_PROBLEM = 300

_WHO = {
    Source.PIN: "the configuration requires it",
    Source.DANE: "its TLSA records require it (DANE)",
    Source.STS: "the MTA-STS policy of {domain} requires it",
    Source.REQUIRETLS: "the message requires it (REQUIRETLS)",
}


@attrs.frozen(eq=False)
class Step:
    """One way to try a host. Where it fails for want of TLS, the next one may do."""

    use: TlsUse
    demand: Demand
    #: Whether it is told of: not what happens to reports themselves, nor what we do at a message's wish.
    noted: bool = True


class TlsSteps:
    """Makes steps, and hears how they went."""

    def __init__(self, policies: TlsPolicies, check: Check, memory: TlsMemory | None) -> None:
        """`memory` None: nothing is remembered."""
        self.policies = policies
        self._check = check
        self._memory = memory

    # --- before --------------------------------------------------------------------------------

    async def plan(self, to: Next, pin: Pin, need: Need, *, login: bool) -> Sequence[Step]:
        """The steps, the best first. Raises SessionError where the host gets no mail at all.

        `login`: a password will be sent, for which the host must prove its name whatever else is asked.
        """
        steps = await self.foresee(to, pin, need, login=login)
        if isinstance(steps, Demand):
            assert steps.policy.refusal is not None  # as `foresee` says
            self._refused(steps)
            raise SessionError(None, steps.policy.refusal)
        return steps

    async def foresee(self, to: Next, pin: Pin, need: Need, *, login: bool) -> Sequence[Step] | Demand:
        """As `plan`, but nothing is noted: the demand that can't be met where the host gets no mail. Raises SessionError
        where it can't be found out what is demanded."""
        try:
            demand = await self.policies.demand(to, pin, need)
            plain = await self.policies.demand(to, pin, Need.NONE) if need is Need.PROOF_IF_POSSIBLE else None
        except LookupFailed as error:
            raise SessionError(None, lookup_failed(to, error)) from None
        if login and demand.policy.refusal is None:
            return [Step(TlsUse.REQUIRED, _with_proof(demand, to))]
        if plain is None:
            return demand if demand.policy.refusal is not None else self._steps(demand, need)
        if plain.policy.refusal is not None:
            return plain
        better = [] if demand.policy.refusal is not None else self._steps(demand, need)
        return [*better, *self._steps(plain, Need.NONE)]

    def _steps(self, demand: Demand, need: Need) -> Sequence[Step]:
        policy = demand.policy
        noted = need is not Need.IGNORE
        if policy.tls:
            return [Step(TlsUse.REQUIRED, demand, policy.source is not Source.REQUIRETLS)]
        # RFC 7435 §3: encryption where possible must not cost the delivery where it is not.
        return [Step(TlsUse.OPPORTUNISTIC, demand, noted), Step(TlsUse.NEVER, demand, noted)]

    def prepare(self, connection: SmtpConnection, step: Step) -> None:
        """Before the connection is made."""
        connection.examine = lambda handle: self._check(handle, step.demand.policy)
        connection.verified = step.demand.policy.verified

    # --- after ---------------------------------------------------------------------------------

    def opened(self, connection: SmtpConnection, step: Step, address: str, problem: str) -> None:
        """Mail can be sent. `problem`: why a step with TLS, if there was one, failed."""
        if self._memory is None or not step.noted:
            return
        demand = step.demand
        self._memory.see(self._sighting(demand, connection.tls, problem=problem))
        if step.use is not TlsUse.NEVER:  # what comes after a failure was counted with it
            self._count(demand, connection, address, self._on_trial(connection, demand))

    def failed(
        self, connection: SmtpConnection, step: Step, address: str, error: SessionError
    ) -> SessionError:
        """There was no session, for want of TLS. The error with the reason why it is wanted."""
        demand, policy = step.demand, step.demand.policy
        failure = connection.failure or _failure(error)
        if self._memory is not None and step.noted:
            self._count(demand, connection, address, failure)
            if policy.tls:
                self._memory.see(
                    self._sighting(demand, connection.tls, problem=error.reply.text, usable=False)
                )
        if not policy.tls:
            return error
        why = _WHO.get(policy.source, "the login requires it").format(domain=demand.domain)
        text = f"{error.reply.text}; {why}"
        return SessionError(error.state, attrs.evolve(error.reply, text=text), error.transcript)

    def _refused(self, demand: Demand) -> None:
        policy = demand.policy
        if self._memory is None or policy.refusal is None or policy.failure is None:
            return
        self._memory.see(self._sighting(demand, "", problem=policy.refusal.text, usable=False))
        self._memory.count(
            Session(
                time=self._memory.seconds(),
                domain=demand.domain,
                applied=demand.applied,
                host=demand.host,
                failure=policy.failure,
            )
        )

    def _on_trial(self, connection: SmtpConnection, demand: Demand) -> Failure | None:
        """What would have been wrong for a policy in testing, or for those who want TLS at all."""
        if demand.trial_failure is not None:
            return demand.trial_failure
        if not connection.tls:
            return Failure(Result.STARTTLS_NOT_SUPPORTED, "it does not offer TLS")
        return connection.look(self._check, demand.trial) if demand.trial is not None else None

    def _sighting(self, demand: Demand, tls: str, *, problem: str, usable: bool = True) -> Sighting:
        assert self._memory is not None  # its callers have looked
        policy: HostPolicy = demand.policy
        return Sighting(
            domain=demand.domain,
            time=self._memory.seconds(),
            host=demand.host,
            tls=tls,
            source=policy.source.value,
            verified=policy.verified and usable,
            problem=problem[:MAX_PROBLEM],
            usable=usable,
        )

    def _count(
        self, demand: Demand, connection: SmtpConnection, address: str, failure: Failure | None
    ) -> None:
        assert self._memory is not None  # its callers have looked
        self._memory.count(
            Session(
                time=self._memory.seconds(),
                domain=demand.domain,
                applied=demand.applied,
                host=demand.host,
                address=address,
                source=_own_address(connection.transport),
                failure=failure,
            )
        )


def _with_proof(demand: Demand, to: Next) -> Demand:
    if demand.policy.verified:
        return demand
    policy = attrs.evolve(demand.policy, tls=True, pkix_names=(to.host,), sni="" if to.literal else to.host)
    return attrs.evolve(demand, policy=policy)


def _failure(error: SessionError) -> Failure:
    """RFC 8460 §4.3.1."""
    if error.state is State.HANDSHAKE:
        return Failure(Result.VALIDATION_FAILURE, error.reply.text, error.reply.text)
    return Failure(Result.STARTTLS_NOT_SUPPORTED, error.reply.text)


def _own_address(transport: Any) -> str:
    host = getattr(transport.getHost(), "host", "") if transport is not None else ""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""
