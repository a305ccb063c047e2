"""The SMTP command grammar: a line becomes a verb and an argument, MAIL and RCPT their paths and parameters.

RFC 5321 §4.1.1. Liberal where real clients differ: any case, stray spaces around the colon and the path, a path
without its angle brackets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from twisted_mta.core.address import Address, AddressError, parse_path
from twisted_mta.core.replies import Reply

#: RFC 5321 §4.5.3.1.4 allows 512 octets, extensions add to it, and RFC 4954 §4 asks for 12288 with AUTH.
MAX_LINE = 12288

# RFC 5321 §4.1.2: esmtp-param; the value may hold anything printable but "=" and space.
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\u0080-\U0010ffff]+))?")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class CommandError(Exception):
    """The command can't be taken as it stands; `reply` tells the client why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


def syntax_error(text: str) -> CommandError:
    """501 5.5.4: an argument is wrong."""
    return CommandError(Reply(501, "5.5.4", text))


def parse_command(line: bytes) -> tuple[str, str]:
    """A line without its CRLF: (the verb in capitals, the argument without white space around it).

    Raises CommandError where it is not text.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise CommandError(Reply(500, "5.5.2", "Commands are ASCII or UTF-8 text")) from None
    if not text.isprintable():
        if _CONTROL.search(text):
            raise CommandError(Reply(500, "5.5.2", "Control characters have no place in a command"))
        text = text.replace("\t", " ")
    verb, _, argument = text.strip().partition(" ")
    return verb.upper(), argument.strip()


def parse_mail(argument: str) -> tuple[Address | None, Mapping[str, str]]:
    """``FROM:<reverse-path> [parameters]``: (the address, None for ``<>``; parameters by name in capitals).

    Raises CommandError.
    """
    return _path_argument(argument, "FROM", "MAIL FROM:<address>", "5.1.7")


def parse_rcpt(argument: str) -> tuple[Address, Mapping[str, str]]:
    """``TO:<forward-path> [parameters]``, as for `parse_mail`; never ``<>``. Raises CommandError."""
    address, parameters = _path_argument(argument, "TO", "RCPT TO:<address>", "5.1.3")
    if address is None:
        raise CommandError(Reply(501, "5.1.3", "A recipient can't be empty"))
    if not address.domain and address.local.lower() != "postmaster":
        # RFC 5321 §4.1.1.3: only postmaster may stand without a domain.
        raise CommandError(Reply(553, "5.1.3", "A recipient needs a domain: <user@example.org>"))
    return address, parameters


def _path_argument(
    argument: str, keyword: str, usage: str, status: str
) -> tuple[Address | None, Mapping[str, str]]:
    word, colon, text = argument.partition(":")
    if not colon or word.rstrip().upper() != keyword:
        raise syntax_error(f"Syntax: {usage}")
    text = text.lstrip()
    if text and not text.startswith("<"):
        bare, _, rest = text.partition(" ")
        text = f"<{bare}> {rest}"
    try:
        address, rest = parse_path(text)
    except AddressError as error:
        raise CommandError(Reply(501, status, f"Bad address: {error}")) from None
    if not rest:
        return address, _NO_PARAMETERS
    if not rest.startswith(" "):
        raise syntax_error(f"Syntax: {usage} and a space before parameters")
    return address, _parameters(rest.split())


_NO_PARAMETERS: Mapping[str, str] = {}


def _parameters(words: list[str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for word in words:
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise syntax_error(f"Bad parameter {word[:40]!r}")
        name = match[1].upper()
        if name in result:
            raise syntax_error(f"Parameter {name} stands twice")
        result[name] = match[2] or ""
    return result


def parse_lookup(argument: str, verb: str) -> tuple[str, bool]:
    """The argument of VRFY or EXPN, RFC 6531 §3.7.4.2: (what is asked about, whether the answer may be UTF-8).

    Raises CommandError.
    """
    if not argument:
        raise syntax_error(f"Syntax: {verb} address")
    name, _, parameter = argument.rpartition(" ")
    if name and parameter.upper() == "SMTPUTF8":
        return name.rstrip(), True
    return argument, False


_CHUNK = re.compile(r"([0-9]{1,18})(?: +(LAST))?", re.I)


def parse_chunk(argument: str) -> tuple[int, bool]:
    """The argument of BDAT, RFC 3030 §2: (octets, whether it is the last chunk). Raises CommandError."""
    match = _CHUNK.fullmatch(argument)
    if match is None:
        raise syntax_error("Syntax: BDAT size [LAST]")
    return int(match[1]), match[2] is not None


#: The attributes of XCLIENT, and how a value says that there is none.
_XCLIENT = frozenset({"NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT"})
_UNKNOWN = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")


def parse_xclient(argument: str) -> dict[str, str]:
    """``name=value ...`` with xtext values: by name in capitals, "" for one that is not known. Raises CommandError."""
    result: dict[str, str] = {}
    for word in argument.split():
        name, equals, value = word.partition("=")
        name = name.upper()
        if not equals or name not in _XCLIENT:
            raise syntax_error("Syntax: XCLIENT attribute=value ...")
        try:
            result[name] = "" if value.upper() in _UNKNOWN else decode_xtext(value)
        except ValueError as error:
            raise syntax_error(f"XCLIENT {name}: {error}") from None
    if not result:
        raise syntax_error("Syntax: XCLIENT attribute=value ...")
    return result


# RFC 3461 §4: printable ASCII but "+" and "=", anything as +XX.
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_XCHAR = re.compile(r"\+([0-9A-F]{2})")


def decode_xtext(text: str) -> str:
    """RFC 3461 §4. Raises ValueError."""
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext")
    decoded = _XCHAR.sub(lambda match: chr(int(match[1], 16)), text)
    if any(not " " <= char <= "~" for char in decoded):
        raise ValueError("control characters or octets beyond ASCII")
    return decoded
