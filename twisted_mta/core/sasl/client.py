"""SASL, client side: PLAIN (RFC 4616), LOGIN (no RFC) and SCRAM-SHA-256 with its -PLUS (RFC 5802, RFC 7677).

A mechanism is a generator. It yields what the client says and is sent what the server answers, None for "you are in"; it
yields a Derive where it wants to be sent SaltedPassword. It returns once the server has let us in, and with SCRAM has
proved that it knows the password too. Raises SaslError.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Generator, Mapping
from hashlib import sha256
from typing import Any

import attrs

from twisted_mta.core.sasl.base import SaslError, decode_base64, encode_base64
from twisted_mta.core.sasl.prep import Unprepared, saslprep
from twisted_mta.core.sasl.scram import MIN_ITERATIONS
from twisted_mta.core.values import value

#: What a server may make us compute; some tenths of a second.
MAX_ITERATIONS = 1_000_000
#: Octets of a salt, and of a message from the server.
_MAX_SALT, _MAX_MESSAGE = 1024, 8192


@value
class Derive:
    """RFC 5802 §3: compute SaltedPassword, which is PBKDF2 with SHA-256 and takes its time, and send it."""

    password: str = attrs.field(repr=False)
    salt: bytes
    iterations: int


@value
class Login:
    """Who we are to a server."""

    user: str
    password: str = attrs.field(repr=False)


@value
class Circumstances:
    """What SCRAM needs besides: new nonces (printable, no comma), and the connection's bindings by type, the best first."""

    nonces: Callable[[], bytes]
    bindings: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    #: Whether the server offers -PLUS.
    plus: bool = False


ClientMechanism = Generator[bytes | Derive, Any, None]


@value
class Choice:
    """A mechanism by its name. With `initial` the first that it yields goes along with the name."""

    name: str
    initial: bool
    make: Callable[[Login, Circumstances], ClientMechanism]


def plain(login: Login, _: Circumstances) -> ClientMechanism:
    """RFC 4616 §2."""
    _ended((yield f"\0{login.user}\0{login.password}".encode()))


def two_prompts(login: Login, _: Circumstances) -> ClientMechanism:
    """The two prompts of LOGIN, whatever they say."""
    _challenge((yield login.user.encode()))
    _ended((yield login.password.encode()))


def scram(login: Login, circumstances: Circumstances) -> ClientMechanism:
    """RFC 5802 without channel binding."""
    # RFC 5802 §6: "y" tells a server that has -PLUS after all that somebody took it out of the list.
    flag = "y" if circumstances.bindings and not circumstances.plus else "n"
    return _scram(login, circumstances.nonces(), flag, b"")


def scram_plus(login: Login, circumstances: Circumstances) -> ClientMechanism:
    """RFC 5802 with channel binding."""
    # RFC 9266 §2 where the connection has it; else RFC 5929 §4.
    name = next(iter(circumstances.bindings))
    return _scram(login, circumstances.nonces(), f"p={name}", circumstances.bindings[name])


def _scram(login: Login, nonce: bytes, flag: str, binding: bytes) -> ClientMechanism:
    try:
        user, password = saslprep(login.user), saslprep(login.password)
    except Unprepared as error:
        raise SaslError(f"the login can't be used with SCRAM: {error}") from None
    header = f"{flag},,".encode()
    quoted = user.replace("=", "=3D").replace(",", "=2C")  # RFC 5802 §5.1
    bare = b"n=%b,r=%b" % (quoted.encode(), nonce)
    server_first = _challenge((yield header + bare))
    fields = _attributes(server_first, b"rsi")
    whole_nonce, salt, count = fields[b"r"], decode_base64(fields[b"s"]), fields[b"i"]
    if not whole_nonce.startswith(nonce) or whole_nonce == nonce:  # RFC 5802 §5.1
        raise SaslError("the server's nonce does not continue ours")
    iterations = int(count) if count.isdigit() and len(count) <= 9 else 0
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:  # RFC 7677 §4
        raise SaslError(
            f"the server asks for {count[:20].decode('ascii', 'replace')} iterations, "
            f"not {MIN_ITERATIONS} to {MAX_ITERATIONS}"
        )
    if not 0 < len(salt) <= _MAX_SALT:
        raise SaslError("the server's salt has an odd length")
    salted: bytes = yield Derive(password, salt, iterations)
    without_proof = b"c=%b,r=%b" % (encode_base64(header + binding), whole_nonce)
    said = b",".join((bare, server_first, without_proof))
    client_key = _hmac(salted, b"Client Key")
    mask = _hmac(sha256(client_key).digest(), said)
    proof = bytes(a ^ b for a, b in zip(client_key, mask, strict=True))
    server_final = _challenge((yield without_proof + b",p=" + encode_base64(proof)))
    expected = encode_base64(_hmac(_hmac(salted, b"Server Key"), said))
    # RFC 5802 §5: without this anybody could let us in and take our mail.
    if not hmac.compare_digest(_attributes(server_final, b"v")[b"v"], expected):
        raise SaslError("the server does not know our password either")
    _ended((yield b""))


def _challenge(answer: bytes | None) -> bytes:
    if answer is None:
        raise SaslError("the server says that we are in before it could know")
    if len(answer) > _MAX_MESSAGE:
        raise SaslError("the server's message is too long")
    return answer


def _ended(answer: bytes | None) -> None:
    if answer is not None:
        raise SaslError("the server asks for more than the mechanism has")


def _attributes(message: bytes, names: bytes) -> dict[bytes, bytes]:
    """RFC 5802 §7: these attributes first, in this order; what is optional behind them is ignored."""
    parts = message.split(b",")
    if parts[0].startswith(b"e="):
        raise SaslError(f"the server says: {parts[0][2:80].decode('ascii', 'replace')}")
    found = {bytes([name]): part[2:] for name, part in zip(names, parts, strict=False)}
    if len(found) < len(names) or any(
        not part.startswith(bytes([name]) + b"=") for name, part in zip(names, parts, strict=False)
    ):
        raise SaslError("the server's message is not of SCRAM")
    return found


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


#: The strongest first.
CHOICES = (
    Choice("SCRAM-SHA-256-PLUS", True, scram_plus),
    Choice("SCRAM-SHA-256", True, scram),
    Choice("PLAIN", True, plain),
    Choice("LOGIN", False, two_prompts),
)
