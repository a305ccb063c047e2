"""TLS contexts for the servers, from PEM files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

#: RFC 8314 §4.1 asks for TLS 1.2 at least; with it only suites with forward secrecy and authenticated encryption.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!PSK"
_OPTIONS = (
    SSL.OP_NO_COMPRESSION
    | SSL.OP_NO_RENEGOTIATION
    | SSL.OP_CIPHER_SERVER_PREFERENCE
    | SSL.OP_SINGLE_DH_USE
    | SSL.OP_SINGLE_ECDH_USE
)


class TlsError(Exception):
    """The certificate or key can't be used; the text names the file and says why."""


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """What servers speak TLS with: a certificate chain (own certificate first) and its key, both PEM.

    TLS 1.2 and newer, no client certificates, no renegotiation.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Reads the files. Raises TlsError."""
        for path in (certificate, key):
            try:
                path.open("rb").close()
            except OSError as error:
                raise TlsError(f"{path}: {error.strerror}") from None
        self.context = context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(_CIPHERS)
        context.set_options(_OPTIONS)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # idle connections cost some 30 kB less
        context.set_session_id(b"twisted_mta")
        _use(
            certificate,
            "no PEM certificate in it that can be read",
            context.use_certificate_chain_file,
            str(certificate),
        )
        _use(key, "no PEM private key in it that can be read", context.use_privatekey_file, str(key))
        _use(key, f"is not the key of {certificate}", context.check_privatekey)

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See IOpenSSLServerConnectionCreator."""
        return SSL.Connection(self.context, None)


def _use(path: Path, problem: str, step: Any, *arguments: str) -> None:
    try:
        step(*arguments)
    except SSL.Error:
        raise TlsError(f"{path}: {problem}") from None
