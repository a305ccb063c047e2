"""The structure of a MIME message, and its text as a person reads it. RFC 2045, RFC 2046, RFC 2047.

Works on the octets of a whole message with CRLF line ends; a `Part` names its octets by offsets, so nothing is
copied. Everything here is linear in the message for a bounded depth, and no input is an error: what breaks the
rules is read as RFC 2045 §5.2 says, as plain text.
"""

from __future__ import annotations

import binascii
import html
import re
import unicodedata

from twisted_mta.core.message import fields, first_field
from twisted_mta.core.values import value

#: Bounds for hostile messages: nested parts deeper than this are not looked into, more parts are not told apart.
MAX_DEPTH = 32
MAX_PARTS = 1000
MAX_PARAMETERS = 64
#: Header sections are read up to this many octets.
MAX_HEADER = 1 << 20
#: And the text of a part up to this many.
MAX_TEXT = 4 << 20

_PIECE = re.compile(rb'"(?:[^"\\]|\\.)*"?|;|[^";]+', re.S)
_UNQUOTE = re.compile(rb"\\(.)", re.S)
_TYPE = re.compile(rb"[ \t]*([!#$%&'*+\-.^_`{|}~0-9A-Za-z]+)[ \t]*/[ \t]*([!#$%&'*+\-.^_`{|}~0-9A-Za-z]+)")
_WORD = re.compile(rb"=\?([^?*\s]{1,40})(?:\*[^?\s]{0,40})?\?([bBqQ])\?([^?]*)\?=")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_IDENTITY = frozenset((b"", b"7BIT", b"8BIT", b"BINARY"))
_MARKUP = re.compile(r"<[^<>]*>")
# Charsets that mail is written in. Python knows codecs that are slow or no character sets at all; those stay out.
_CHARSET = re.compile(
    r"us-ascii|ascii|utf-?(?:8|16|16le|16be)|iso-?8859-?(?:[1-9]|1[0-6])|(?:windows-?|cp)(?:125[0-8]|874|866|850|437|932|949)"
    r"|koi8-[rut]|gb2312|gbk|gb18030|big5|shift[_-]jis|euc-(?:jp|kr)|iso-2022-(?:jp|kr)|tis-620|mac-?roman"
)


@value(kw_only=True)
class Part:
    """One body part, or the message itself. Offsets count octets from the start of the whole message."""

    #: Media type and subtype in upper case ("TEXT", "PLAIN").
    type: bytes
    subtype: bytes
    #: Parameters of Content-Type: (name as written, value unquoted).
    parameters: tuple[tuple[bytes, bytes], ...]
    #: Content-Transfer-Encoding in upper case.
    encoding: bytes
    #: The header section is start..body, the content body..end.
    start: int
    body: int
    end: int
    #: The parts of a multipart; the one embedded message of a message/rfc822.
    children: tuple[Part, ...] = ()

    @property
    def is_multipart(self) -> bool:
        """A multipart always has parts: one without is read as text."""
        return self.type == b"MULTIPART"

    @property
    def embedded(self) -> Part | None:
        """The message inside of a message/rfc822."""
        return self.children[0] if self.children and not self.is_multipart else None


def parse_parameters(value: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """Split ``main; name=value; ...`` of an unfolded field: (main, parameters in order, values unquoted)."""
    segments = [b""]
    for piece in _PIECE.findall(value):
        if piece == b";":
            if len(segments) > MAX_PARAMETERS:
                break
            segments.append(b"")
        else:
            segments[-1] += piece
    parameters = []
    for segment in segments[1:]:
        name, equals, raw = segment.partition(b"=")
        name, raw = name.strip(), raw.strip()
        if not equals or not name:
            continue
        if raw.startswith(b'"'):
            raw = _UNQUOTE.sub(rb"\1", raw[1:].rpartition(b'"')[0] or raw[1:])
        else:
            raw = raw.split(b" (", 1)[0].strip()  # RFC 2045 §5.1: a comment may follow
        parameters.append((name, raw))
    return segments[0].strip(), tuple(parameters)


def parse_structure(message: bytes) -> Part:
    """The tree of parts of a whole message."""
    return _part(message, 0, len(message), 0, (b"TEXT", b"PLAIN"), [MAX_PARTS])


def _part(
    message: bytes, start: int, end: int, depth: int, default: tuple[bytes, bytes], budget: list[int]
) -> Part:
    if message.startswith(b"\r\n", start, end):
        body = start + 2
    else:
        blank = message.find(b"\r\n\r\n", start, end)
        body = end if blank < 0 else blank + 4
    header = message[start : min(body, start + MAX_HEADER)]
    kind, subtype, parameters = _content_type(header, default)
    encoding = (first_field(header, "content-transfer-encoding") or b"").upper().split(b";")[0].strip()
    children: tuple[Part, ...] = ()
    if kind == b"MULTIPART" and depth < MAX_DEPTH:
        inner = (b"MESSAGE", b"RFC822") if subtype == b"DIGEST" else (b"TEXT", b"PLAIN")  # RFC 2046 §5.1.5
        children = tuple(
            _part(message, first, last, depth + 1, inner, budget)
            for first, last in _split(message, body, end, parameters, budget)
        )
    # RFC 2046 §5.2.1: only the identity encodings are allowed here; anything else can't be looked into.
    elif (kind, subtype) == (b"MESSAGE", b"RFC822") and depth < MAX_DEPTH and encoding in _IDENTITY:
        children = (_part(message, body, end, depth + 1, (b"TEXT", b"PLAIN"), budget),)
    if not children and (kind == b"MULTIPART" or (kind, subtype) == (b"MESSAGE", b"RFC822")):
        # Clients rely on parts being there, so what has none is told as a leaf.
        kind, subtype = (b"TEXT", b"PLAIN") if kind == b"MULTIPART" else (b"APPLICATION", b"OCTET-STREAM")
        parameters = ()
    return Part(
        type=kind,
        subtype=subtype,
        parameters=parameters,
        encoding=encoding or b"7BIT",
        start=start,
        body=body,
        end=end,
        children=children,
    )


def _content_type(
    header: bytes, default: tuple[bytes, bytes]
) -> tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]:
    value = first_field(header, "content-type")
    plain = ((b"charset", b"us-ascii"),)
    if value is None:
        return (*default, plain if default[0] == b"TEXT" else ())
    main, parameters = parse_parameters(value)
    match = _TYPE.match(main)
    if match is None:
        return b"TEXT", b"PLAIN", plain  # RFC 2045 §5.2
    return match[1].upper(), match[2].upper(), parameters


def _split(
    message: bytes, start: int, end: int, parameters: tuple[tuple[bytes, bytes], ...], budget: list[int]
) -> list[tuple[int, int]]:
    """The (start, end) of each part of a multipart whose content is start..end. RFC 2046 §5.1.1."""
    boundary = next((value for name, value in parameters if name.lower() == b"boundary"), b"")
    parts: list[tuple[int, int]] = []
    if not boundary:
        return parts
    delimiter = b"--" + boundary
    opened = -1
    at = message.find(delimiter, start, end)
    while at >= 0 and budget[0] > 0:
        after = at + len(delimiter)
        # Only behind a line end is it worth to look for the next one: that keeps this linear.
        if at == start or message[at - 2 : at] == b"\r\n":
            closing = message.startswith(b"--", after, end)
            line_end = message.find(b"\r\n", after, end)
            line_end = end if line_end < 0 else line_end
            if not message[after + 2 * closing : line_end].strip(b" \t"):
                if opened >= 0:
                    # The line end before the delimiter belongs to it.
                    parts.append((opened, max(opened, at - 2)))
                    budget[0] -= 1
                opened = -1 if closing else min(line_end + 2, end)
                if closing:
                    break
        at = message.find(delimiter, after, end)
    if opened >= 0 and budget[0] > 0:
        parts.append((opened, end))
        budget[0] -= 1
    return parts


def decode_charset(data: bytes, charset: str) -> str:
    """Text in a charset by its MIME name; an unknown one is tried as UTF-8, then taken as Latin-1. Never fails."""
    name = charset.strip().lower()
    if _CHARSET.fullmatch(name):
        try:
            return data.decode(name, "replace")
        except LookupError:  # a spelling that Python does not know
            pass
    return _guess(data)


def _guess(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def decode_words(value: bytes) -> str:
    """A header field's value with its encoded words decoded, RFC 2047; raw 8-bit text is guessed."""
    text: list[str] = []
    pending, charset = b"", ""
    at = 0
    for match in _WORD.finditer(value):
        between = value[at : match.start()]
        name = match[1].decode("ascii", "replace").lower()
        # RFC 2047 §6.2: white space between two encoded words is not shown.
        if not charset or between.strip() or name != charset:
            text.append(decode_charset(pending, charset))
            pending = b""
        if not charset or between.strip():
            text.append(_guess(between))
        charset = name
        if match[2] in b"bB":
            pending += decode_base64(match[3])
        else:
            pending += binascii.a2b_qp(match[3], header=True)
        at = match.end()
    text.append(decode_charset(pending, charset))
    text.append(_guess(value[at:]))
    return "".join(text)


def decode_base64(data: bytes) -> bytes:
    """Base64 as far as it can be read: foreign octets are passed over (RFC 2045 §6.8), a broken end is left off."""
    clean = _NOT_BASE64.sub(b"", data)
    whole = len(clean) - len(clean) % 4
    rest = clean[whole:]
    tail = rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""
    return binascii.a2b_base64(clean[:whole] + tail)


def part_text(message: bytes, part: Part) -> str:
    """The text of a text/* part: transfer encoding and charset undone, HTML without its markup."""
    data = message[part.body : min(part.end, part.body + MAX_TEXT)]
    if part.encoding == b"BASE64":
        data = decode_base64(data)
    elif part.encoding == b"QUOTED-PRINTABLE":
        data = binascii.a2b_qp(data)
    charset = next((value for name, value in part.parameters if name.lower() == b"charset"), b"")
    # Plenty of mail declares nothing or US-ASCII and holds UTF-8.
    text = decode_charset(data, charset.decode("ascii", "replace").lower().replace("us-ascii", ""))
    if part.subtype == b"HTML":
        text = html.unescape(_MARKUP.sub("", text))
    return text


def fold(text: str) -> str:
    """The form in which texts are compared: composed, without case, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def header_text(header: bytes) -> str:
    """A whole header section, decoded, a field a line."""
    return "\n".join(
        f"{field.name.decode('ascii')}: {decode_words(field.value)}" for field in fields(header[:MAX_HEADER])
    )


def body_text(message: bytes, root: Part) -> str:
    """What a person reads in the body: all text parts, and the headers of embedded messages."""
    found: list[str] = []
    waiting = [root]
    while waiting:
        part = waiting.pop()
        waiting.extend(reversed(part.children))
        inner = part.embedded
        if inner is not None:
            found.append(header_text(message[inner.start : inner.body]))
        elif part.type == b"TEXT":
            found.append(part_text(message, part))
    return "\n".join(found)
