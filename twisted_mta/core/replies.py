"""SMTP replies: a code, an enhanced status code and text. RFC 5321 §4.2, RFC 2034, RFC 3463."""

from __future__ import annotations

import attrs

from twisted_mta.core.values import value


@value
class Reply:
    """One SMTP reply, sent or received.

    `code` is 200..599. `enhanced` is an RFC 3463 status such as "5.1.1", or "" where none applies (the greeting,
    the answer to HELO/EHLO, 354, 334). `text` is without CR; its lines are separated by LF.
    """

    code: int
    enhanced: str
    text: str
    #: Whether another host said it: what we say of a host in its place looks the same, and is not its word.
    heard: bool = attrs.field(default=False, eq=False, repr=False)
    #: What `str` gives, once it was asked for: the log wants it for each recipient, and many get the same reply.
    _line: str = attrs.field(default="", init=False, eq=False, repr=False)
    #: What `encode` gives: most replies are constants, said again and again.
    _wire: bytes = attrs.field(default=b"", init=False, eq=False, repr=False)

    @property
    def positive(self) -> bool:
        """2yz or 3yz."""
        return self.code < 400

    @property
    def transient(self) -> bool:
        """4yz: the client should try again later."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5yz: trying again unchanged is of no use."""
        return self.code >= 500

    @property
    def status(self) -> str:
        """The RFC 3463 status for a DSN: the enhanced code, or the class with ".0.0" where the peer gave none."""
        return self.enhanced or f"{self.code // 100}.0.0"

    def encode(self) -> bytes:
        """The reply on the wire, CRLF at the end of each line; the enhanced code stands on each line (RFC 2034 §4)."""
        if not self._wire:
            status = f"{self.enhanced} " if self.enhanced else ""
            *lines, last = self.text.split("\n")
            # RFC 5321 §4.2: all lines but the last have a hyphen behind the code.
            before = "".join([f"{self.code}-{status}{line}\r\n" for line in lines])
            wire = f"{before}{self.code} {status}{last}\r\n".encode("utf-8", "replace")
            object.__setattr__(self, "_wire", wire)
        return self._wire

    def __str__(self) -> str:
        if not self._line:
            parts = [str(self.code), self.enhanced, self.text.replace("\n", " / ")]
            object.__setattr__(self, "_line", " ".join(part for part in parts if part))
        return self._line
