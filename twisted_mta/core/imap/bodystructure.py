"""ENVELOPE, BODY and BODYSTRUCTURE. RFC 3501 §7.4.2."""

from __future__ import annotations

from twisted_mta.core.imap.addresses import EnvelopeAddress, parse_addresses
from twisted_mta.core.imap.responses import nstring, string
from twisted_mta.core.message import fields
from twisted_mta.core.mime import MAX_HEADER, Part, parse_parameters

_NIL = b"NIL"


def _first_values(header: bytes) -> dict[bytes, bytes]:
    """The topmost value of each field, by name in lower case."""
    values: dict[bytes, bytes] = {}
    for field in fields(header[:MAX_HEADER]):
        values.setdefault(field.key, field.value)
    return values


def envelope(header: bytes) -> bytes:
    """The ENVELOPE of a message with this header section."""
    values = _first_values(header)
    sender = _addresses(values.get(b"from"))
    members = [
        nstring(values.get(b"date")),
        nstring(values.get(b"subject")),
        sender,
        # RFC 3501 §7.4.2: without one of their own, sender and reply-to are what from is.
        _addresses(values.get(b"sender"), sender),
        _addresses(values.get(b"reply-to"), sender),
        _addresses(values.get(b"to")),
        _addresses(values.get(b"cc")),
        _addresses(values.get(b"bcc")),
        nstring(values.get(b"in-reply-to")),
        nstring(values.get(b"message-id")),
    ]
    return b"(" + b" ".join(members) + b")"


def _addresses(value: bytes | None, default: bytes = _NIL) -> bytes:
    parsed = parse_addresses(value) if value else []
    return b"(" + b"".join(_address(address) for address in parsed) + b")" if parsed else default


def _address(address: EnvelopeAddress) -> bytes:
    members = (address.name, address.route, address.mailbox, address.host)
    return b"(" + b" ".join(nstring(member) for member in members) + b")"


def body_structure(message: bytes, part: Part, extended: bool) -> bytes:
    """The structure of a part of `message`: BODYSTRUCTURE with `extended`, else BODY."""
    values = _first_values(message[part.start : part.body])
    if part.is_multipart:
        inner = b"".join(body_structure(message, child, extended) for child in part.children)
        tail = [inner + b" " + string(part.subtype)]
        if extended:
            tail += [_parameters(part.parameters), *_extension(values)]
        return b"(" + b" ".join(tail) + b")"
    members = [
        string(part.type),
        string(part.subtype),
        _parameters(part.parameters),
        nstring(values.get(b"content-id")),
        nstring(values.get(b"content-description")),
        string(part.encoding),
        b"%d" % (part.end - part.body),
    ]
    embedded = part.embedded
    if embedded is not None:
        members.append(envelope(message[embedded.start : embedded.body]))
        members.append(body_structure(message, embedded, extended))
    if embedded is not None or part.type == b"TEXT":
        members.append(b"%d" % message.count(b"\n", part.body, part.end))
    if extended:
        members += [nstring(values.get(b"content-md5")), *_extension(values)]
    return b"(" + b" ".join(members) + b")"


def _parameters(parameters: tuple[tuple[bytes, bytes], ...]) -> bytes:
    if not parameters:
        return _NIL
    return b"(" + b" ".join(string(name) + b" " + string(value) for name, value in parameters) + b")"


def _extension(values: dict[bytes, bytes]) -> list[bytes]:
    """Disposition, language and location, which leaf and multipart have in common."""
    disposition = _NIL
    if values.get(b"content-disposition"):
        kind, parameters = parse_parameters(values[b"content-disposition"])
        disposition = b"(" + string(kind) + b" " + _parameters(parameters) + b")"
    languages = [tag.strip() for tag in values.get(b"content-language", b"").split(b",") if tag.strip()]
    language = _NIL
    if languages:
        language = b"(" + b" ".join(string(tag) for tag in languages) + b")"
    return [disposition, language, nstring(values.get(b"content-location"))]
