"""A message from a program's standard input, made ready for the wire."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from email.header import Header
from email.utils import formatdate, getaddresses, quote
from typing import BinaryIO

from twisted_mta.admin.errors import EX_DATAERR, AdminError
from twisted_mta.core.address import Address
from twisted_mta.core.values import value

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
#: Octets of a header section that is looked at.
_MAX_HEADER = 1 << 20


@value
class Prepared:
    """The message with CRLF line ends, and the recipients that its header named."""

    data: bytes
    recipients: tuple[str, ...] = ()


def read_body(file: BinaryIO, *, dots: bool, limit: int) -> bytes:
    """All of it, with CRLF line ends; with `dots` up to a line that is only a dot. Raises AdminError if it is too large.

    Bare CRs become line ends too: nothing that could be taken for two messages leaves here (RFC 5321 §2.3.8).
    """
    data = file.read(limit + 1)
    if len(data) > limit:
        raise AdminError(
            f"sendmail: the message is larger than {limit} octets (limits.message_size)", EX_DATAERR
        )
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if dots:
        if data.startswith(b".\n") or data == b".":
            data = b""
        end = data.find(b"\n.\n")
        if end >= 0:
            data = data[: end + 1]
        elif data.endswith(b"\n."):
            data = data[:-1]
    if data and not data.endswith(b"\n"):
        data += b"\n"
    return data.replace(b"\n", b"\r\n")


def prepare(data: bytes, *, author: Address, full_name: str, from_header: bool, hostname: str) -> Prepared:
    """Add From, Date and Message-ID if they are missing; with `from_header` collect recipients and remove Bcc."""
    header, body = _split(data)
    fields = list(_fields(header))
    if fields and fields[0][0] == b"" and fields[0][1].startswith(b"From "):
        fields = fields[1:]  # the separator of an mbox file
    names = {name for name, _ in fields}
    added = []
    if b"from" not in names:
        added.append(_from_field(author, full_name))
    if b"date" not in names:
        added.append(f"Date: {formatdate(time.time(), localtime=True)}\r\n".encode())
    if b"message-id" not in names:
        unique = f"{int(time.time() * 1000):x}.{secrets.token_hex(8)}"
        added.append(f"Message-ID: <{unique}@{hostname}>\r\n".encode())
    recipients: tuple[str, ...] = ()
    if from_header:
        recipients = _recipients(fields, names)
        fields = [(name, raw) for name, raw in fields if name not in (b"bcc", b"resent-bcc")]
    return Prepared(b"".join([*added, *(raw for _, raw in fields), b"\r\n", body]), recipients)


def header_recipients(data: bytes) -> tuple[str, ...]:
    """Those whom the header of a message with CRLF line ends names. Raises AdminError."""
    fields = list(_fields(_split(data)[0]))
    return _recipients(fields, {name for name, _ in fields})


def _split(data: bytes) -> tuple[bytes, bytes]:
    """(header, body) of a message; a text that does not begin like a header is all body."""
    if data.startswith(b"\r\n"):
        return b"", data[2:]
    position = 0
    while position < min(len(data), _MAX_HEADER):
        end = data.find(b"\r\n", position) + 2
        line = data[position:end]
        if line == b"\r\n":
            return data[:position], data[end:]
        first_from = position == 0 and line.startswith(b"From ")
        continued = position > 0 and line[:1] in b" \t"
        if not (_FIELD.match(line) or first_from or continued):
            return data[:position], data[position:]  # the blank line is missing
        position = end
    return data[:position], data[position:]


def _fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name in lower case, the field as it stands, with its CRLF)."""
    raw = b""
    for line in header.split(b"\r\n")[:-1]:
        if raw and line[:1] not in (b" ", b"\t"):
            yield _name(raw), raw
            raw = b""
        raw += line + b"\r\n"
    if raw:
        yield _name(raw), raw


def _name(raw: bytes) -> bytes:
    match = _FIELD.match(raw)
    return match[1].lower() if match else b""


def _recipients(fields: list[tuple[bytes, bytes]], names: set[bytes]) -> tuple[str, ...]:
    """Of To, Cc and Bcc; of their Resent- forms alone if there are any (RFC 5322 §3.6.6)."""
    resent = {b"resent-to", b"resent-cc", b"resent-bcc"}
    wanted = resent if resent & names else {b"to", b"cc", b"bcc"}
    values = [
        raw.partition(b":")[2].replace(b"\r\n", b"").decode("utf-8", "surrogateescape").strip()
        for name, raw in fields
        if name in wanted
    ]
    found = []
    for listed in filter(None, map(_without_groups, values)):
        for _, address in getaddresses([listed]):
            if not address:
                raise AdminError(f"the recipients {listed!r} can't be read", EX_DATAERR)
            found.append(address)
    return tuple(found)


def _without_groups(value: str) -> str:
    """ "undisclosed-recipients:;" names nobody."""
    return "" if re.fullmatch(r"[^:@<>\"]*:\s*;", value) else value


def _from_field(author: Address, full_name: str) -> bytes:
    if not full_name:
        return f"From: {author}\r\n".encode("utf-8", "surrogateescape")
    clean = "".join(character for character in full_name if character.isprintable())
    name = f'"{quote(clean)}"' if clean.isascii() else Header(clean, "utf-8").encode(linesep="\r\n")
    return f"From: {name} <{author}>\r\n".encode("utf-8", "surrogateescape")
