"""For applications: functions that get the mail for addresses, in the server's own process.

    from twisted_mta.handlers import Defer, Mail, Reject, rcpt

    @rcpt("ticket-{id}@example.org")
    async def ticket(mail: Mail, id: str) -> None:
        if not id.isdigit():
            raise Reject(f"there is no ticket {id}")
        await database.add_comment(int(id), mail.message.get_body().get_content(), key=mail.key)

The configuration names the module (`[handlers] modules = ["myapp.mail"]`). Returning accepts the mail: what the function
was to do must be committed by then. See docs/tutorial-handler.md.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from email import message_from_binary_file
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from twisted_mta.core.captures import Pattern
from twisted_mta.core.envelope import Envelope
from twisted_mta.core.values import value

if TYPE_CHECKING:
    from email.message import EmailMessage

F = TypeVar("F", bound=Callable[..., Any])

#: Where the decorator leaves its note on a function.
MARK = "__twisted_mta_rcpt__"
#: Characters of a refusal's text.
MAX_TEXT = 400
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", re.ASCII)


class Refusal(Exception):
    """What `Reject` and `Defer` have in common: the SMTP reply that they stand for."""

    _class = 0
    _code = 0
    _status = ""

    def __init__(self, text: str, code: int | None = None, status: str | None = None) -> None:
        """`text` is a sentence for the sender; `code` and `status` (RFC 3463) must be of one class. Raises ValueError."""
        self.code = self._code if code is None else code
        self.status = self._status if status is None else status
        if self.code // 100 != self._class:
            raise ValueError(
                f"the code of {type(self).__name__} is {self._class}00 to {self._class}99, not {self.code}"
            )
        if not _STATUS.fullmatch(self.status) or not self.status.startswith(str(self._class)):
            raise ValueError(
                f"the status of {type(self).__name__} is like {self._status}, not {self.status!r}"
            )
        line = " ".join(text.split())
        self.text = "".join(char if char.isprintable() else "?" for char in line)[:MAX_TEXT]
        super().__init__(f"{self.code} {self.status} {self.text}")


class Reject(Refusal):
    """The mail is not wanted, now or ever."""

    _class, _code, _status = 5, 550, "5.7.1"


class Defer(Refusal):
    """Not now: the mail is tried again on the queue's schedule."""

    _class, _code, _status = 4, 451, "4.7.0"


class Mail:
    """One message for one recipient, as a handler gets it. Of use only until the handler has ended."""

    def __init__(
        self,
        *,
        envelope: Envelope,
        queue_id: str,
        recipient: str,
        original: str,
        captures: Mapping[str, str],
        attempt: int,
        size: int,
        opener: Callable[[], BinaryIO],
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        #: Who sent it, in `envelope.sender` (None: nobody, as for a bounce), and more.
        self.envelope = envelope
        self.queue_id = queue_id
        #: The address that the handler was found by; and the one that the sender wrote, which an alias may have led from.
        self.recipient = recipient
        self.original = original
        self.captures = dict(captures)
        #: 1 for the first time. After a crash an attempt is repeated under the same number.
        self.attempt = attempt
        #: Octets of `open`.
        self.size = size
        self._opener = opener
        self._in_thread = in_thread
        self._message: EmailMessage | None = None

    @property
    def key(self) -> str:
        """The same for each attempt with this message for this recipient, and for nothing else: commit it along with what you
        do, and leave out what is done already."""
        return f"{self.queue_id}:{self.recipient}"

    @property
    def sender(self) -> str:
        """The reverse-path, "" for the null one."""
        return str(self.envelope.sender or "")

    def open(self) -> BinaryIO:
        """A file with the message, lines ending in CRLF, our Received field on top. Reading may block; close it."""
        return self._opener()

    def octets(self) -> bytes:
        """The whole message. May block."""
        with self.open() as file:
            return file.read()

    @property
    def message(self) -> EmailMessage:
        """The message, parsed when it is first asked for: a hundredth of a second a megabyte, so in an async function
        `await mail.parse()` first if it may be large."""
        if self._message is None:
            with self.open() as file:
                # The default policy makes an EmailMessage, whatever the annotation of the function says.
                found: Any = message_from_binary_file(file, policy=_policy())
                self._message = found
        assert self._message is not None  # just made
        return self._message

    async def parse(self) -> EmailMessage:
        """`message`, parsed in a thread."""
        found: EmailMessage = await self._in_thread(lambda: self.message)
        return found


@value(kw_only=True)
class Handler:
    """A function and one pattern that it was registered for."""

    pattern: Pattern
    function: Callable[..., Any]
    inline: bool = False
    thread: bool = False
    #: None: as [handlers] says.
    concurrency: int | None = None
    timeout: float | None = None

    @property
    def name(self) -> str:
        """For the log: "myapp.mail.ticket"."""
        return f"{self.function.__module__}.{getattr(self.function, '__qualname__', 'handler')}"


def rcpt(
    *patterns: str,
    inline: bool = False,
    thread: bool = False,
    concurrency: int | None = None,
    timeout: float | None = None,
) -> Callable[[F], F]:
    """Register a function for the mail to addresses. It is called as function(mail, **captures), in the reactor's thread,
    and may be async or return a Deferred; with `thread` in a thread, where it may block.

    A pattern is an address in which {names} stand for one character or more (`core.captures`); without "@" it holds in
    every local domain. `inline`: it is called before the message is acknowledged, and a refusal reaches the sending
    server at once. `concurrency`: calls at a time; `timeout`: seconds. Raises ValueError.
    """
    if not patterns:
        raise ValueError('rcpt needs a pattern: @rcpt("ticket-{id}@example.org")')
    if any(not isinstance(pattern, str) for pattern in patterns):
        raise ValueError('rcpt takes patterns as text: @rcpt("ticket-{id}@example.org")')
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: at least 1")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"timeout is {timeout}: more than 0 seconds")
    parsed = [Pattern.parse(pattern) for pattern in patterns]
    _policy()

    def register(function: F) -> F:
        notes = [
            Handler(
                pattern=pattern,
                function=function,
                inline=inline,
                thread=thread,
                concurrency=concurrency,
                timeout=timeout,
            )
            for pattern in parsed
        ]
        known: list[Handler] = getattr(function, MARK, [])
        function.__dict__[MARK] = [*known, *notes]
        return function

    return register


def _policy() -> Any:
    """How mail is parsed. A server without handlers does without these 0.6 MB; the first `rcpt` imports them."""
    from email.policy import default

    return default
