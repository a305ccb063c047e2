"""A SCRAM client, and secrets whose salt and nonce are known: for transcripts and for talking to a server."""

from __future__ import annotations

import base64
import hmac
from hashlib import pbkdf2_hmac, sha256

from twisted_mta.core.sasl import ScramKeys, Secret

SALT = b"0123456789abcdef"
NONCE = b"server"
#: As few as are allowed, to be quick.
ITERATIONS = 4096
#: Channel bindings of a connection that is none.
BINDINGS = {"tls-exporter": b"exported", "tls-server-end-point": b"certificate"}


def known_secret(login: str) -> Secret:
    """What is stored of alice, whose password is "secret". Of others there is something too, that no password fits."""
    keys = ScramKeys.derive("secret" if login == "alice" else "nobody's", SALT, ITERATIONS)
    return Secret(keys, NONCE)


class ScramClient:
    """One exchange as a client does it: `first`, then `final` with what came, then `check`.

    `flag` is "n", "y", or "p=TYPE" with the octets of that channel binding in `binding`.
    """

    def __init__(
        self,
        login: str,
        password: str,
        nonce: bytes,
        flag: str = "n",
        binding: bytes = b"",
        authzid: str = "",
    ) -> None:
        self._password = password
        quoted = login.replace("=", "=3D").replace(",", "=2C")
        self._header = f"{flag},{f'a={authzid}' if authzid else ''},".encode()
        self._bare = f"n={quoted},r=".encode() + nonce
        self._binding = binding
        self._signature = b""

    def first(self) -> bytes:
        """client-first-message."""
        return self._header + self._bare

    def final(self, server_first: bytes) -> bytes:
        """client-final-message."""
        fields = dict(part.split(b"=", 1) for part in server_first.split(b","))
        salt, iterations = base64.b64decode(fields[b"s"]), int(fields[b"i"])
        salted = pbkdf2_hmac("sha256", self._password.encode(), salt, iterations)
        channel = base64.b64encode(self._header + self._binding)
        without_proof = b"c=" + channel + b",r=" + fields[b"r"]
        said = b",".join((self._bare, server_first, without_proof))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        mask = hmac.digest(sha256(client_key).digest(), said, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, mask, strict=True))
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), said, "sha256")
        return without_proof + b",p=" + base64.b64encode(proof)

    def check(self, server_final: bytes) -> bool:
        """Whether the server knows the password too."""
        return server_final == b"v=" + base64.b64encode(self._signature)
