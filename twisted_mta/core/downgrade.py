"""Makes a message fit for a host that can't take all octets: 7-bit for one without 8BITMIME, 8-bit for one without BINARYMIME.

RFC 6152 §3 and RFC 3030 §3: convert it or give it back. The parts that need it are encoded (RFC 2045 §6) and their
Content-Transfer-Encoding fields are put right; every other octet stays as it is. The content is the same after decoding.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

import attrs

from twisted_mta.core.message import first_field, located_fields
from twisted_mta.core.mime import MAX_PARTS, Part, parse_structure

#: Octets of a line without its CRLF, RFC 5321 §4.5.3.1.6.
MAX_LINE = 998

_LONG = re.compile(rb"\n[^\n]{%d}" % (MAX_LINE + 2))
#: Octets looked at by one call of the regular expression: it keeps all other threads waiting.
_STRIDE = 1 << 20
#: Octets that are made quoted-printable at a time: lines as objects cost much memory.
_BLOCK = 1 << 16
_HIGH = bytes(range(128, 256))
_ASCII_ONLY = bytes(range(128)) + b"?" * 128
#: RFC 2045 §6.4: composite types have no encoding of their own. RFC 6532 §3.7: but message/global and its kin may.
_ENCODABLE_MESSAGES = re.compile(rb"message/global", re.I)
_COMPOSITE = re.compile(rb"[ \t]*(?:multipart|message)[ \t]*/", re.I)


class Undowngradable(Exception):
    """The message can't be converted without harm; the text says why, fit for a reply."""


def downgrade(message: bytes, to: str) -> bytes:
    """The message (CRLF line ends) with nothing but what `to` ("7bit" or "8bit") allows, lines of at most 998 octets.

    Raises Undowngradable.
    """
    if to not in ("7bit", "8bit"):
        raise ValueError(f"can't convert to {to!r}")
    if not _offends(message, to) and b"binary" not in message.lower():
        return message
    root = parse_structure(message)
    conversion = _Conversion(message, to)
    result = b"".join(conversion.part(root, top=True))
    if _offends(result, to):  # a line of a header that is too long, something odd between parts
        raise Undowngradable("it has octets or lines that are allowed nowhere")
    return result


def has_utf8_header(message: bytes) -> bool:
    """Whether a header in it, of the message or of a part, is beyond ASCII, or there are too many parts to say."""
    if message.isascii():
        return False
    left, seen = [parse_structure(message)], 0
    while left:
        part = left.pop()
        seen += 1
        if seen >= MAX_PARTS or not message[part.start : part.body].isascii():
            return True
        left += part.children
    return False


def _offends(octets: bytes, to: str) -> bool:
    """Whether there is something that must not be sent without an encoding."""
    if to == "7bit" and not octets.isascii():
        return True
    # RFC 2045 §2.7, §2.8: NUL, and CR and LF that do not stand together, are for binary data only.
    pairs = octets.count(b"\r\n")
    if b"\0" in octets or octets.count(b"\n") != pairs or octets.count(b"\r") != pairs:
        return True
    if len(octets) > MAX_LINE and octets.find(b"\r", 0, MAX_LINE + 1) < 0:
        return True
    if len(octets) - (octets.rfind(b"\n") + 1) > MAX_LINE:
        return True
    return any(_LONG.search(octets, at, at + _STRIDE + MAX_LINE + 3) for at in range(0, len(octets), _STRIDE))


@attrs.define
class _Conversion:
    """One message being converted. The methods yield the octets of a part."""

    message: bytes
    to: str
    _parts: int = 0

    def part(self, part: Part, *, top: bool = False) -> Iterator[bytes]:
        """One part with its header; `top` for a message, the outermost or one within."""
        self._parts += 1
        if self._parts >= MAX_PARTS:
            raise Undowngradable("it has too many parts")
        header = self.message[part.start : part.body]
        if self.to == "7bit" and not header.isascii():
            raise Undowngradable("a header has characters beyond ASCII")
        content = self.message[part.body : part.end]
        if part.children:
            yield from self._composite(part, header, content)
        elif part.encoding in (b"7BIT", b"8BIT", b"BINARY"):
            yield from self._leaf(part, header, content, top=top)
        elif _offends(content, self.to):
            raise Undowngradable(f"a part says it is {_name(part.encoding)} and is not")
        else:
            yield from (header, content)

    def _composite(self, part: Part, header: bytes, content: bytes) -> Iterator[bytes]:
        yield self._relabelled(part, header, b"7bit" if self.to == "7bit" else b"8bit")
        if part.is_multipart and part.subtype == b"SIGNED":
            # RFC 1847 §2.1: not a single octet of what is signed may change.
            if _offends(content, self.to):
                raise Undowngradable("a part that needs it is signed")
            yield content
            return
        at = part.body
        for child in part.children:
            yield self._between(at, child.start)
            yield from self.part(child, top=part.embedded is not None)
            at = child.end
        yield self._between(at, part.end)

    def _between(self, start: int, end: int) -> bytes:
        """Delimiters, and what RFC 2046 §5.1.1 says is to be ignored: the text before the first and behind the last."""
        octets = self.message[start:end]
        return octets.translate(_ASCII_ONLY) if self.to == "7bit" else octets

    def _leaf(self, part: Part, header: bytes, content: bytes, *, top: bool) -> Iterator[bytes]:
        if not _offends(content, self.to):
            yield self._relabelled(part, header, b"7bit" if content.isascii() else b"8bit")
            yield content
            return
        declared = first_field(header, "content-type")
        if declared is not None and _COMPOSITE.match(declared) and not _ENCODABLE_MESSAGES.match(declared):
            # RFC 2045 §6.4: these can't be encoded, and could not be looked into.
            raise Undowngradable(f"a part of type {_name(declared.split(b';')[0])} needs it")
        encoding, encoded = _encode(content, text=part.type == b"TEXT")
        if top and first_field(header, "mime-version") is None:
            header = _as_mime(header, declared)
        yield _with_field(header, b"Content-Transfer-Encoding", encoding)
        yield encoded
        if top and encoding == b"base64":
            yield b"\r\n"  # of all others the delimiter brings the last line end

    def _relabelled(self, part: Part, header: bytes, encoding: bytes) -> bytes:
        """The header of a part that needs no encoding; what it says must be allowed, too."""
        wrong = (b"8BIT", b"BINARY") if self.to == "7bit" else (b"BINARY",)
        if part.encoding not in wrong:
            return header
        return _with_field(header, b"Content-Transfer-Encoding", encoding)


def _encode(content: bytes, *, text: bool) -> tuple[bytes, bytes]:
    """(name of the encoding, the encoded content with CRLF line ends)."""
    # Beyond a sixth base64 is the shorter, and quoted-printable not readable any more.
    special = len(content) - len(content.translate(None, _HIGH)) + content.count(b"=")
    if text and b"\0" not in content and special * 6 <= len(content):
        quoted = _quoted(content)
        # A line that was broken here could begin like a delimiter; base64 never does.
        if quoted is not None and b"=\r\n--" not in quoted:
            return b"quoted-printable", quoted
    return b"base64", base64.encodebytes(content).rstrip(b"\n").replace(b"\n", b"\r\n")


def _quoted(content: bytes) -> bytes | None:
    """Quoted-printable, block by block; None for text without line ends, which nobody would read."""
    blocks: list[bytes] = []
    at = 0
    while at < len(content):
        end = at + _BLOCK
        if end < len(content):
            end = content.rfind(b"\r\n", at, end) + 2
            if end <= at + 1:
                return None
        blocks.append(b"\r\n".join(map(_quote_line, content[at:end].split(b"\r\n"))))
        at = end
    return b"".join(blocks)


def _quote_line(line: bytes) -> bytes:
    """RFC 2045 §6.7 for one line without its CRLF."""
    return binascii.b2a_qp(line, istext=False).replace(b"=\n", b"=\r\n") if line else line


def _as_mime(header: bytes, declared: bytes | None) -> bytes:
    """RFC 1428: a message from before MIME becomes one in an unknown character set."""
    if declared is None:
        header = _with_field(header, b"Content-Type", b"text/plain; charset=unknown-8bit")
    return _with_field(header, b"MIME-Version", b"1.0")


def _with_field(header: bytes, name: bytes, value: bytes) -> bytes:
    """The header section with this field once: in the place of the first, or at the end."""
    field = name + b": " + value + b"\r\n"
    blank = header.endswith(b"\r\n\r\n") or header == b"\r\n"
    lines = header[:-2] if blank else header
    pieces: list[bytes] = []
    at, found = 0, False
    for one in located_fields(lines):
        if one.field.key == name.lower():
            pieces += lines[at : one.start], b"" if found else field
            at, found = one.end, True
    pieces += lines[at:], b"" if found else field, b"\r\n" * blank
    return b"".join(pieces)


def _name(text: bytes) -> str:
    return "".join(
        c if c.isprintable() else "?" for c in text[:60].decode("ascii", "replace").strip().lower()
    )
