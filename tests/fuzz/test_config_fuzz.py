"""Whatever a configuration file says, the answer is a Config or ConfigErrors."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.config import tables
from twisted_mta.config.checks import check
from twisted_mta.config.errors import ConfigErrors
from twisted_mta.config.fields import Reading
from twisted_mta.config.lines import KeyLines
from twisted_mta.config.loader import load
from twisted_mta.config.schema import Config

#: Words that get past the first check of some key or other.
WORDS = [
    "", "a", "alice", "alice@example.test", "example.test", "mail.example.test", "mx", "imaps", "tcp:25", "tcp:25:interface=::1",
    "tcp:x=", "tcp6:port=0", "unix:/x", "systemd:domain=INET:index=0", "\\:", ":", "5m", "5m*4, 1h", "50M", "10.0.0.0/8", "::/0",
    "host:25", "[::1]:25", "[::1", "[]:1", "{local}", "/m/{domain}/{user}", "{", "+", "json", "a\nb", "\0", "é", "1" * 300, ".x",
]  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(WORDS)
    | st.text(max_size=8)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.dates()
    | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def table(readers: Any) -> st.SearchStrategy[Any]:
    """A table with some of its keys, or something else."""
    return (
        st.dictionaries(st.sampled_from([tables.KEYS.get(key, key) for key in readers]), VALUES, max_size=5)
        | VALUES
    )


ROUTE = table(tables.ROUTE)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("hostname", "domains", "data", "postmaster", "user", "greeting", "aliases", "other"), VALUES
        ),
        **{key: table(getattr(tables, key.upper())) for key in ("tls", "accounts", "queue", "limits", "dns")},
        "listen": st.lists(table(tables.LISTEN), max_size=3) | VALUES,
        "list": st.lists(table(tables.LIST), max_size=3) | VALUES,
        "relay": st.fixed_dictionaries(
            {},
            optional={
                "networks": VALUES,
                "smarthost": ROUTE,
                "routes": st.dictionaries(st.sampled_from(WORDS), ROUTE, max_size=3) | VALUES,
            },
        ),
    },
)


class ConfigFuzzTests(unittest.TestCase):
    """Values of every wrong kind, and octets that are no TOML."""

    @given(DOCUMENTS)
    @settings(max_examples=150)
    def test_any_document(self, document: dict[str, Any]) -> None:
        reading = Reading("mta.toml", Path("/etc/mta"), KeyLines(""))
        config = tables.config(document, reading, Path("/etc/mta/mta.toml"))
        self.assertIsInstance(config, Config)
        check(config, reading)
        for problem in reading.problems:
            self.assertEqual(len(str(problem).splitlines()), 1, problem)
            self.assertLess(len(problem.message), 600)

    @given(st.binary(max_size=60) | st.text("[]{}=.\"'\n#ab1, ", max_size=60).map(str.encode))
    @settings(max_examples=100)
    def test_any_octets(self, octets: bytes) -> None:
        with tempfile.NamedTemporaryFile(suffix=".toml") as file:
            file.write(octets)
            file.flush()
            self.assertRaises(ConfigErrors, load, file.name)

    @given(st.text("[]{}=.\"'\n#ab1, ", max_size=80))
    def test_any_text_has_lines(self, text: str) -> None:
        lines = KeyLines(text)
        self.assertLessEqual(lines.of("a.b[1].c"), text.count("\n") + 1)
