"""What is asked of the TLS of each mail host: gathers what is known and lets `core.tls_policy.decision` decide."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from twisted_mta.core.replies import Reply
from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.tls_policy.decision import (
    Case,
    Dane,
    DaneState,
    HostPolicy,
    Require,
    Source,
    decide,
    if_enforced,
)
from twisted_mta.core.tls_policy.results import Failure
from twisted_mta.core.tls_policy.sts import StsPolicy
from twisted_mta.core.tls_policy.tlsa import TlsaRecord, strongest
from twisted_mta.core.tls_report import NO_POLICY, Applied
from twisted_mta.core.values import value
from twisted_mta.interfaces import IMailResolver

#: Looks at the peer of a connection whose handshake is done: `net.tls_verify.CertificateCheck`.
Check = Callable[[Any, HostPolicy], Failure | None]


class Need(enum.Enum):
    """What a message asks of TLS (RFC 8689)."""

    NONE = "none"
    #: "TLS-Required: No", and reports about TLS: what the recipient's domain asks for is not looked at.
    IGNORE = "ignore"
    #: A bounce of a message that required TLS: with a host that is proven if possible, or else without.
    PROOF_IF_POSSIBLE = "proof if possible"
    #: TLS, with a certificate that proves the host, or not at all.
    PROOF = "proof"


@value(kw_only=True)
class Pin:
    """What the configuration demands of a destination."""

    require: Require | None = None
    hosts: tuple[str, ...] = ()


@value(kw_only=True)
class Next:
    """A host that mail is to go to, and why to that one."""

    #: The domain whose MX records were followed, as the DNS knows it; "" where the configuration names the host, or the
    #: recipient's address does.
    domain: str
    host: str
    port: int
    #: Whether the configuration names the host.
    fixed: bool = False
    #: Whether `host` is an IP address.
    literal: bool = False


@value(kw_only=True)
class Demand:
    """What is asked of a host, with what is needed to tell about it afterwards."""

    policy: HostPolicy
    #: Who the host stands for in reports and in `mta tls`.
    domain: str
    host: str
    #: The policy in reports.
    applied: Applied = NO_POLICY
    #: What a policy in testing would ask: only looked at.
    trial: HostPolicy | None = None
    trial_failure: Failure | None = None


class TlsPolicies:
    """Asks the DNS and the policies. `mta_sts` and `dane` say whether these are looked at."""

    def __init__(
        self, resolver: IMailResolver, sts: Callable[[str], Awaitable[StsPolicy | None]] | None
    ) -> None:
        """`sts` gives the MTA-STS policy of a domain; None: nobody's is known."""
        self._resolver = resolver
        self._sts = sts
        self.mta_sts = True
        self.dane = True

    async def demand(self, next_host: Next, pin: Pin, need: Need) -> Demand:
        """What is asked of a host. Raises LookupFailed where that can't be found out for now."""
        who = next_host.domain or next_host.host
        if need is Need.IGNORE:
            return Demand(policy=HostPolicy(sni=_sni(next_host)), domain=who, host=next_host.host)
        case = await self._case(next_host, pin, who)
        if need in (Need.PROOF, Need.PROOF_IF_POSSIBLE):
            case = attrs.evolve(case, required=True)
        policy = decide(case)
        if next_host.literal:
            policy = attrs.evolve(policy, sni="")
        trial = if_enforced(case) if policy.source is not Source.STS and not policy.verified else None
        return Demand(
            policy=policy,
            domain=who,
            host=next_host.host,
            applied=_applied(case, policy, trial is not None),
            trial=trial if isinstance(trial, HostPolicy) else None,
            trial_failure=trial if isinstance(trial, Failure) else None,
        )

    async def _case(self, to: Next, pin: Pin, who: str) -> Case:
        """What there is to know."""
        if to.literal:  # RFC 7672 §2.2, RFC 8461 §3.4: neither DANE nor MTA-STS knows IP addresses
            return Case(
                domain=who, host=to.host, host_proven=to.fixed, pin=pin.require, pinned_hosts=pin.hosts
            )
        proven, names = to.fixed or to.host == to.domain, [to.domain] if to.host == to.domain else []
        if self.dane and to.domain:
            mx = await self._resolver.mx_proof(to.domain)
            if mx.secure:
                proven, names = True, [to.domain, mx.name]
        sts = None
        if self.mta_sts and self._sts is not None:
            sts = await self._sts(who)  # RFC 8461 §3.4: of a smarthost's own name, where that is configured
        return Case(
            domain=who,
            host=to.host,
            host_proven=proven,
            pin=pin.require,
            pinned_hosts=pin.hosts,
            sts=sts,
            dane=await self._find(to.host, to.port, names) if self.dane else Dane(),
        )

    async def _find(self, host: str, port: int, names: Sequence[str]) -> Dane:
        """The TLSA records of a host. `names`: what it may be called besides by its own name (RFC 7672 §3.2.2)."""
        try:
            for base in await self._bases(host):
                found = await self._records(f"_{port}._tcp.{base}")
                if found:
                    usable = strongest(found)
                    return Dane(
                        state=DaneState.USABLE if usable else DaneState.UNUSABLE,
                        records=usable,
                        names=tuple(dict.fromkeys([base, *names])),
                    )
        except NoSuchDomain:
            return Dane()
        except LookupFailed as error:
            return Dane(state=DaneState.FAILED, why=str(error))
        return Dane()

    async def _bases(self, host: str) -> Sequence[str]:
        """The names under which TLSA records are looked for, in order: RFC 7672 §2.2.2."""
        proof = await self._resolver.address_proof(host)
        if proof.secure:
            return [proof.name] if proof.name == host else [proof.name, host]
        return [host] if proof.alias_secure else []

    async def _records(self, name: str) -> Sequence[TlsaRecord]:
        try:
            return await self._resolver.tlsa(name)
        except NoSuchDomain:
            return ()


def lookup_failed(to: Next, error: LookupFailed) -> Reply:
    """The reply where `TlsPolicies.demand` could not say."""
    # RFC 7672 §2.1.2
    return Reply(451, "4.4.3", f"can't find out which TLS {to.domain or to.host} asks for: {error}")


def _sni(to: Next) -> str:
    return "" if to.literal else to.host


def _applied(case: Case, policy: HostPolicy, testing: bool) -> Applied:
    if case.dane.state is not DaneState.ABSENT and not (policy.source is Source.STS and policy.failure):
        return Applied("tlsa", tuple(map(str, case.dane.records)), (case.host,))
    if case.sts is not None and (testing or policy.source in (Source.STS, Source.PIN)):
        return Applied("sts", case.sts.lines, case.sts.mx)
    return NO_POLICY
