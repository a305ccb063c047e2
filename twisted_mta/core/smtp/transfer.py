"""The octets of messages between the commands: DATA (RFC 5321 §4.1.1.4) and BDAT (RFC 3030)."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from twisted_mta.core.effects import BodyChunk
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.body import Body
from twisted_mta.core.smtp.commands import CommandError, parse_chunk, syntax_error
from twisted_mta.core.smtp.data import ChunkReader, DataReader
from twisted_mta.core.smtp.parameters import too_big
from twisted_mta.core.smtp.settings import Role
from twisted_mta.core.smtp.states import ENVELOPE_FIRST, HELO_FIRST, State
from twisted_mta.core.smtp.talk import Talk

_GO_AHEAD = Reply(354, "", "Send the message; end it with <CR><LF>.<CR><LF>")
_FAULT = Reply(451, "4.3.0", "Something went wrong here; try again later")


class Transfer:
    """The messages of one session, one after the other."""

    __slots__ = ("_body", "_chunks", "_outside", "_talk", "open")

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._body: Body
        #: Where the chunks of BDAT end; None for a message after DATA.
        self._chunks: ChunkReader | None = None
        #: Whether BeginMessage was granted, and neither EndMessage nor DropMessage followed yet.
        self.open = False
        #: The state to return to when a chunk was refused.
        self._outside = State.READY

    def data(self, argument: str) -> None:
        """DATA. Raises CommandError."""
        talk = self._talk
        if argument:
            raise syntax_error("Syntax: DATA")
        if talk.envelope.body == "BINARYMIME":  # RFC 3030 §3
            raise CommandError(Reply(503, "5.5.1", "A BINARYMIME message needs BDAT"))

        def then(refusal: Reply | None) -> None:
            if refusal is not None:
                talk.reply(refusal)
                return
            self.open = True
            self._body = self._new_body(DataReader())
            talk.state = State.BODY
            talk.reply(_GO_AHEAD)

        talk.ask(q.BeginMessage(talk.envelope), then)

    def bdat(self, argument: str) -> None:
        """BDAT, in any state."""
        talk = self._talk
        try:
            size, last = parse_chunk(argument)
        except CommandError as error:
            # A message may follow, and nobody can tell where it ends: none of it may be taken for commands.
            talk.close(attrs.evolve(error.reply, code=421, enhanced="4.5.4"))
            return
        before, talk.state = talk.state, State.BODY
        if self._chunks is None:
            self._chunks = ChunkReader()
            self._body = self._new_body(self._chunks)
        self._chunks.begin(size, last)
        if before not in (State.RCPT, State.CHUNKS):
            # RFC 3030 §2: what can't be taken is read all the same before it is refused.
            self._body.refuse(HELO_FIRST if before is State.CONNECTED else ENVELOPE_FIRST)
            self._outside = before
            return
        self._outside = State.BROKEN
        if self._body.size + size > talk.settings.size_limit:
            self._body.refuse(too_big(talk.settings.size_limit))
        elif before is State.RCPT:
            talk.ask(q.BeginMessage(talk.envelope), self._first_chunk)

    def _first_chunk(self, refusal: Reply | None) -> None:
        self.open = refusal is None
        if refusal is not None:
            self._body.refuse(refusal)

    def _new_body(self, reader: DataReader | ChunkReader) -> Body:
        settings = self._talk.settings
        binary = self._talk.envelope.body == "BINARYMIME"
        return Body(reader, settings.size_limit, None if binary else settings.bare_newlines)

    @property
    def waits(self) -> bool:
        """In State.BODY: whether there is nothing to `read` yet."""
        return not self._talk.input.data and not self._body.done

    def read(self) -> None:
        """In State.BODY: take what is there of the message."""
        talk, body = self._talk, self._body
        piece, talk.input.data = body.feed(talk.input.data)
        if body.flooded:
            text = "Message is far over the size limit, closing the connection"
            talk.close(Reply(421, "4.3.4", text))
            return
        if body.done and (self._chunks is None or self._chunks.last):
            piece += body.end()
        if piece:
            talk.effects.append(BodyChunk(piece))
        if body.done:
            self._was_read(body)

    def _was_read(self, body: Body) -> None:
        """The octets announced, or the final dot, are here."""
        talk = self._talk
        if self._chunks is not None:
            if body.refusal is not None:
                self._chunk_refused(body.refusal)
                return
            if not self._chunks.last:
                talk.state = State.CHUNKS
                talk.reply(Reply(250, "2.0.0", f"{body.size} octets received so far"))
                return
        self.open = False
        talk.ask(q.EndMessage(body.refusal), self._message_done)

    def _chunk_refused(self, refusal: Reply) -> None:
        """RFC 3030 §2: the transaction has failed; further chunks are read and refused until RSET."""
        talk = self._talk
        assert self._chunks is not None  # it is BDAT that has chunks
        last = self._chunks.last

        def then() -> None:
            talk.state = self._outside
            self._chunks = None
            if last and self._lmtp and talk.state in (State.MAIL, State.BROKEN):
                # RFC 2033 §4.3: one for each recipient; none where none was taken, as a client that pipelines expects.
                for _ in talk.envelope.recipients:
                    talk.reply(refusal)
            elif talk.state is State.BROKEN:
                talk.reply(refusal)
            else:
                talk.error(refusal)

        self.drop(then)

    def _message_done(self, reply: Reply) -> None:
        # RFC 2033 §4.2: LMTP answers for each recipient. All of them are in one queue, so all fare alike.
        count = len(self._talk.envelope.recipients) if self._lmtp else 1
        self.reset()
        self._talk.idle = 0
        for _ in range(count):
            self._talk.reply(reply)

    @property
    def _lmtp(self) -> bool:
        return self._talk.settings.role is Role.LMTP

    def reset(self) -> None:
        """The transaction is over, and with it its message."""
        self._chunks = None
        self.open = False
        self._talk.over()

    def drop(self, then: Callable[[], None]) -> None:
        """Have a message that was begun forgotten, and go on."""
        if not self.open:
            then()
            return
        self.open = False
        self._talk.ask(q.DropMessage(), lambda _: then())

    def fault(self) -> Reply | None:
        """A question could not be answered: what to say; None to say nothing yet, as octets are still to come."""
        state = self._talk.state
        if state is State.BODY and not self._body.done:
            self._body.refuse(_FAULT)
            return None
        # Between chunks a message is open, but while it is being dropped: then it is gone, and its chunks with it.
        if state is State.BODY or (state is State.CHUNKS and not self.open):
            self.reset()
        return _FAULT
