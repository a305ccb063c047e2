"""DNS questions and answers on the wire, on the codec of twisted.names.dns. RFC 1035, RFC 6891."""

from __future__ import annotations

import re
import struct
from typing import Any

from twisted.names import dns

from twisted_mta.core.values import value

#: What a server may send us in one datagram, octets: it passes every path without fragmentation (RFC 6891 §6.2.5).
UDP_PAYLOAD = 1232
#: Aliases followed within one answer.
MAX_CHAIN = 8
#: Records of one answer that are looked at.
MAX_RECORDS = 200
#: Seconds that an answer is kept at most: RFC 2308 §5 for negative ones; ours for positive ones.
MAX_NEGATIVE_TTL = 10800
MAX_TTL = 86400

_HEADER = struct.Struct("!6H")
_OPT = 41
#: RFC 6698 §7.1: the codec knows no such record and leaves its octets as they are.
TLSA = 52
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


class BadMessage(Exception):
    """What came is no answer that we can use."""


@value
class Question:
    """One question of class IN: `name` is in lower case without the final dot, `type` a number of twisted.names.dns."""

    name: str
    type: int

    def encode(self, message_id: int, edns: bool) -> bytes:
        """The query on the wire: recursion desired, and AD set to ask for the AD bit (RFC 6840 §5.7)."""
        message = dns.Message(id=message_id, recDes=1, authenticData=1)
        message.addQuery(self.name, self.type)
        wire = message.toStr()
        if not edns:
            return wire
        head = _HEADER.unpack_from(wire)
        # RFC 6891 §6.1.2: the root as owner, our payload size as class, no flags, no options.
        opt = b"\0" + struct.pack("!HHIH", _OPT, UDP_PAYLOAD, 0, 0)
        return _HEADER.pack(*head[:5], 1) + wire[_HEADER.size :] + opt


@value
class Answer:
    """What the DNS says to a Question. `records` are payloads of the asked type, aliases resolved."""

    records: tuple[Any, ...]
    #: Seconds that it may be kept; 0: not at all.
    ttl: int
    #: False: the name does not exist.
    exists: bool = True
    #: The AD bit: the server validated it with DNSSEC, aliases and all. Worth what the server and the path to it are.
    authentic: bool = False
    #: Where the aliases end: the name that has the records, or would have them.
    name: str = ""


@value
class Response:
    """A response that belongs to its question."""

    #: With the bits of the OPT record, RFC 6891 §6.1.3.
    rcode: int
    truncated: bool
    message: dns.Message
    #: Whether the additional section is all there.
    complete: bool = True


def parse_response(wire: bytes, question: Question, message_id: int) -> Response | None:
    """Read a response; None when it does not belong to the question (late, stray or forged). Raises BadMessage."""
    if len(wire) < _HEADER.size or _HEADER.unpack_from(wire)[0] != message_id:
        return None
    message = dns.Message()
    try:
        message.fromStr(wire)
    except Exception as error:  # noqa: BLE001  the codec raises what its parts happen to: EOFError, ValueError, struct.error ...
        raise BadMessage(f"malformed response ({type(error).__name__})") from None
    if not message.answer or len(message.queries) != 1:
        return None
    asked = message.queries[0]
    if (host_text(asked.name.name), asked.type, asked.cls) != (question.name, question.type, dns.IN):
        return None
    rcode = message.rCode
    for record in message.additional:
        if record.type == _OPT:
            rcode |= (record.ttl >> 24) << 4
    # The codec stops silently where the octets end: half an answer is none.
    _, _, _, answers, authority, additional = _HEADER.unpack_from(wire)
    if not message.trunc and (len(message.answers), len(message.authority)) != (answers, authority):
        raise BadMessage("the response ends early")
    return Response(rcode, bool(message.trunc), message, len(message.additional) == additional)


def read_answer(response: Response, question: Question) -> Answer:
    """The answer in a response of rcode NOERROR or NXDOMAIN."""
    message = response.message
    authentic = bool(message.authenticData)
    records: list[Any] = [record for record in message.answers[:MAX_RECORDS] if record.cls == dns.IN]
    name = question.name
    ttl = MAX_TTL
    for _ in range(MAX_CHAIN):
        found = [r for r in records if r.type == question.type and host_text(r.name.name) == name]
        if found:
            ttl = min(ttl, *(_ttl(record) for record in found))
            return Answer(tuple(record.payload for record in found), ttl, True, authentic, name)
        alias = next((r for r in records if r.type == dns.CNAME and host_text(r.name.name) == name), None)
        if alias is None:
            break
        ttl = min(ttl, _ttl(alias))
        name = host_text(alias.payload.name.name)
    # Nothing there: kept for as long as the SOA says, RFC 2308 §5; without one, not at all.
    authority: list[Any] = message.authority[:MAX_RECORDS]
    soa = next((r for r in authority if r.type == dns.SOA), None)
    negative = min(_ttl(soa), soa.payload.minimum, MAX_NEGATIVE_TTL) if soa is not None else 0
    return Answer((), min(ttl, negative), response.rcode != dns.ENAME, authentic, name)


def read_additional(response: Response, question: Question, answer: Answer) -> dict[Question, Answer]:
    """The addresses of mail hosts that came along with the answer for their domain.

    Only of hosts in that very domain: nobody can lend a name of another one an address in this way. They are never
    authentic, RFC 4035 §3.2.3.
    """
    if question.type != dns.MX or not response.complete:
        return {}
    hosts = {host_text(record.name.name) for record in answer.records}
    found: dict[Question, list[Any]] = {}
    additional: list[Any] = response.message.additional[:MAX_RECORDS]
    for record in additional:
        name = host_text(record.name.name)
        own = name in hosts and f".{name}".endswith(f".{question.name}")
        if own and record.cls == dns.IN and record.type in (dns.A, dns.AAAA):
            found.setdefault(Question(name, record.type), []).append(record)
    return {
        asked: Answer(
            tuple(one.payload for one in records),
            min(MAX_TTL, *(_ttl(one) for one in records)),
            name=asked.name,
        )
        for asked, records in found.items()
    }


def host_text(name: bytes) -> str:
    """A name as text in lower case. Octets that no host name has become \\ddd, so that it can't look like another."""
    return "".join(chr(o) if 33 <= o < 127 and o != 92 else f"\\{o:03}" for o in name).lower()


def is_host(name: str) -> bool:
    """Whether text from `host_text` is a name that a host can have."""
    return len(name) <= 253 and _NAME.fullmatch(name) is not None


def _ttl(record: dns.RRHeader) -> int:
    # RFC 2181 §8: a TTL with the top bit set counts as zero.
    return record.ttl if record.ttl < 2**31 else 0
