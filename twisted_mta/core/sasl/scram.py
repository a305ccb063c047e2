"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS: RFC 5802 with the hash of RFC 7677.

The password does not travel, and what the server stores is not enough to log in with. With -PLUS both sides also prove
that they are the two ends of one TLS connection.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import pbkdf2_hmac, sha256

import attrs

from twisted_mta.core.sasl.base import (
    Challenge,
    Lookup,
    Mechanism,
    Proof,
    SaslError,
    decode_base64,
    encode_base64,
    utf8,
)
from twisted_mta.core.sasl.prep import Unprepared, saslprep
from twisted_mta.core.values import value

#: RFC 7677 §4: fewer are too few. More than the other make a slip in the file stop every client.
MIN_ITERATIONS, MAX_ITERATIONS = 4096, 10_000_000
#: Octets of a message from the client; real ones are far below.
MAX_MESSAGE = 4096

_SALTS = range(8, 65)
# RFC 5802 §7: printable, no comma.
_NONCE = re.compile(rb"[\x21-\x2b\x2d-\x7e]{1,1024}")
_BINDING = re.compile(rb"[A-Za-z0-9.-]{1,64}")
_ATTRIBUTE = re.compile(rb"[A-Za-z]=[^\0,]+")


@value
class ScramKeys:
    """What is stored of a password. RFC 5802 §3."""

    salt: bytes
    iterations: int
    stored_key: bytes = attrs.field(repr=False)
    server_key: bytes = attrs.field(repr=False)

    @classmethod
    def derive(cls, password: str, salt: bytes, iterations: int) -> ScramKeys:
        """From a password; takes its time. Raises Unprepared for one that SASLprep refuses."""
        prepared = saslprep(password, stored=True)
        if not prepared:
            raise Unprepared("nothing is left of it")
        salted = pbkdf2_hmac("sha256", prepared.encode("utf-8"), salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return cls(salt, iterations, sha256(client_key).digest(), _hmac(salted, b"Server Key"))

    @classmethod
    def parse(cls, text: str) -> ScramKeys:
        """From "iterations,salt,StoredKey,ServerKey", three of them base64: Dovecot's form. Raises ValueError."""
        count, *encoded = text.split(",")
        if len(encoded) != 3 or not (count.isascii() and count.isdigit() and len(count) <= 9):
            raise ValueError("it is not of the form iterations,salt,key,key")
        iterations = int(count)
        salt, stored_key, server_key = (decode_base64(part.encode("utf-8")) for part in encoded)
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise ValueError(f"its iterations are not between {MIN_ITERATIONS} and {MAX_ITERATIONS}")
        if len(salt) not in _SALTS or len(stored_key) != 32 or len(server_key) != 32:
            raise ValueError("its salt or its keys are of the wrong length")
        return cls(salt, iterations, stored_key, server_key)

    def __str__(self) -> str:
        """What `parse` reads: a secret."""
        encoded = (
            encode_base64(part).decode("ascii") for part in (self.salt, self.stored_key, self.server_key)
        )
        return ",".join([str(self.iterations), *encoded])

    def match(self, password: str) -> bool:
        """Whether they are this password's; takes its time."""
        try:
            derived = ScramKeys.derive(password, self.salt, self.iterations)
        except Unprepared:
            return False
        return hmac.compare_digest(derived.stored_key, self.stored_key)


@value
class Secret:
    """The answer to a Lookup. `nonce`: new for each exchange, printable ASCII without a comma."""

    keys: ScramKeys
    nonce: bytes


@value
class ClientFirst:
    """client-first-message of RFC 5802 §7."""

    #: "n", "y" or "p", and with "p" the name of the channel binding.
    flag: str
    binding: str
    #: The GS2 header as sent, and the rest of the message.
    header: bytes
    bare: bytes
    login: str
    nonce: bytes

    @classmethod
    def parse(cls, message: bytes) -> ClientFirst:
        """Raises SaslError."""
        parts = _split(message)
        if len(parts) < 4:
            raise SaslError("the first message of SCRAM is not whole")
        flag, name = _parse_flag(parts[0])
        header, bare = b",".join(parts[:2]) + b",", parts[2:]
        if bare[0].startswith(b"m="):  # RFC 5802 §5.1
            raise SaslError("SCRAM extensions are not supported")
        if not bare[0].startswith(b"n="):
            raise SaslError("the first message of SCRAM has no user name")
        login = _name(bare[0][2:])
        if parts[1] and not (parts[1].startswith(b"a=") and _name(parts[1][2:]) == login):
            raise SaslError("SCRAM with another authorization identity is not offered")
        nonce = _nonce(bare[1])
        _ignore(bare[2:])
        return cls(flag, name, header, b",".join(bare), login, nonce)


@value
class ClientFinal:
    """client-final-message of RFC 5802 §7."""

    binding: bytes
    nonce: bytes
    #: The message as sent, without the proof.
    without_proof: bytes
    proof: bytes = attrs.field(repr=False)

    @classmethod
    def parse(cls, message: bytes) -> ClientFinal:
        """Raises SaslError."""
        parts = _split(message)
        if len(parts) < 3 or not parts[0].startswith(b"c=") or not parts[-1].startswith(b"p="):
            raise SaslError("the second message of SCRAM is not whole")
        nonce = _nonce(parts[1])
        _ignore(parts[2:-1])
        proof = decode_base64(parts[-1][2:])
        if len(proof) != 32:
            raise SaslError("the proof has the wrong length")
        return cls(decode_base64(parts[0][2:]), nonce, b",".join(parts[:-1]), proof)


def scram(plus: bool, bindings: Mapping[str, bytes]) -> Mechanism:
    """One exchange. `plus`: the client chose the -PLUS variant; `bindings` are those that can be proved here, and where there
    are any, -PLUS was offered."""
    first = ClientFirst.parse((yield Challenge(b"")))
    if plus != (first.flag == "p"):
        # RFC 5802 §6: the name of the mechanism and the flag say the same.
        raise SaslError("channel binding is for the -PLUS mechanism, and needed there")
    if first.flag == "p" and first.binding not in bindings:
        raise SaslError("channel bindings known here: " + ", ".join(bindings))
    if first.flag == "y" and bindings:
        # RFC 5802 §6: we offered -PLUS and the client did not see it. Somebody in between has changed the list.
        yield Proof(first.login, False, "the list of mechanisms was changed on its way to the client")
        raise SaslError("the list of mechanisms was changed on its way")
    secret: Secret = yield Lookup(first.login)
    keys, nonce = secret.keys, first.nonce + secret.nonce
    server_first = b"r=%s,s=%s,i=%d" % (nonce, encode_base64(keys.salt), keys.iterations)
    final = ClientFinal.parse((yield Challenge(server_first)))
    if not hmac.compare_digest(final.nonce, nonce):  # RFC 5802 §5.1
        raise SaslError("the nonce is not the one that was sent")
    said = b",".join((first.bare, server_first, final.without_proof))
    # RFC 5802 §3: the proof is the client key under a mask that only the stored key can take off.
    client_key = _xor(final.proof, _hmac(keys.stored_key, said))
    right = hmac.compare_digest(sha256(client_key).digest(), keys.stored_key)
    expected = first.header + bindings.get(first.binding, b"")
    if right and not hmac.compare_digest(final.binding, expected):
        yield Proof(first.login, False, "the client is not at the other end of this TLS connection")
        raise SaslError("the channel binding is not that of this connection")
    yield Proof(first.login, right)
    if not right:
        raise SaslError("the proof is wrong")
    # RFC 5802 §3: now we prove that we know the password too. The client has nothing to add.
    if (yield Challenge(b"v=" + encode_base64(_hmac(keys.server_key, said)))):
        raise SaslError("nothing was left to be said")


def _split(message: bytes) -> list[bytes]:
    if len(message) > MAX_MESSAGE:
        raise SaslError("the message is too long")
    return message.split(b",")


def _parse_flag(flag: bytes) -> tuple[str, str]:
    if flag in (b"n", b"y"):
        return flag.decode("ascii"), ""
    if flag.startswith(b"p=") and _BINDING.fullmatch(flag[2:]):
        return "p", flag[2:].decode("ascii")
    raise SaslError("the channel binding flag is none of n, y and p=")


def _name(saslname: bytes) -> str:
    """RFC 5802 §5.1: unquoted, and in the one spelling."""
    text = utf8(saslname)
    parts = text.split("=")
    if not all(part.startswith(("2C", "3D")) for part in parts[1:]):
        raise SaslError("the user name has = in it that stands for nothing")
    unquoted = text.replace("=2C", ",").replace("=3D", "=")
    try:
        prepared = saslprep(unquoted)
    except Unprepared as error:
        raise SaslError(f"the user name can't be used: {error}") from None
    if not prepared:
        raise SaslError("the user name is empty")
    return prepared


def _nonce(attribute: bytes) -> bytes:
    if not attribute.startswith(b"r=") or not _NONCE.fullmatch(attribute[2:]):
        raise SaslError("the nonce is missing, or has characters that are not allowed")
    return attribute[2:]


def _ignore(extensions: list[bytes]) -> None:
    """RFC 5802 §5.1: what is optional and unknown is ignored."""
    if not all(_ATTRIBUTE.fullmatch(extension) for extension in extensions):
        raise SaslError("an extension has no name or no value")


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
