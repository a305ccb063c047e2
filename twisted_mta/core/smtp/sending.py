"""A mail transaction under way at the client: its commands, in groups where the peer allows, and what the replies mean."""

from __future__ import annotations

from collections import deque

from twisted_mta.core.framing import DotStuffer, LineEnds
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.client_events import ReadyForBody, SendText, State, TransactionDone, Wire
from twisted_mta.core.smtp.transaction import (
    Extensions,
    Transaction,
    mail_command,
    rcpt_command,
    rcpt_refusal,
    refuse_locally,
    refuse_recipient,
    unpromised,
)
from twisted_mta.core.smtp.whole import MAX_WHOLE, Whole


def can_chunk(transaction: Transaction, extensions: Extensions) -> bool:
    """Whether the message goes by BDAT (RFC 3030). Without PIPELINING each chunk would wait for the answer to the one before."""
    return transaction.chunking and "CHUNKING" in extensions and "PIPELINING" in extensions


class Sending:
    """One transaction. The session gives it the replies by their states; it is over when `result` is there.

    The message goes in one of three ways: by DATA; in chunks, once a recipient was accepted; or as one chunk behind the
    commands, in the same write. Where the caller has it `whole`, it needs nothing more of him.
    """

    def __init__(
        self, transaction: Transaction, wire: Wire, extensions: Extensions, whole: Whole | None
    ) -> None:
        self._transaction = transaction
        self._wire = wire
        self._extensions = extensions
        self._whole = whole
        self._chunked = can_chunk(transaction, extensions) and not transaction.probe
        #: For a message that comes in pieces.
        self._text: DotStuffer | LineEnds | None = None
        #: Commands that have not been sent.
        self._script: deque[tuple[State, bytes]] = deque()
        #: The verdict on each recipient; None while there is none.
        self._replies: list[Reply | None] = [None] * len(transaction.recipients)
        #: The recipients that RCPT is said for, by index; how many of those were answered, and how many of them well.
        self._offered: list[int] = []
        self._answered = 0
        self._accepted: list[int] = []
        self._mail_refused = False
        #: The first refusal of a chunk.
        self._chunk_refused: Reply | None = None
        #: The next chunk: it must be told when it is the last.
        self._held = b""
        #: Whether all of the message is on its way, its end too.
        self.complete = False
        #: How it ended.
        self.result: TransactionDone | None = None
        #: Whether the peer may hold a transaction that failed: RSET before the next. None: it has heard nothing of this one.
        self.dirty: bool | None = None

    def begin(self, *, dirty: bool) -> None:
        """Send the first commands; `dirty`: the peer may hold another transaction."""
        transaction, extensions = self._transaction, self._extensions
        refusal = refuse_locally(transaction, extensions)
        urge = unpromised(transaction, extensions)
        rcpts: list[tuple[State, bytes]] = []
        for index, recipient in enumerate(transaction.recipients):
            refused = refusal or refuse_recipient(recipient, extensions)
            if refused is None:
                self._offered.append(index)
                rcpts.append((State.RCPT, rcpt_command(recipient, extensions, urge=urge)))
            else:
                self._replies[index] = refused
        if not rcpts:
            self._finish(None)
            return
        if dirty:
            self._script.append((State.RSET, b"RSET\r\n"))
        self._script.append((State.MAIL, mail_command(transaction, extensions)))
        self._script.extend(rcpts)
        if not self._chunked and not self._transaction.probe:
            self._script.append((State.DATA, b"DATA\r\n"))
        self.dirty = True
        self._advance()
        if self._chunked and self._whole is not None and self._transaction.size <= MAX_WHOLE:
            self._send_whole(self._whole)  # PIPELINING is there: all commands have left

    @property
    def may_be_followed(self) -> bool:
        """Whether the commands of the next transaction may be sent before this one is answered.

        RFC 2920 §3.1: MAIL may stand behind the end of a message. Whatever becomes of that, its end clears the peer's
        buffers (RFC 5321 §4.1.1.4). BDAT that fails does not (RFC 3030 §2).
        """
        return self.complete and not self._chunked and "PIPELINING" in self._extensions

    # --- the message ---------------------------------------------------------------------------

    @property
    def wants_body(self) -> bool:
        """Whether `body` and `end_body` have an effect."""
        return self._wire.rest is State.BODY and self._chunk_refused is None and self.result is None

    def body(self, data: bytes) -> None:
        """Octets of the message, CRLF line ends, split anywhere."""
        assert self._text is not None  # we have asked for it
        text = self._text.feed(data)
        if not text:
            return
        if not self._chunked:
            self._wire.out.append(SendText(text))
            return
        if self._held:
            self._wire.say_text(State.CHUNK, _bdat(self._held), self._held)
        self._held = text

    def end_body(self) -> None:
        """The message is complete."""
        assert self._text is not None  # as above
        self._wire.rest = State.IDLE
        rest = self._text.finish()
        if self._chunked:
            rest = self._held + rest
            self._end(_bdat(rest, last=True), rest)
        else:
            self._end(b"", rest)

    def _send_whole(self, whole: Whole) -> None:
        if self._chunked:
            self._end(_bdat(whole.text, last=True), whole.text)
        else:
            self._end(b"", whole.stuffed)

    def _end(self, command: bytes, text: bytes) -> None:
        """Send the last of the message."""
        self.complete = True
        self._wire.say_text(State.FINAL, command, text)

    # --- replies -------------------------------------------------------------------------------

    def was_reset(self, _: Reply) -> None:
        """RSET."""
        self._advance()

    def mail_answered(self, reply: Reply) -> None:
        """MAIL."""
        if not reply.positive:
            for index in self._offered:
                self._replies[index] = reply
            self._mail_refused = True
            if self._script:  # in lock-step: nothing more was said
                self._script.clear()
                self._finish(None)
        self._advance()

    def rcpt_answered(self, reply: Reply) -> None:
        """RCPT, for each in turn."""
        index = self._offered[self._answered]
        self._answered += 1
        if self._mail_refused:
            pass  # the reply to MAIL stands for all
        elif reply.positive and not self._transaction.probe:
            self._accepted.append(index)
        else:
            self._replies[index] = rcpt_refusal(reply)
        if self._answered == len(self._offered) and not self._wire.pending:
            # What is left is the message, of use to those that were accepted.
            if not self._accepted:
                self._script.clear()
                self._finish(None)
            elif self._chunked:
                self._text_is_wanted()
        self._advance()

    def data_accepted(self, _: Reply) -> None:
        """DATA: 354."""
        if self._accepted:
            self._text_is_wanted()
        else:  # RFC 2920 §3.1: everything was refused, and yet it waits for a message
            self._wire.say((State.DISCARD, b".\r\n"))

    def data_refused(self, reply: Reply) -> None:
        """DATA."""
        self._finish(reply)

    def discarded(self, _: Reply) -> None:
        """The end of the message that had no recipient."""
        self._finish(None)

    def chunk_answered(self, reply: Reply) -> None:
        """BDAT, of a chunk that is not the last."""
        if not reply.positive and self._chunk_refused is None:
            self._chunk_refused = reply  # RFC 3030 §2: nothing more, and RSET before the next
        if self._chunk_refused is not None and not self._wire.pending:
            self._wire.rest = State.IDLE
            self._finish(self._chunk_refused)

    def message_answered(self, reply: Reply) -> None:
        """The message."""
        if reply.positive:
            self.dirty = False  # RFC 5321 §4.1.1.4, RFC 3030 §2: the buffers are cleared
        self._finish(self._chunk_refused or reply)

    # --- the end -------------------------------------------------------------------------------

    def refused_amid(self, reply: Reply) -> None:
        """A reply before the end of the message: it stands for those who were to have it."""
        for index in self._accepted:
            self._replies[index] = reply

    def broken_off(self, reply: Reply, *, theirs: bool) -> None:
        """The session ends, by a 421 of the peer (`theirs`) or for another reason, with `reply` for all that is open."""
        open_ = frozenset(index for index, known in enumerate(self._replies) if known is None)
        # RFC 5321 §4.5.3.2.6, RFC 1047: after its end was sent there is no telling whether the peer has the message.
        doubt = self.complete and not theirs
        self.result = TransactionDone(
            tuple(known or reply for known in self._replies),
            None,
            undecided=frozenset() if doubt else open_,
            doubtful=open_ if doubt else frozenset(),
        )

    def _finish(self, data: Reply | None) -> None:
        """`data` is the verdict on recipients that were accepted."""
        if data is not None:
            for index in self._accepted:
                self._replies[index] = data
        replies = tuple([reply for reply in self._replies if reply is not None])
        assert len(replies) == len(self._replies)  # accepted recipients and a verdict come together
        self.result = TransactionDone(
            replies, data if self._accepted else None, sender_refused=self._mail_refused
        )

    # --- helpers -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Send the next command, or with PIPELINING all of them in one group (RFC 2920 §3.1)."""
        if not self._script:
            return
        if "PIPELINING" in self._extensions:
            self._wire.say(*self._script)
            self._script.clear()
        else:  # in lock-step everything said so far is answered
            self._wire.say(self._script.popleft())

    def _text_is_wanted(self) -> None:
        """Send the message, or ask the caller for it."""
        if self._whole is not None:
            self._send_whole(self._whole)
        else:
            self._text = LineEnds() if self._chunked else DotStuffer()
            self._wire.rest = State.BODY
            self._wire.out.append(ReadyForBody())


def _bdat(text: bytes, *, last: bool = False) -> bytes:
    """RFC 3030 §2."""
    return b"BDAT %d%b\r\n" % (len(text), b" LAST" * last)
