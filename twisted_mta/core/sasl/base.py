"""What a SASL mechanism is, and what it can ask for."""

from __future__ import annotations

import binascii
from collections.abc import Generator
from typing import Any

import attrs

from twisted_mta.core.values import value


class SaslError(ValueError):
    """The response is not what the mechanism allows; the text says why (it never quotes the response)."""


@value
class Challenge:
    """Send these octets (not yet base64). Answer: the client's response, decoded (bytes)."""

    data: bytes


@value
class Lookup:
    """What is stored of this login for SCRAM? Answer: a `scram.Secret`, made up for logins that have none."""

    login: str


@value
class Credentials:
    """What the client claims; is it right? `login` is the authentication identity (authcid).

    Answer: something, and the exchange goes on; or it is abandoned.
    """

    login: str
    password: bytes = attrs.field(repr=False)


@value
class Proof:
    """The mechanism itself saw whether the client knows the password of `login`. Answer: as for Credentials.

    One that is not `right` must never be accepted; it is asked so that failures are counted, delayed and logged in one
    place. `problem` is for the log: "" stands for a wrong password.
    """

    login: str
    right: bool
    problem: str = ""


Claim = Credentials | Proof
Step = Challenge | Lookup | Claim

#: One exchange: yields what it needs, is sent the answers, and returns when the client is in. Its first step is a Challenge,
#: which an initial response answers unsent. Raises SaslError.
Mechanism = Generator[Step, Any, None]


def decode_base64(text: bytes) -> bytes:
    """Strict base64 of one response line. Raises SaslError."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise SaslError("the response is not base64") from None


def encode_base64(data: bytes) -> bytes:
    """Base64 in one line, without a line end."""
    return binascii.b2a_base64(data, newline=False)


def utf8(octets: bytes) -> str:
    """Octets of a login as text. Raises SaslError."""
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslError("the login is not UTF-8") from None
