"""The mechanisms that bring the password itself: for use under TLS only."""

from __future__ import annotations

from twisted_mta.core.sasl.base import Challenge, Credentials, Mechanism, SaslError, utf8


def plain() -> Mechanism:
    """RFC 4616: authzid NUL authcid NUL password."""
    response = yield Challenge(b"")
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise SaslError("PLAIN needs authzid, login and password")
    authzid, authcid, password = parts
    # RFC 4616 §2: acting for someone else is not offered, naming oneself is harmless.
    if not authcid or (authzid and authzid != authcid):
        raise SaslError("PLAIN with another authorization identity is not offered")
    yield Credentials(utf8(authcid), password)


def login() -> Mechanism:
    """The LOGIN mechanism of old clients: two prompts."""
    name = yield Challenge(b"Username:")
    if not name:
        raise SaslError("the login is empty")
    password = yield Challenge(b"Password:")
    yield Credentials(utf8(name), password)
