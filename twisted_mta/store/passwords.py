"""Password hashes as Dovecot writes them: {ARGON2ID} is made and read, {SHA512-CRYPT} and {SCRAM-SHA-256} are read.

They take a tenth of a second on purpose: call them in a thread.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256, sha512

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from twisted_mta.core.sasl import ScramKeys

#: RFC 9106 §4, the second recommended option: 3 passes over 64 MiB in 4 lanes.
ITERATIONS, MEMORY_KIB, LANES = 3, 65536, 4
#: What a hash in the file may cost at most; one beyond is refused, so that a slip can't stop the server.
MAX_ITERATIONS, MAX_MEMORY_KIB, MAX_LANES, MAX_ROUNDS = 100, 1 << 20, 64, 10_000_000
#: Longer passwords are wrong without a look: hashing them would cost more than any user needs.
MAX_PASSWORD = 1000

_SCHEME = re.compile(r"\{([A-Za-z0-9_.-]{1,40})\}")
_ARGON2 = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,9}),t=([0-9]{1,9}),p=([0-9]{1,9})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{16,86})"
)
_SHA512 = re.compile(r"\$6\$(?:rounds=([0-9]{1,9})\$)?([^$:\n]{0,16})\$([./0-9A-Za-z]{86})")
_CRYPT_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


#: Dovecot's scheme for accounts that have keys for SCRAM and nothing else.
SCRAM_SCHEME = "{SCRAM-SHA-256}"


class UnusableHash(ValueError):
    """The stored text is no hash that can be checked; says why, without the hash."""


def hash_password(password: bytes, random: Callable[[int], bytes]) -> str:
    """A new {ARGON2ID} hash in PHC form; `random` gives that many octets of salt."""
    salt = random(16)
    key = _argon2id(password, salt, 32, ITERATIONS, LANES, MEMORY_KIB)
    return f"{{ARGON2ID}}$argon2id$v=19$m={MEMORY_KIB},t={ITERATIONS},p={LANES}${_unpadded(salt)}${_unpadded(key)}"


def scram_keys(password: bytes, stored: str, iterations: int) -> ScramKeys:
    """The keys for SCRAM that belong beside `stored`, a salted hash of the same password.

    Raises ValueError for a password that SCRAM can't carry: one that is not UTF-8, or that SASLprep refuses.
    """
    return ScramKeys.derive(password.decode("utf-8"), scram_salt(stored), iterations)


def scram_salt(stored: str) -> bytes:
    """The salt of the keys beside a hash. It ties them to it: when another program changes the hash, they are void, and an
    old password does not live on in them. As the hash has a random salt of its own, this is as good as random."""
    return sha256(b"scram\0" + stored.encode("utf-8", "surrogateescape")).digest()[:16]


def is_locked(stored: str) -> bool:
    """Whether this stands for no password at all."""
    return not stored.strip("*!")


def verify(stored: str, password: bytes) -> bool:
    """Whether this is the password. Raises UnusableHash for a scheme or form that is not known."""
    match = _SCHEME.match(stored)
    scheme = match[1].upper() if match else ""
    value = stored[match.end() :] if match else stored
    check = _SCHEMES.get(scheme)
    if scheme in ("", "CRYPT"):  # crypt(3) strings name their algorithm themselves
        check = _verify_argon2id if value.startswith("$argon2id$") else check
        check = _verify_sha512_crypt if value.startswith("$6$") else check
    if check is None:
        raise UnusableHash(_why_not(scheme, value))
    return len(password) <= MAX_PASSWORD and check(value, password)


def _why_not(scheme: str, value: str) -> str:
    if scheme in ("PLAIN", "CLEAR", "CLEARTEXT"):
        return "passwords in plain text are not accepted: set a new one with mta user passwd"
    if not scheme:
        return "it has no password" if is_locked(value) else "its password has no {SCHEME}"
    return f"the scheme {{{scheme}}} is not known here: ARGON2ID, SHA512-CRYPT and SCRAM-SHA-256 are"


def _unpadded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _padded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise UnusableHash("the Argon2 hash is not whole") from None


def _verify_argon2id(value: str, password: bytes) -> bool:
    match = _ARGON2.fullmatch(value)
    if match is None:
        raise UnusableHash("the Argon2 hash is not whole")
    memory, iterations, lanes = int(match[1]), int(match[2]), int(match[3])
    if not (
        1 <= iterations <= MAX_ITERATIONS
        and 1 <= lanes <= MAX_LANES
        and 8 * lanes <= memory <= MAX_MEMORY_KIB  # RFC 9106 §3.1
    ):
        raise UnusableHash("the Argon2 hash asks for more memory or time than is allowed")
    salt, key = _padded(match[4]), _padded(match[5])
    return hmac.compare_digest(_argon2id(password, salt, len(key), iterations, lanes, memory), key)


# OpenSSL has a thread for each lane, from one pool for the whole process: two hashes at a time can each hold some
# of them and wait for the others for ever.
_LANES_IN_USE = threading.Lock()


def _argon2id(password: bytes, salt: bytes, length: int, iterations: int, lanes: int, memory: int) -> bytes:
    kdf = Argon2id(salt=salt, length=length, iterations=iterations, lanes=lanes, memory_cost=memory)
    with _LANES_IN_USE if lanes > 1 else nullcontext():
        return kdf.derive(password)


def _verify_sha512_crypt(value: str, password: bytes) -> bool:
    match = _SHA512.fullmatch(value)
    if match is None:
        raise UnusableHash("the SHA512-CRYPT hash is not whole")
    rounds = min(max(int(match[1]), 1000), 999_999_999) if match[1] else 5000
    if rounds > MAX_ROUNDS:
        raise UnusableHash("the SHA512-CRYPT hash asks for more rounds than is allowed")
    computed = sha512_crypt(password, match[2].encode("utf-8", "surrogateescape"), rounds)
    return hmac.compare_digest(computed, match[3])


def _verify_scram(value: str, password: bytes) -> bool:
    try:
        keys = ScramKeys.parse(value)
    except ValueError as error:
        raise UnusableHash(f"the SCRAM keys can't be used: {error}") from None
    return keys.match(password.decode("utf-8", "replace"))


def sha512_crypt(password: bytes, salt: bytes, rounds: int) -> str:
    """The 86 characters behind the salt of a "$6$" string: U. Drepper, Unix crypt using SHA-256 and SHA-512, 2007.

    The numbers in the comments are the steps of that paper.
    """
    length = len(password)
    other = sha512(password + salt + password).digest()  # 4 to 8
    first = sha512(password + salt + _repeat(other, length))  # 1 to 3, 9, 10
    bits = length
    while bits:  # 11
        first.update(other if bits & 1 else password)
        bits >>= 1
    digest = first.digest()  # 12
    spread = _repeat(sha512(password * length).digest(), length)  # 13 to 16
    salted = _repeat(sha512(salt * (16 + digest[0])).digest(), len(salt))  # 17 to 20
    for number in range(rounds):  # 21
        parts = [
            spread if number & 1 else digest,
            salted if number % 3 else b"",
            spread if number % 7 else b"",
            digest if number & 1 else spread,
        ]
        digest = sha512(b"".join(parts)).digest()
    return _crypt_base64(digest)  # 22


def _repeat(block: bytes, length: int) -> bytes:
    return (block * (length // len(block) + 1))[:length]


def _crypt_base64(digest: bytes) -> str:
    """Three octets at a time, in the order that the paper gives, lowest six bits first."""
    text: list[str] = []
    for group in range(21):
        a, b, c = (digest[group + 21 * ((place + group) % 3)] for place in range(3))
        text.append(_sextets(a << 16 | b << 8 | c, 4))
    return "".join(text) + _sextets(digest[63], 2)


def _sextets(value: int, count: int) -> str:
    return "".join(_CRYPT_ALPHABET[value >> 6 * place & 63] for place in range(count))


_SCHEMES: dict[str, Callable[[str, bytes], bool]] = {
    "ARGON2ID": _verify_argon2id,
    "SHA512-CRYPT": _verify_sha512_crypt,
    "SCRAM-SHA-256": _verify_scram,
}
