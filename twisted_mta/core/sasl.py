"""SASL mechanisms, server side, as SMTP, POP3 and IMAP use them. RFC 4616 (PLAIN); LOGIN has no RFC.

A mechanism is fed decoded responses and answers with a challenge to send or with the credentials it has learnt;
the base64 around them and the line framing are the protocol's.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs


class SaslError(ValueError):
    """The response is not what the mechanism allows; the text says why (it never quotes the response)."""


@attrs.frozen
class Challenge:
    """Send these octets (not yet base64) and wait for the next response."""

    data: bytes


@attrs.frozen
class Credentials:
    """What the client claims. `login` is the authentication identity (authcid)."""

    login: str
    password: bytes = attrs.field(repr=False)


class Mechanism(Protocol):
    """One exchange."""

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """The next response; None at the start where the client sent no initial one. Raises SaslError."""
        ...


def decode_base64(text: bytes) -> bytes:
    """Strict base64 of one response line. Raises SaslError."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise SaslError("the response is not base64") from None


def encode_base64(data: bytes) -> bytes:
    """Base64 in one line, without a line end."""
    return binascii.b2a_base64(data, newline=False)


def _text(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslError("the login is not UTF-8") from None


class Plain:
    """RFC 4616: authzid NUL authcid NUL password."""

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """See Mechanism."""
        if response is None:
            return Challenge(b"")
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise SaslError("PLAIN needs authzid, login and password")
        authzid, authcid, password = parts
        # RFC 4616 §2: acting for someone else is not offered, naming oneself is harmless.
        if not authcid or (authzid and authzid != authcid):
            raise SaslError("PLAIN with another authorization identity is not offered")
        return Credentials(_text(authcid), password)


class Login:
    """The LOGIN mechanism of old clients: two prompts."""

    def __init__(self) -> None:
        self._login: bytes | None = None

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """See Mechanism."""
        if response is None:
            return Challenge(b"Username:")
        if self._login is None:
            if not response:
                raise SaslError("the login is empty")
            self._login = response
            return Challenge(b"Password:")
        return Credentials(_text(self._login), response)


#: By name, the preferred first.
MECHANISMS: Mapping[str, Callable[[], Mechanism]] = {"PLAIN": Plain, "LOGIN": Login}
