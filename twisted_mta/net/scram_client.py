"""What the SMTP client needs of the world to log in with SCRAM: chance, and a thread to compute in."""

from __future__ import annotations

import base64
import os
from collections import OrderedDict
from collections.abc import Callable
from hashlib import pbkdf2_hmac

from twisted_mta.core.sasl.client import Derive
from twisted_mta.store.threads import InlineWorkers, Workers

#: Keys that are remembered: the password and the salt stay the same, and each session would compute them anew.
REMEMBERED = 16


class ScramHelper:
    """For all sessions of a process."""

    def __init__(self, workers: Workers | InlineWorkers, random: Callable[[int], bytes] = os.urandom) -> None:
        """`random` gives so many octets fit for secrets."""
        self._workers = workers
        self._random = random
        self._known: OrderedDict[Derive, bytes] = OrderedDict()

    def nonce(self) -> bytes:
        """RFC 5802 §5.1: printable, no comma, and never the same."""
        return base64.b64encode(self._random(18))

    async def derive(self, wish: Derive) -> bytes:
        """SaltedPassword of RFC 5802 §3."""
        if wish in self._known:
            self._known.move_to_end(wish)
            return self._known[wish]
        password = wish.password.encode()
        salted: bytes = await self._workers.run(pbkdf2_hmac, "sha256", password, wish.salt, wish.iterations)
        self._known[wish] = salted
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return salted
