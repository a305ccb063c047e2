"""The way to a destination as `SmtpDelivery` would go it, told instead of gone: no host is spoken to but the DNS (and the
web server that has an MTA-STS policy)."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_mta.config.destinations import Destination
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import Unroutable
from twisted_mta.core.smtp.client import TlsUse
from twisted_mta.core.tls_policy.decision import HostPolicy, Source
from twisted_mta.delivery.attempt import Trouble
from twisted_mta.delivery.hosts import Host, Hosts, Way
from twisted_mta.delivery.sessions import Line, Sessions, bound
from twisted_mta.delivery.tls_policy import Demand, Need
from twisted_mta.delivery.tls_steps import Step
from twisted_mta.interfaces import Foreseen
from twisted_mta.net.smtp_client import SessionError

_SOURCES = {
    Source.PIN: "the configuration requires it",
    Source.DANE: "its TLSA records require it (DANE)",
    Source.STS: "the MTA-STS policy of the domain requires it",
    Source.REQUIRETLS: "the message requires it (REQUIRETLS)",
    Source.NONE: "the login requires it",
}


async def survey(hosts: Hosts, sessions: Sessions, found: Destination, line: Line, domain: str) -> Foreseen:
    """What would be tried for recipients of a domain, over sessions such as `line` describes."""
    route = _route(hosts, found, domain)
    data = {"destination": found.key, "domain": domain, "helo": sessions.name(line)}
    try:
        way = await hosts.way(domain, found.hop)
    except Unroutable as error:
        return _foreseen(found, data, [route, _trouble(error.reply)], error.reply)
    trouble = Trouble(way.nowhere())
    notes: list[Note] = []
    usable = False
    for level in way.levels():
        try:
            resolved = await hosts.resolve(way, level)
        except Unroutable as error:
            notes.append(_trouble(error.reply))
            if not usable:
                trouble.note(error.reply, final=error.reply.permanent)
            break
        for host in resolved:
            note, refusal = await _host(sessions, way, host, line)
            notes.append(note)
            usable |= refusal is None and bool(note.children)
            if refusal is not None:
                trouble.note(refusal, final=refusal.permanent)
    if not usable:
        notes.append(_trouble(trouble.reply))
    return _foreseen(found, data, [route, *notes], None if usable else trouble.reply)


def _foreseen(
    found: Destination, data: dict[str, str], children: Sequence[Note], failure: Reply | None
) -> Foreseen:
    note = Note("destination", f"remote, destination {found.key}", data=data, children=tuple(children))
    return Foreseen(note, failure=failure)


def _trouble(reply: Reply) -> Note:
    return Note("trouble", str(reply), Finding.REFUSED if reply.permanent else Finding.LATER)


def _route(hosts: Hosts, found: Destination, domain: str) -> Note:
    hop = found.hop
    if hop is None:
        return Note("route", f"by the MX records of {domain}", data={"by": "mx"})
    name = f"{hop.host}, port {hop.port}" + (", by its MX records" if hop.mx else "")
    data = {"by": "route", "host": hop.host, "port": hop.port, "mx": hop.mx}
    if hop is hosts.routing.smarthost:
        return Note(
            "route", f"by the smarthost {name}", where="relay.smarthost", data=data | {"by": "smarthost"}
        )
    return Note("route", f"by the route to {name}", where="relay.routes", data=data)


async def _host(sessions: Sessions, way: Way, host: Host, line: Line) -> tuple[Note, Reply | None]:
    """A host with what is asked of it, and why it would get no mail."""
    target = host.target
    preference = f"{target.preference} " if way.hop is None or way.hop.mx else ""
    name = f"host {preference}{target.host}" + ("" if target.port == 25 else f", port {target.port}")
    data = {"host": target.host, "port": target.port, "preference": target.preference}
    addresses = sessions.order(host.addresses, line)
    if not addresses:
        reply = host.reply
        why = str(reply) if reply is not None else "has no address" + " that is used" * bool(host.addresses)
        return Note("host", f"{name}: {why}", Finding.LATER if reply else Finding.FACT, data=data), reply
    data["addresses"] = addresses
    sources = list(dict.fromkeys(filter(None, (bound(line, address) for address in addresses))))
    told = Note(
        "source",
        f"from {' or '.join(sources) or 'any address of this machine'}, as {sessions.name(line)}",
        where="relay.bind" if sources else "",
        data={"bind": sources, "helo": sessions.name(line)},
    )
    tls, refusal = await _tls(sessions, way, host, line)
    text = f"{name} [{', '.join(addresses)}]"
    return Note("host", text, data=data, children=(told, tls)), refusal


async def _tls(sessions: Sessions, way: Way, host: Host, line: Line) -> tuple[Note, Reply | None]:
    try:
        steps = await sessions.foresee(way, host.target, line)
    except SessionError as error:
        return Note("tls", str(error.reply), Finding.LATER), error.reply
    if isinstance(steps, Demand):
        refusal = steps.policy.refusal
        assert refusal is not None  # as TlsSteps.foresee says
        finding = Finding.REFUSED if refusal.permanent else Finding.LATER
        return Note("tls", str(refusal), finding, data=_policy(steps.policy)), refusal
    best: Step = steps[0]
    policy = best.demand.policy
    if line.need is Need.IGNORE:
        text = "TLS if the host offers it: the message asks for no more (TLS-Required: No)"
    elif best.use is not TlsUse.REQUIRED:
        text = "TLS if the host offers it, with any certificate; in plaintext if that fails"
    else:
        text = f"TLS required, {_proof(policy)}: {_SOURCES[policy.source]}"
    if len(steps) > 1 and best.use is TlsUse.REQUIRED:
        text += "; with less where that fails"
    where = "relay.domain" if policy.source is Source.PIN else ""
    return Note("tls", text, where=where, data={"use": best.use.name.lower()} | _policy(policy)), None


def _policy(policy: HostPolicy) -> dict[str, object]:
    return {"source": policy.source.value, "required": policy.tls, "verified": policy.verified}


def _proof(policy: HostPolicy) -> str:
    parts = []
    if policy.records:
        parts.append("a certificate that its TLSA records prove")
    if policy.pkix_names:
        parts.append(f"a certificate of a known authority for {' or '.join(policy.pkix_names)}")
    return " and ".join(parts) or "with any certificate"
