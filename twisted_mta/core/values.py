"""Value classes: what attrs.frozen makes to the type checker, and a plain, lean class at run time.

A message on its way through the server is some fifty small values, Envelope and NewMessage among them, and attrs sets
the fields of a frozen class through object.__setattr__: that takes four times as long as to set those of a plain one.
mypy finds whoever changes a value all the same.

There are some three hundred such classes. What attrs would write for each of them besides, and nobody needs, is left
out, 6 kB of 15: a __repr__ of its own, methods for pickles, and the source of it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrs import frozen as value
else:
    import linecache
    from functools import partial

    from attrs import define, fields

    def value(cls=None, **options):
        """Make `cls` a value: @value, or @value(kw_only=True), or what else attrs.define takes."""
        if cls is None:
            return partial(value, **options)
        made = define(cls, unsafe_hash=True, repr=False, getstate_setstate=False, **options)
        if "__repr__" not in made.__dict__:
            made.__repr__ = _repr
        # attrs has put the source of the methods there, for debuggers.
        linecache.clearcache()
        return made

    def _repr(self):
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(type(self)) if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"


__all__ = ["value"]
