"""The `trace` command of the control socket: what happened to a message, and to all that it came of or that came of it.

Arguments: "what" (a queue id, a Message-ID or an address) or "start" and "end" (Unix seconds); "transcripts": true.
The answer: {"trees": [...], "more": whether there are others, "kept": seconds that the history is kept}. A tree is a
`core.history.PastMessage` as JSON, with messages for the ids in its "children", and its "transcripts".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from twisted_mta.core.history import PastMessage
from twisted_mta.interfaces import IQueueHistory
from twisted_mta.service.control import ControlError, Handler

#: Trees in one answer; messages in all of them; messages above one another.
MAX_TREES = 50
MAX_MESSAGES = 2000
MAX_DEPTH = 20
_MAX_TEXT = 1000


def trace_handlers(history: IQueueHistory, kept: Callable[[], float]) -> Mapping[str, Handler]:
    """The handler; `kept` tells for how many seconds the history is."""

    async def trace(arguments: Mapping[str, Any]) -> Any:
        found = await _found(history, arguments)
        roots = await _roots(history, found[:MAX_TREES])
        forest = _Forest(history, arguments.get("transcripts") is True)
        trees = [await forest.tree(root) for root in roots]
        return {"trees": trees, "more": len(found) > MAX_TREES or forest.cut, "kept": kept()}

    return {"trace": trace}


async def _found(history: IQueueHistory, arguments: Mapping[str, Any]) -> Sequence[str]:
    """The queue ids of what is asked for, one more than is wanted if there are so many. Raises ControlError."""
    what = arguments.get("what")
    if what is None:
        start, end = arguments.get("start"), arguments.get("end")
        if not isinstance(start, int | float) or not isinstance(end, int | float):
            raise ControlError("say which message: a queue id, a Message-ID, an address, or a time")
        return await history.arrivals(start, end, MAX_TREES + 1)
    if not isinstance(what, str) or not what.strip() or len(what) > _MAX_TEXT:
        raise ControlError("a queue id, a Message-ID or an address is needed")
    if await history.recall([what.strip()]):
        return [what.strip()]
    return await history.mentions(what, MAX_TREES + 1)


async def _roots(history: IQueueHistory, queue_ids: Sequence[str]) -> list[PastMessage]:
    """The messages that these came of in the end, as far back as is known, each once."""
    roots: dict[str, PastMessage] = {}
    for queue_id in queue_ids:
        message: PastMessage | None = None
        name = queue_id
        for _ in range(MAX_DEPTH):
            above = await history.recall([name])
            if not above:
                break
            message = above[0]
            if not message.parent:
                break
            name = message.parent
        if message is not None:
            roots.setdefault(message.id, message)
    return list(roots.values())


class _Forest:
    """Trees, with so many messages in all; `cut` tells that some were left out."""

    def __init__(self, history: IQueueHistory, transcripts: bool) -> None:
        self._history = history
        self._transcripts = transcripts
        self._left = MAX_MESSAGES
        self.cut = False

    async def tree(self, message: PastMessage, depth: int = 0) -> dict[str, Any]:
        """A message as JSON, and what came of it."""
        self._left -= 1
        wanted = message.children[: max(self._left, 0)] if depth < MAX_DEPTH else ()
        self.cut |= len(wanted) < len(message.children)
        children = await self._history.recall(wanted)
        told = await self._history.transcripts(message.id) if self._transcripts else ()
        return attrs.asdict(message) | {
            "children": [await self.tree(child, depth + 1) for child in children],
            "transcripts": [attrs.asdict(one) for one in told],
        }
