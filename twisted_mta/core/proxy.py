"""The PROXY protocol, version 1 (text) and 2 (binary): what a load balancer says of the client before the client speaks.

The specification is HAProxy's doc/proxy-protocol.txt.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from twisted_mta.core.values import value

#: The longest line of version 1, with its CRLF.
MAX_TEXT = 107
#: The most octets of version 2 behind its first 16. The format allows 65535, but real ones have some hundred.
MAX_BINARY = 4096

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_TEXT = b"PROXY "
_FIXED = len(_SIGNATURE) + 4

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
#: Family and transport -> the format of its addresses: source, destination, source port, destination port.
_ADDRESSES = {
    _UNSPECIFIED: struct.Struct(""),
    _TCP4: struct.Struct("!4s4sHH"),
    _TCP6: struct.Struct("!16s16sHH"),
    _UNIX: struct.Struct("108s108s"),
}


class ProxyError(ValueError):
    """This is no PROXY header that a mail server can use; the text says why, for the log."""


@value
class ProxyHeader:
    """Who the client is. `address` "" means: nobody but the proxy itself (a health check), or it does not say."""

    #: IP address as text.
    address: str = ""
    port: int = 0


def parse(data: bytes) -> tuple[ProxyHeader, int] | None:
    """The header at the beginning of a connection and its length; None: more octets are needed.

    Raises ProxyError as soon as `data` can't become a header, at the latest with MAX_BINARY + 16 octets.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _parse_binary(data)
    if data.startswith(_TEXT[: len(data)]):
        return _parse_text(data)
    raise ProxyError("it does not begin with a PROXY header")


# --- version 1 ------------------------------------------------------------------------------------


def _parse_text(data: bytes) -> tuple[ProxyHeader, int] | None:
    end = data.find(b"\r\n", 0, MAX_TEXT)
    if end < 0:
        if len(data) >= MAX_TEXT:
            raise ProxyError(f"the PROXY line is longer than {MAX_TEXT} octets")
        return None
    words = data[:end].decode("latin-1").split(" ")[1:]
    if words[0] == "UNKNOWN":  # whatever follows it is to be ignored
        return ProxyHeader(), end + 2
    family = {"TCP4": IPv4Address, "TCP6": IPv6Address}.get(words[0])
    if family is None or len(words) != 5:
        raise ProxyError("the PROXY line is none of TCP4, TCP6 and UNKNOWN with their addresses")
    try:
        source, _ = (family(word) for word in words[1:3])
    except ValueError as error:
        raise ProxyError(f"the PROXY line has a bad address: {error}") from None
    port, _ = (_text_port(word) for word in words[3:])
    if isinstance(source, IPv6Address) and source.scope_id:
        raise ProxyError("the PROXY line has an address with a zone")
    return ProxyHeader(str(source), port), end + 2


def _text_port(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 5 and int(word) <= 65535):
        raise ProxyError("the PROXY line has a bad port")
    return int(word)


# --- version 2 ------------------------------------------------------------------------------------


def _parse_binary(data: bytes) -> tuple[ProxyHeader, int] | None:
    if len(data) < _FIXED:
        return None
    command, family, length = struct.unpack_from("!BBH", data, len(_SIGNATURE))
    if command not in (_LOCAL, _PROXY):
        raise ProxyError(f"version and command of the PROXY header are unknown: {command:#04x}")
    if length > MAX_BINARY:
        raise ProxyError(f"the PROXY header has {length} octets, more than {MAX_BINARY}")
    # LOCAL: the proxy speaks for itself, and whatever it says of addresses does not count.
    layout = _ADDRESSES.get(family if command == _PROXY else _UNSPECIFIED)
    if layout is None:
        raise ProxyError(f"the PROXY header is for another kind of connection: {family:#04x}")
    if length < layout.size:
        raise ProxyError("the PROXY header is too short for its addresses")
    if len(data) < _FIXED + length:
        return None
    # What follows the addresses (TLVs) says nothing that we need.
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return ProxyHeader(), _FIXED + length
    source, _, port, _ = layout.unpack_from(data, _FIXED)
    return ProxyHeader(str(ip_address(source)), port), _FIXED + length
