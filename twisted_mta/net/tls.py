"""TLS contexts for the servers, from PEM files: one certificate for everybody, others for those who ask for their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL

from twisted_mta.store.stamps import Stamps, look_at

#: RFC 8314 §4.1 asks for TLS 1.2 at least; with it only suites with forward secrecy and authenticated encryption.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!PSK"
_OPTIONS = (
    SSL.OP_NO_COMPRESSION
    | SSL.OP_NO_RENEGOTIATION
    | SSL.OP_CIPHER_SERVER_PREFERENCE
    | SSL.OP_SINGLE_DH_USE
    | SSL.OP_SINGLE_ECDH_USE
)
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


class TlsError(Exception):
    """The certificate or key can't be used; the text names the file and says why."""


class ServerTls:
    """What servers speak TLS with: a certificate chain (own certificate first) and its key, both PEM.

    No client certificates, no renegotiation. The object never changes: for files that did, make another.
    """

    def __init__(
        self, certificate: Path, key: Path, others: Sequence[tuple[Path, Path]] = (), minimum: str = "1.2"
    ) -> None:
        """Reads the files. Raises TlsError.

        `others` are further certificates and keys, each for the names in it (subjectAltName); where two have the same,
        the first counts. `minimum` is the oldest version that is spoken, "1.2" or "1.3".
        """
        files = [path for pair in ((certificate, key), *others) for path in pair]
        #: How the files looked before they were read.
        self.stamps: Stamps = look_at(files)
        self.context = _context(certificate, key, minimum)
        self._by_name: dict[bytes, SSL.Context] = {}
        for other in others:
            context = _context(*other, minimum)
            for name in _names(other[0]):
                self._by_name.setdefault(name, context)
        if self._by_name:
            self.context.set_tlsext_servername_callback(self._choose)

    def new_connection(self) -> SSL.Connection:
        """The server's end of one, without a socket."""
        connection = SSL.Connection(self.context, None)
        connection.set_accept_state()
        return connection

    def _choose(self, connection: SSL.Connection) -> None:
        """The client has named the host that it wants: RFC 6066 §3. Without a match it gets the first certificate."""
        name = (connection.get_servername() or b"").lower().rstrip(b".")
        # RFC 6125 §6.4.3: the star stands for one label, the leftmost.
        wildcard = b"*." + name.partition(b".")[2]
        context = self._by_name.get(name) or self._by_name.get(wildcard)
        if context is not None:
            connection.set_context(context)


def _context(certificate: Path, key: Path, minimum: str) -> SSL.Context:
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise TlsError(f"{path}: {error.strerror}") from None
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_VERSIONS[minimum])
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
    return context


def _use(path: Path, problem: str, step: Any, *arguments: str) -> None:
    try:
        step(*arguments)
    except SSL.Error:
        raise TlsError(f"{path}: {problem}") from None


def _names(certificate: Path) -> list[bytes]:
    """The host names that the certificate is for. Raises TlsError where there are none."""
    try:
        own = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        found = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError) as error:
        raise TlsError(f"{certificate}: {error}") from None
    except x509.ExtensionNotFound:
        names: list[str] = []
    else:
        names = found.get_values_for_type(x509.DNSName)
    if not names:
        raise TlsError(f"{certificate}: there is no host name in it, so that nobody can ask for it")
    return [name.lower().encode("ascii", "replace") for name in names]
