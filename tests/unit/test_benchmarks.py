"""What the benchmarks decide before anything is measured."""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks.common import rounds_of, server_python
from benchmarks.plot import file_name
from twisted_mta.service.interpreter import interpreter


class PlotTests:
    def test_cpython_is_in_no_name(self) -> None:
        assert file_name("list post", "CPython 3.11.2") == "list-post.svg"

    def test_another_interpreter_replaces_no_plot_of_cpython(self) -> None:
        assert file_name("list post", "PyPy 7.3.19 (Python 3.11.11)") == "list-post-pypy.svg"


class RoundTests:
    def test_one_warms_up_at_least(self) -> None:
        assert [*rounds_of(Namespace(rounds=2, warm_up=0), 1000)] == [0, 1, 2]

    def test_all_messages_to_warm_up_are_sent(self) -> None:
        assert [*rounds_of(Namespace(rounds=1, warm_up=2001), 1000)] == [-2, -1, 0, 1]


class ServerPythonTests:
    def test_it_is_told_as_the_server_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MTA_PYTHON", raising=False)
        assert server_python() == interpreter()
