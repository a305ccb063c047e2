"""twisted_mta.service.interpreter."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

from twisted_mta.service.interpreter import interpreter


def told(name: str, own: tuple[int, int, int]) -> str:
    with (
        mock.patch("platform.python_implementation", return_value=name),
        mock.patch("platform.python_version", return_value="3.11.11"),
        mock.patch("sys.implementation", SimpleNamespace(name=name.lower(), version=own)),
    ):
        return interpreter()


class InterpreterTests:
    def test_cpython_has_the_version_of_the_language(self) -> None:
        assert told("CPython", (3, 11, 11)) == "CPython 3.11.11"

    def test_pypy_has_one_of_its_own(self) -> None:
        assert told("PyPy", (7, 3, 19)) == "PyPy 7.3.19 (Python 3.11.11)"
