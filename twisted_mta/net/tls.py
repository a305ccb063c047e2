"""TLS contexts for the servers, from PEM files."""

from __future__ import annotations

from pathlib import Path

from OpenSSL import SSL, crypto
from twisted.internet.ssl import CertificateOptions, TLSVersion


class TlsError(Exception):
    """The certificate or key can't be used; the text names the file and says why."""


def server_options(certificate: Path, key: Path) -> CertificateOptions:
    """A context for servers from a PEM certificate chain (own certificate first) and its key. Raises TlsError.

    TLS 1.2 and newer, Twisted's cipher list, no client certificates.
    """
    try:
        chain = _chain(certificate)
        private = crypto.load_privatekey(crypto.FILETYPE_PEM, key.read_bytes())
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}") from None
    except (crypto.Error, ValueError) as error:
        raise TlsError(f"{key}: not a PEM private key ({error})") from None
    options = CertificateOptions(
        privateKey=private,
        certificate=chain[0],
        extraCertChain=chain[1:] or None,
        raiseMinimumTo=TLSVersion.TLSv1_2,
    )
    try:
        options.getContext().check_privatekey()
    except SSL.Error:
        raise TlsError(f"{key}: is not the key of {certificate}") from None
    return options


def _chain(path: Path) -> list[crypto.X509]:
    """The certificates of a PEM file, in its order."""
    end = b"-----END CERTIFICATE-----"
    blocks = path.read_bytes().split(end)[:-1]
    try:
        chain = [crypto.load_certificate(crypto.FILETYPE_PEM, block + end + b"\n") for block in blocks]
    except crypto.Error:
        raise TlsError(f"{path}: a certificate in it can't be read") from None
    if not chain:
        raise TlsError(f"{path}: no PEM certificate in it")
    return chain
