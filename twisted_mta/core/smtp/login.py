"""How the client logs in: AUTH, RFC 4954, with one mechanism after the other, the strongest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from twisted_mta.core.sasl.base import SaslError, decode_base64, encode_base64
from twisted_mta.core.sasl.client import CHOICES, Choice, Circumstances, ClientMechanism, Derive, Login

_PLUS = "SCRAM-SHA-256-PLUS"


class LoginDialogue:
    """One login at one server, whose EHLO answer has the mechanisms `offered`.

    The methods give the line to send, without its end. They raise SaslError when the mechanism can't go on: the exchange
    is then to be cancelled.
    """

    def __init__(
        self,
        login: Login,
        offered: str,
        nonces: Callable[[], bytes] | None,
        bindings: Mapping[str, bytes],
    ) -> None:
        """`nonces` and `bindings` are as in Circumstances; without nonces SCRAM is not used."""
        names = offered.split()
        self._login = login
        self._circumstances = Circumstances(nonces or bytes, bindings, _PLUS in names)
        self._left = deque(
            choice
            for choice in CHOICES
            if choice.name in names
            and (nonces or not choice.name.startswith("SCRAM"))
            and (bindings or choice.name != _PLUS)
        )
        self._mechanism: ClientMechanism | None = None
        #: The line that is said when the first challenge comes.
        self._first: bytes | None = None
        #: Challenges that were answered.
        self._answered = 0
        #: The mechanism in use, for the log.
        self.name = ""

    def begin(self) -> bytes | None:
        """AUTH with the next mechanism that this login can be used with; None when there is none left."""
        while self._left:
            try:
                return self._begin(self._left.popleft())
            except SaslError:
                continue  # SASLprep allows SCRAM fewer characters than the others
        return None

    def _begin(self, choice: Choice) -> bytes:
        self.name, self._answered = choice.name, 0
        self._mechanism = choice.make(self._login, self._circumstances)
        first = next(self._mechanism)
        assert isinstance(first, bytes)  # no mechanism begins by computing
        line = b"AUTH " + choice.name.encode()
        if choice.initial:
            return line + b" " + encode_base64(first)
        self._first = first
        return line

    @property
    def may_try_another(self) -> bool:
        """Whether a refusal now is about the mechanism (its binding, say) and not about a password: none was used yet."""
        return self.name.startswith("SCRAM") and self._answered == 0 and bool(self._left)

    def challenged(self, text: str) -> bytes | Derive:
        """The text of a 334 reply."""
        self._answered += 1
        if self._first is not None:
            first, self._first = self._first, None
            return encode_base64(first)
        return self._say(decode_base64(text.encode("utf-8", "replace")))

    def derived(self, salted: bytes) -> bytes | Derive:
        """What Derive asked for."""
        return self._say(salted)

    def accepted(self) -> None:
        """235: the server lets us in."""
        assert self._mechanism is not None  # begun
        try:
            self._mechanism.send(None)
        except StopIteration:
            return

    def _say(self, answer: bytes) -> bytes | Derive:
        assert self._mechanism is not None  # begun
        said = self._mechanism.send(answer)
        return said if isinstance(said, Derive) else encode_base64(said)
