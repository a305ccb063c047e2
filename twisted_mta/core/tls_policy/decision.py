"""What a mail host must show before it gets mail for a domain. One table says which wish counts before which."""

from __future__ import annotations

import enum
from collections.abc import Callable

import attrs

from twisted_mta.core.replies import Reply
from twisted_mta.core.tls_policy.names import any_matches, is_within
from twisted_mta.core.tls_policy.results import Failure, Result
from twisted_mta.core.tls_policy.sts import Mode, StsPolicy
from twisted_mta.core.tls_policy.tlsa import TlsaRecord
from twisted_mta.core.values import value


class Require(enum.StrEnum):
    """A pin: what the administrator demands for a domain, whatever it publishes itself."""

    #: TLS, with any certificate.
    ANY = "any"
    #: TLS, with a certificate of a known authority.
    PKIX = "pkix"
    #: An MTA-STS policy that is met.
    STS = "sts"
    #: TLSA records that are met.
    DANE = "dane"


class Source(enum.StrEnum):
    """Which wish decided."""

    PIN = "pin"
    DANE = "dane"
    STS = "sts"
    REQUIRETLS = "requiretls"
    NONE = "none"


class DaneState(enum.Enum):
    """What the DNS says of one host: the four cases of RFC 7672 §2.2."""

    #: No records, or none that can be trusted.
    ABSENT = "absent"
    USABLE = "usable"
    #: Records, and none that we can use.
    UNUSABLE = "unusable"
    #: The look-up failed.
    FAILED = "failed"


@value(kw_only=True)
class Dane:
    """The TLSA records of one host."""

    state: DaneState = DaneState.ABSENT
    #: Those to match, see `tlsa.strongest`.
    records: tuple[TlsaRecord, ...] = ()
    #: Reference identifiers, the TLSA base domain first: RFC 7672 §3.2.2.
    names: tuple[str, ...] = ()
    #: What went wrong, for FAILED.
    why: str = ""


@value(kw_only=True)
class Case:
    """What is known of a domain and one of its hosts."""

    #: The policy domain: the recipient's, or the next hop's.
    domain: str
    host: str
    #: Whether nobody but the domain's owner, or the administrator, can have named this host: the MX records are signed,
    #: there are none and the domain is the host, or the configuration names the host.
    host_proven: bool = False
    pin: Require | None = None
    #: Patterns of the hosts that the administrator trusts to take mail for the domain.
    pinned_hosts: tuple[str, ...] = ()
    sts: StsPolicy | None = None
    dane: Dane = Dane()
    #: RFC 8689: the message requires TLS.
    required: bool = False


@value(kw_only=True)
class HostPolicy:
    """What is asked of one host. All of it must hold."""

    source: Source = Source.NONE
    #: No mail without TLS.
    tls: bool = False
    #: TLSA records, of which one must match; () for no such check.
    records: tuple[TlsaRecord, ...] = ()
    #: The names of which a certificate under DANE-TA must have one.
    dane_names: tuple[str, ...] = ()
    #: The names of which a certificate of a known authority must have one; () for no such check.
    pkix_names: tuple[str, ...] = ()
    #: The name to ask for in the handshake.
    sni: str = ""
    #: The host gets no mail at all: the reply for those who wait, and the failure for the report.
    refusal: Reply | None = None
    failure: Failure | None = None

    @property
    def verified(self) -> bool:
        """Whether the certificate must prove something."""
        return bool(self.records or self.pkix_names)


def decide(case: Case) -> HostPolicy:
    """What is asked of the host."""
    policy = next(result(case) for _, applies, result in TABLE if applies(case))
    if policy.refusal is None and case.required:
        policy = _with_requiretls(case, policy)
    if policy.sni or policy.refusal is not None:
        return policy
    # RFC 7672 §8.1, RFC 8461 §7.1.
    return attrs.evolve(policy, sni=policy.dane_names[0] if policy.records else case.host)


def if_enforced(case: Case) -> Failure | HostPolicy | None:
    """What would be asked if a policy in testing were enforced, for reports: RFC 8461 §5. None: there is no such policy."""
    if case.sts is None or case.sts.mode is not Mode.TESTING:
        return None
    if not case.sts.allows(case.host):
        return _not_allowed(case, case.sts)
    return HostPolicy(source=Source.STS, tls=True, pkix_names=(case.host,), sni=case.host)


# --- the results ---------------------------------------------------------------------------------


def _refused(case: Case, source: Source, failure: Failure) -> HostPolicy:
    # RFC 8461 §5, RFC 7672 §6: delayed, not failed. RFC 3463 §3.8: X.7.5 cryptographic failure.
    reply = Reply(451, "4.7.5", f"{case.host} gets no mail for {case.domain}: {failure.text}")
    return HostPolicy(source=source, tls=True, refusal=reply, failure=failure)


def _lookup_failed(case: Case) -> HostPolicy:
    # RFC 7672 §2.1.2: the host counts as unreachable, or whoever can disturb the DNS could turn DANE off.
    text = f"its TLSA records can't be looked up ({case.dane.why})"
    return _refused(case, Source.DANE, Failure(Result.DNSSEC_INVALID, text))


def _dane(case: Case, source: Source = Source.DANE) -> HostPolicy:
    return HostPolicy(source=source, tls=True, records=case.dane.records, dane_names=case.dane.names)


def _pkix(case: Case, source: Source, names: tuple[str, ...]) -> HostPolicy:
    """A known authority, and TLSA records where there are some: RFC 8461 §2 lets none of the two weaken the other."""
    policy = HostPolicy(source=source, tls=True, pkix_names=names)
    if case.dane.state is DaneState.USABLE:
        policy = attrs.evolve(policy, records=case.dane.records, dane_names=case.dane.names)
    return policy


def _pinned_dane(case: Case) -> HostPolicy:
    if case.dane.state is DaneState.USABLE and case.host_proven:
        return _dane(case, Source.PIN)
    why = "it has no TLSA records that DNSSEC proves"
    if case.dane.state is DaneState.UNUSABLE:
        why = "none of its TLSA records can be used for mail"
    elif case.dane.state is DaneState.USABLE:
        why = "its MX records are not signed"
    text = f'{why}, and DANE is required (require = "dane")'
    return _refused(case, Source.PIN, Failure(Result.DANE_REQUIRED, text))


def _pinned_sts(case: Case) -> HostPolicy:
    if case.sts is None or case.sts.mode is Mode.NONE:
        text = 'there is no MTA-STS policy that could be had, and one is required (require = "sts")'
        return _refused(case, Source.PIN, Failure(Result.STS_POLICY_FETCH_ERROR, text))
    if not case.sts.allows(case.host):
        return _refused(case, Source.PIN, _not_allowed(case, case.sts))
    return _pkix(case, Source.PIN, (case.host,))


def _pinned_pkix(case: Case) -> HostPolicy:
    """Without a proof that the host is the domain's own, a good certificate would prove nothing."""
    if case.pinned_hosts:
        if any_matches(case.pinned_hosts, [case.host]):
            return _pkix(case, Source.PIN, (case.host,))
        text = f"it is none of those that the configuration names ({', '.join(case.pinned_hosts)})"
        return _refused(case, Source.PIN, Failure(Result.VALIDATION_FAILURE, text, "mx-mismatch"))
    if case.host_proven or is_within(case.host, case.domain) or _sts_allows(case):
        return _pkix(case, Source.PIN, (case.host, case.domain))
    return _pkix(case, Source.PIN, (case.domain,))


def _sts(case: Case) -> HostPolicy:
    assert case.sts is not None  # as `_enforces` says
    if not case.sts.allows(case.host):
        return _refused(case, Source.STS, _not_allowed(case, case.sts))
    return _pkix(case, Source.STS, (case.host,))


def _not_allowed(case: Case, policy: StsPolicy) -> Failure:
    allowed = ", ".join(policy.mx[:10]) + (" ..." if len(policy.mx) > 10 else "")
    text = f"it is none of the mail hosts in the MTA-STS policy of {case.domain} ({allowed})"
    return Failure(Result.VALIDATION_FAILURE, text, "mx-mismatch")


def _encrypted(source: Source) -> Callable[[Case], HostPolicy]:
    return lambda case: HostPolicy(source=source, tls=True)


def _with_requiretls(case: Case, policy: HostPolicy) -> HostPolicy:
    """RFC 8689 §4.2.1: the host is proven, by DNSSEC or MTA-STS, and its certificate proves that it is that host."""
    if not (case.host_proven or _sts_allows(case)):
        reply = Reply(
            550,
            "5.7.30",
            f"the message requires TLS on all of its way (REQUIRETLS), and neither DNSSEC nor MTA-STS proves that "
            f"{case.host} takes the mail for {case.domain}",
        )
        return HostPolicy(source=Source.REQUIRETLS, tls=True, refusal=reply)
    if policy.verified:
        return policy
    source = policy.source if policy.tls else Source.REQUIRETLS
    return attrs.evolve(policy, source=source, tls=True, pkix_names=(case.host,))


# --- when they apply -----------------------------------------------------------------------------


def _sts_allows(case: Case) -> bool:
    """Whether a policy that was had over verified HTTPS names the host; one in testing does so too."""
    return case.sts is not None and case.sts.mode is not Mode.NONE and case.sts.allows(case.host)


def _enforces(case: Case) -> bool:
    return case.sts is not None and case.sts.mode is Mode.ENFORCE


def _dane_is(state: DaneState) -> Callable[[Case], bool]:
    return lambda case: case.dane.state is state


def _pin_is(pin: Require) -> Callable[[Case], bool]:
    return lambda case: case.pin is pin


_Row = tuple[str, Callable[[Case], bool], Callable[[Case], HostPolicy]]

#: The first row that applies decides. (The words are for the reader, and for `docs/operations.md`.)
TABLE: tuple[_Row, ...] = (
    ("TLSA records can't be looked up", _dane_is(DaneState.FAILED), _lookup_failed),
    ("pin dane", _pin_is(Require.DANE), _pinned_dane),
    ("pin sts", _pin_is(Require.STS), _pinned_sts),
    ("pin pkix", _pin_is(Require.PKIX), _pinned_pkix),
    # RFC 7672 §2.2.1: with unsigned MX records DANE proves the host, but not that it is the domain's.
    ("DANE, MX signed", lambda case: case.dane.state is DaneState.USABLE and case.host_proven, _dane),
    ("MTA-STS enforced", _enforces, _sts),
    ("DANE, MX not signed", _dane_is(DaneState.USABLE), _dane),
    # RFC 7672 §2.2: there are TLSA records, so there is TLS.
    ("TLSA records of no use", _dane_is(DaneState.UNUSABLE), _encrypted(Source.DANE)),
    ("pin any", _pin_is(Require.ANY), _encrypted(Source.PIN)),
    ("MTA-STS in testing, or nothing", lambda case: True, lambda case: HostPolicy()),
)
