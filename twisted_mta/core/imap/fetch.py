"""FETCH: what can be asked of a message, and how it is answered. RFC 3501 §6.4.5, §7.4.2."""

from __future__ import annotations

from twisted_mta.core.imap import bodystructure
from twisted_mta.core.imap.entries import Entry
from twisted_mta.core.imap.grammar import BadSyntax, Scanner
from twisted_mta.core.imap.responses import astring, date_time, flag_list, literal
from twisted_mta.core.message import fields, header_length
from twisted_mta.core.mime import Part, parse_structure
from twisted_mta.core.values import value

#: Data items in one FETCH, numbers in one section, names in one HEADER.FIELDS.
MAX_ITEMS = 100
MAX_SECTION_DEPTH = 40
MAX_FIELD_NAMES = 200
#: One response has at most so many times the message's octets, and some more.
MAX_COPIES = 4
MAX_OVERHEAD = 1 << 20


class TooMuch(ValueError):
    """So many overlapping sections of a message were asked for that the answer would not fit into memory."""


@value
class Section:
    """What stands in the brackets of BODY[...]."""

    #: The part numbers.
    path: tuple[int, ...] = ()
    #: "", "HEADER", "HEADER.FIELDS", "HEADER.FIELDS.NOT", "TEXT" or "MIME".
    text: bytes = b""
    #: The field names of HEADER.FIELDS, as written.
    names: tuple[bytes, ...] = ()

    @property
    def label(self) -> bytes:
        """The section as the response repeats it."""
        words = [b"%d" % number for number in self.path]
        if self.text:
            words.append(self.text)
        label = b".".join(words)
        if self.names:
            label += b" (" + b" ".join(astring(name) for name in self.names) + b")"
        return label


@value
class Item:
    """One data item. `name` is "FLAGS", "UID", "ENVELOPE", ..., or "BODY[]" for any section."""

    name: bytes
    section: Section = Section()
    #: The label in the response where it is not that of the section: "RFC822.TEXT".
    label: bytes = b""
    #: <origin.count>; None for all.
    partial: tuple[int, int] | None = None
    #: Whether \\Seen is left alone.
    peek: bool = True

    @property
    def needs_message(self) -> bool:
        """Whether the octets of the message are needed, or its entry will do."""
        return self.name not in _FROM_ENTRY


_FROM_ENTRY = frozenset((b"FLAGS", b"UID", b"INTERNALDATE", b"RFC822.SIZE"))
_FAST = (Item(b"FLAGS"), Item(b"INTERNALDATE"), Item(b"RFC822.SIZE"))
_MACROS = {
    b"FAST": _FAST,
    b"ALL": (*_FAST, Item(b"ENVELOPE")),
    b"FULL": (*_FAST, Item(b"ENVELOPE"), Item(b"BODY")),
}
_PLAIN_ITEMS = {
    name: Item(name)
    for name in (b"FLAGS", b"UID", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE", b"BODYSTRUCTURE", b"BODY")
} | {
    b"RFC822": Item(b"BODY[]", label=b"RFC822", peek=False),
    b"RFC822.HEADER": Item(b"BODY[]", Section(text=b"HEADER"), label=b"RFC822.HEADER"),
    b"RFC822.TEXT": Item(b"BODY[]", Section(text=b"TEXT"), label=b"RFC822.TEXT", peek=False),
}
_NAME_OCTETS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.")


def parse_items(scanner: Scanner) -> tuple[Item, ...]:
    """The data items of a FETCH command. Raises BadSyntax."""
    for name, macro in _MACROS.items():
        if scanner.take(name):  # no data item begins with the name of a macro
            return macro
    if not scanner.at(b"("):
        return (_item(scanner),)
    items = tuple(_item(scanner) for _ in scanner.items())
    if not 0 < len(items) <= MAX_ITEMS:
        raise BadSyntax(f"FETCH takes 1 to {MAX_ITEMS} data items")
    return items


def _item(scanner: Scanner) -> Item:
    name = scanner.word(_NAME_OCTETS)
    if name in (b"BODY", b"BODY.PEEK") and scanner.take(b"["):
        section = _section(scanner)
        return Item(
            b"BODY[]", section, b"BODY[" + section.label + b"]", _partial(scanner), peek=name == b"BODY.PEEK"
        )
    try:
        return _PLAIN_ITEMS[name]
    except KeyError:
        raise BadSyntax("there is no such data item") from None


def _section(scanner: Scanner) -> Section:
    path: list[int] = []
    text = b""
    while not scanner.at(b"]"):
        if not scanner.at(b"0123456789"):
            text = scanner.word(_NAME_OCTETS)
            break
        path.append(scanner.number(1))
        if not scanner.take(b"."):
            break
        if scanner.at(b"]"):
            raise BadSyntax("a section ends in a dot")
    if len(path) > MAX_SECTION_DEPTH:
        raise BadSyntax("a section is too deep")
    names: tuple[bytes, ...] = ()
    if text in (b"HEADER.FIELDS", b"HEADER.FIELDS.NOT"):
        scanner.space()
        names = tuple(scanner.astring() for _ in scanner.items())
        if not 0 < len(names) <= MAX_FIELD_NAMES:
            raise BadSyntax(f"HEADER.FIELDS takes 1 to {MAX_FIELD_NAMES} names")
    elif text not in (b"", b"HEADER", b"TEXT", b"MIME") or (text == b"MIME" and not path):
        raise BadSyntax("there is no such section")
    scanner.expect(b"]")
    return Section(tuple(path), text, names)


def _partial(scanner: Scanner) -> tuple[int, int] | None:
    if not scanner.take(b"<"):
        return None
    origin = scanner.number()
    scanner.expect(b".")
    count = scanner.number(1)
    scanner.expect(b">")
    return origin, count


def render(items: tuple[Item, ...], entry: Entry, message: bytes) -> bytes:
    """The inside of ``* n FETCH (...)``. `message` is not looked at unless an item needs it. Raises TooMuch.

    Pure and thread-safe: large messages are rendered outside of the reactor's thread.
    """
    root: Part | None = None
    pairs: list[bytes] = []
    left = MAX_COPIES * len(message) + MAX_OVERHEAD
    for item in items:
        match item.name:
            case b"FLAGS":
                pairs.append(b"FLAGS " + flag_list(entry.flags, "\\Recent" if entry.recent else ""))
            case b"UID":
                pairs.append(b"UID %d" % entry.uid)
            case b"INTERNALDATE":
                pairs.append(b"INTERNALDATE " + date_time(entry.internal_date))
            case b"RFC822.SIZE":
                pairs.append(b"RFC822.SIZE %d" % entry.size)
            case b"ENVELOPE":
                pairs.append(b"ENVELOPE " + bodystructure.envelope(message[: header_length(message)]))
            case b"BODY[]":
                if item.section.path and root is None:
                    root = parse_structure(message)
                pairs.append(_body(item, message, root))
            case _:
                root = root or parse_structure(message)
                extended = item.name == b"BODYSTRUCTURE"
                pairs.append(item.name + b" " + bodystructure.body_structure(message, root, extended))
        left -= len(pairs[-1])
        if left < 0:
            raise TooMuch
    return b" ".join(pairs)


def _body(item: Item, message: bytes, root: Part | None) -> bytes:
    octets = section_octets(message, root, item.section)
    label = item.label
    if item.partial is not None:
        origin, count = item.partial
        label += b"<%d>" % origin  # RFC 3501 §7.4.2: the response gives only the origin
        octets = octets if octets is None else octets[origin : origin + count]
    return label + b" " + (b"NIL" if octets is None else literal(octets))


def section_octets(message: bytes, root: Part | None, section: Section) -> bytes | None:
    """The octets of a section; None where the message has no such part. `root` may be None for an empty path."""
    if not section.path:
        cut = header_length(message)
        return _text(section, message, 0, cut, len(message)) if section.text else message
    assert root is not None
    part = find_part(root, section.path)
    if part is None:
        return None
    if not section.text:
        return message[part.body : part.end]
    if section.text == b"MIME":
        return message[part.start : part.body]
    inner = part.embedded  # RFC 3501 §6.4.5: HEADER and TEXT of a part are those of the message inside of it
    return None if inner is None else _text(section, message, inner.start, inner.body, inner.end)


def _text(section: Section, message: bytes, start: int, body: int, end: int) -> bytes:
    if section.text == b"TEXT":
        return message[body:end]
    header = message[start:body]
    if not section.names:
        return header
    wanted = frozenset(name.lower() for name in section.names)
    keep = section.text == b"HEADER.FIELDS"
    chosen = [
        field.name + b":" + field.raw + b"\r\n" for field in fields(header) if (field.key in wanted) == keep
    ]
    return b"".join(chosen) + b"\r\n"


def find_part(root: Part, path: tuple[int, ...]) -> Part | None:
    """The part that numbers such as (1, 2) name, RFC 3501 §6.4.5."""
    node = root
    enter = True  # whether `node` is a message, whose first part may be its own body
    for number in path:
        if not enter:
            if node.embedded is not None:
                node = node.embedded
            elif not node.is_multipart:
                return None
        if node.is_multipart:
            if number > len(node.children):
                return None
            node = node.children[number - 1]
        elif number != 1:
            return None
        enter = False
    return node
