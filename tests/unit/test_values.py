"""Value classes: what is left out of them, and what they have all the same."""

from __future__ import annotations

import copy
import linecache
import pickle

import attrs
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.values import value


@value
class Point:
    x: int
    y: int = 0


@value(kw_only=True, order=True)
class Login:
    name: str
    password: str = attrs.field(default="", repr=False)
    looks: int = attrs.field(default=0, eq=False)


@value
class Quiet:
    secret: str

    def __repr__(self) -> str:
        return "Quiet(...)"


@value
class Shown(Quiet):
    more: int


class ValueTests(SynchronousTestCase):
    """What attrs.frozen would make, but for the check at run time that nobody changes it."""

    def test_equal(self) -> None:
        self.assertEqual(Point(1, 2), Point(1, 2))
        self.assertNotEqual(Point(1, 2), Point(1, 3))
        self.assertNotEqual(Point(1), Login(name="a"))

    def test_keys_of_a_dict(self) -> None:
        self.assertEqual({Point(1, 2): "here"}[Point(1, 2)], "here")
        self.assertEqual(hash(Login(name="a", looks=1)), hash(Login(name="a", looks=2)))

    def test_options_of_attrs(self) -> None:
        self.assertLess(Login(name="a"), Login(name="b"))
        self.assertEqual(Login(name="a", looks=1), Login(name="a", looks=2))
        self.assertRaises(TypeError, Login, "a")

    def test_no_more_attributes(self) -> None:
        self.assertFalse(hasattr(Point(1), "__dict__"))

    def test_is_shown_as_by_attrs(self) -> None:
        self.assertEqual(repr(Point(1, 2)), "Point(x=1, y=2)")

    def test_secrets_are_not_shown(self) -> None:
        self.assertEqual(repr(Login(name="a", password="b")), "Login(name='a', looks=0)")

    def test_its_own_repr_stays(self) -> None:
        self.assertEqual(repr(Quiet("a")), "Quiet(...)")
        self.assertEqual(repr(Shown("a", 2)), "Shown(secret='a', more=2)")  # as with attrs: not inherited

    def test_copies_and_changed_copies(self) -> None:
        self.assertEqual(copy.copy(Point(1, 2)), Point(1, 2))
        self.assertEqual(pickle.loads(pickle.dumps(Point(1, 2))), Point(1, 2))
        self.assertEqual(attrs.evolve(Point(1, 2), y=3), Point(1, 3))

    def test_leaves_no_source_behind(self) -> None:
        value(type("Another", (), {"__annotations__": {"a": int}}))
        self.assertEqual([name for name in linecache.cache if name.startswith("<attrs")], [])
