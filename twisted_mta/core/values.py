"""Value classes: what attrs.frozen makes to the type checker, and a plain class at run time.

A message on its way through the server is some fifty small values, Envelope and NewMessage among them, and attrs sets
the fields of a frozen class through object.__setattr__: that takes four times as long as to set those of a plain one.
mypy finds whoever changes a value all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrs import frozen as value
else:
    from functools import partial

    from attrs import define

    value = partial(define, unsafe_hash=True)

__all__ = ["value"]
