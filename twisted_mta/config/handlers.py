"""Finds the handlers of the modules that [handlers] names, and says what is wrong with them."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from twisted_mta.config.schema import Config, Handlers
from twisted_mta.core.address import Address
from twisted_mta.core.expand import ROLES
from twisted_mta.core.values import value
from twisted_mta.handlers import MARK, Handler

#: Where code is that is not to blame: Python's for imports, and ours.
_NOT_THEIRS = (str(Path(importlib.__file__).parent), "<frozen importlib", str(Path(__file__).parent.parent))


@value
class Match:
    """A handler for an address, and what its names stand for."""

    handler: Handler
    captures: Mapping[str, str]


@value
class HandlerTable:
    """All handlers, those whose pattern says most in front: a pattern without names before all others."""

    handlers: tuple[Handler, ...] = ()

    @classmethod
    def of(cls, handlers: Iterable[Handler]) -> HandlerTable:
        """Sort them; those that say as much stay in their order."""
        return cls(
            tuple(sorted(handlers, key=lambda one: (one.pattern.literal, one.pattern.weight), reverse=True))
        )

    def find(self, address: Address) -> Match | None:
        """The first that takes an address."""
        role = address.local.casefold() in ROLES
        for handler in self.handlers:
            if role and not handler.pattern.literal:
                continue  # RFC 5321 §4.5.1: a person is to be there, unless somebody said otherwise in so many words
            captures = handler.pattern.match(address)
            if captures is not None:
                return Match(handler, captures)
        return None


@value
class Trouble:
    """What is wrong with the module of that number (from 1)."""

    number: int
    text: str


def find_handlers(settings: Handlers) -> tuple[HandlerTable, Sequence[Trouble]]:
    """Import the modules, those that were not yet, and gather what they register. Never raises for what they do.

    What is imported stays so until the process ends: a reload finds the functions that it has, and new modules.
    """
    for directory in map(str, settings.path):
        if directory not in sys.path:
            sys.path.append(directory)  # behind: no file there can take the place of another module
    importlib.invalidate_caches()
    found: list[Handler] = []
    troubles: list[Trouble] = []
    for number, name in enumerate(settings.modules, 1):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  whatever a module does when it is imported
            troubles.append(Trouble(number, f'"{name}" can\'t be imported: {_where(error)}'))
            continue
        registered = _registered(module)
        if not registered:
            troubles.append(Trouble(number, f'"{name}" has no function with @rcpt("address")'))
        for handler in registered:
            why = _unfit(handler) or _clash(handler, found)
            if why:
                troubles.append(Trouble(number, f"{handler.name}: {why}"))
            else:
                found.append(handler)
    return HandlerTable.of(found), troubles


def load_handlers(config: Config) -> tuple[HandlerTable, Sequence[Trouble]]:
    """Those of a configuration. As root nothing is imported if the server is to become another user: the files may be that
    user's, who would so become root."""
    if os.geteuid() == 0 and config.user:
        return HandlerTable(), ()
    return find_handlers(config.handlers)


def left_out(config: Config) -> Sequence[str]:
    """What an administrator should know who sees no handlers since he is root."""
    if os.geteuid() or not (config.user and config.handlers.modules):
        return ()
    return (
        f'root imports no handlers, as the server runs as "{config.user}": addresses that only they take look unknown here',
    )


def _registered(module: ModuleType) -> list[Handler]:
    """What the functions of a module are registered for, those imported from elsewhere included."""
    functions: dict[int, list[Handler]] = {}
    for found in vars(module).values():
        notes = getattr(found, "__dict__", {}).get(MARK) if callable(found) else None
        if notes:
            functions.setdefault(id(found), notes)
    return [handler for notes in functions.values() for handler in notes]


def _unfit(handler: Handler) -> str:
    """Why a function can't be called with what its pattern captures."""
    try:
        inspect.signature(handler.function).bind(None, **dict.fromkeys(handler.pattern.names, ""))
    except TypeError as error:
        wanted = ", ".join(("mail", *handler.pattern.names))
        return f'for "{handler.pattern.text}" it is called with ({wanted}): {error}'
    if handler.thread and inspect.iscoroutinefunction(handler.function):
        return "an async function can't run in a thread: leave out thread=True, or async"
    return ""


def _clash(handler: Handler, known: Iterable[Handler]) -> str:
    for other in known:
        if other.pattern.shape == handler.pattern.shape:
            return (
                f'"{handler.pattern.text}" takes the same addresses as "{other.pattern.text}" of {other.name}'
            )
    return ""


def _where(error: Exception) -> str:
    """What happened, and the last line of the application's code on the way there."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{place}"
