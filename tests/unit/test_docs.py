"""The documentation: its links lead somewhere, its commands exist, and its configuration examples load."""

from __future__ import annotations

import argparse
import re
import shlex
import tempfile
import tomllib
import unittest
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from twisted_mta.admin.main import _parser
from twisted_mta.admin.sendmail import HELP as SENDMAIL_HELP
from twisted_mta.config import schema
from twisted_mta.config.loader import load_with_warnings
from twisted_mta.config.tables import KEYS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "NEWS.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.M)
_CODE = re.compile(r"`([^`\n]+)`")
#: Directories of ours: a path that begins with one must be there.
_TOP = "twisted_mta|tests|etc/systemd|docs|benchmarks|core|net|store|config|service|delivery|policy|admin|testing"
#: What an example leaves out, as it is put before or behind it.
_ABOVE = {
    "hostname": 'hostname = "mail.example.org"\n',
    "domains": 'domains = ["example.org"]\n',
    "postmaster": 'postmaster = "alice"\n',
}
_BELOW = {
    "listen": '[[listen]]\nrole = "mx"\nendpoint = "tcp:25"\n',
    "tls": '[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n',
}
_TABLES = {
    "accounts": schema.Accounts,
    "domain": schema.Domain,
    "list": schema.MailingList,
    "listen": schema.Listen,
    "tls": schema.Tls,
    "relay": schema.Relay,
    "queue": schema.Queue,
    "limits": schema.Limits,
    "checks": schema.Checks,
    "delivery": schema.Delivery,
    "handlers": schema.Handlers,
    "forward": schema.Forward,
    "rules": schema.UserRules,
    "dns": schema.Dns,
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *kinds: str) -> Iterator[str]:
    """The code blocks of these kinds ("" for those without one)."""
    for kind, text in _FENCE.findall(page.read_text("utf-8")):
        if kind in kinds:
            yield text


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings have on the usual hosts."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(prose(page))
    }


def mta_commands(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words behind `mta` of each command."""
    for line in lines:
        for part in re.split(r" \| |&&|\|\||;", line):
            words = re.match(r"\s*(?:\w+=\S+\s+|\S*/)*mta\s+(.+)", part)
            if words:
                yield shlex.split(words[1].split(" #")[0])


def parse(words: Sequence[str]) -> None:
    """Raises SystemExit for what the mta command would not take."""
    if "sendmail" in words:  # its flags are not argparse's
        place = words.index("sendmail")
        for flag in (word for word in words[place + 1 :] if word.startswith("-")):
            if f"  {flag}" not in SENDMAIL_HELP:
                raise SystemExit(2)
        words = words[: place + 1]
    _parser().parse_args(words)


def subcommands(parser: argparse.ArgumentParser) -> set[str]:
    """All there are: "status", "queue list", ..."""
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= {f"{name} {deeper}" for deeper in subcommands(below)} or {name}
    return found


class LinkTests(unittest.TestCase):
    """Relative links."""

    def test_links_resolve(self) -> None:
        problems = []
        for page in PAGES:
            for target in _LINK.findall(prose(page)):
                if re.match(r"[a-z]+:", target):
                    continue
                path, _, fragment = target.partition("#")
                there = (page.parent / path).resolve() if path else page
                if not there.exists():
                    problems.append(f"{name_of(page)}: {target}: there is no such file")
                elif fragment and fragment not in anchors(there):
                    problems.append(f"{name_of(page)}: {target}: there is no such heading")
        self.assertEqual(problems, [], "\n".join(problems))

    def test_every_page_can_be_reached_from_the_readme(self) -> None:
        linked = {target.partition("#")[0] for target in _LINK.findall(prose(ROOT / "README.md"))}
        self.assertEqual({name_of(page) for page in PAGES[1:]} - linked, set())

    def test_files_named_in_the_text_exist(self) -> None:
        problems = [
            f"{name_of(page)}: {code}"
            for page in PAGES
            for code in _CODE.findall(prose(page))
            if re.fullmatch(
                r"(?:twisted_mta|tests|etc|docs|benchmarks|core|net|store|config|service|delivery|policy|admin|testing)/[\w./-]*",
                code,
            )
            and not (ROOT / code).exists()
            and not (ROOT / "twisted_mta" / code).exists()
        ]
        self.assertEqual(problems, [], "\n".join(problems))


class CommandTests(unittest.TestCase):
    """`mta ...` in code blocks and in the text."""

    def test_examples_can_be_given(self) -> None:
        problems = []
        count = 0
        for page in PAGES:
            for block in blocks(page, ""):
                for words in mta_commands(block.replace("\\\n", " ").splitlines()):
                    count += 1
                    try:
                        parse(words)
                    except SystemExit:
                        problems.append(f"{name_of(page)}: mta {' '.join(words)}")
        self.assertEqual(problems, [], "\n".join(problems))
        self.assertGreater(count, 30)

    def test_commands_named_in_the_text_exist(self) -> None:
        known = subcommands(_parser())
        known |= {name.partition(" ")[0] for name in known}
        problems = [
            f"{name_of(page)}: mta {' '.join(words)}"
            for page in PAGES
            for words in mta_commands(_CODE.findall(prose(page)))
            if not words[0].startswith("-") and not {words[0], " ".join(words[:2])} & known
        ]
        self.assertEqual(problems, [], "\n".join(problems))

    def test_every_command_is_documented(self) -> None:
        text = (ROOT / "docs" / "operations.md").read_text("utf-8")
        self.assertEqual({each for each in subcommands(_parser()) if f"mta {each}" not in text}, set())

    def test_a_wrong_command_is_found(self) -> None:
        for words in (["frobnicate"], ["queue", "empty"], ["status", "--xml"], ["sendmail", "-Y"]):
            with self.subTest(words), self.assertRaises(SystemExit):
                parse(words)


class ConfigurationTests(unittest.TestCase):
    """TOML in code blocks, and keys in the text."""

    def test_examples_load(self) -> None:
        count = 0
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "mta.toml")
            for page in PAGES:
                for block in blocks(page, "toml"):
                    count += 1
                    with self.subTest(page=name_of(page), block=block):
                        has = tomllib.loads(block)
                        above = "".join(line for key, line in _ABOVE.items() if key not in has)
                        below = "".join(table for key, table in _BELOW.items() if key not in has)
                        path.write_text(above + block + below, "utf-8")
                        _, warnings = load_with_warnings(path, check_files=False)
                        self.assertEqual([str(warning) for warning in warnings], [])
        self.assertGreater(count, 10)

    def test_keys_in_the_text_exist(self) -> None:
        problems = []
        for page in PAGES:
            for code in _CODE.findall(prose(page)):
                match = re.fullmatch(r"\[+([a-z]+)\]+(?: ([a-z_0-9]+)(?: = .*)?)?", code)
                if match and not self.is_key(match[1], match[2] or ""):
                    problems.append(f"{name_of(page)}: {code}")
        self.assertEqual(problems, [], "\n".join(problems))

    def is_key(self, table: str, key: str) -> bool:
        if table == "virtual":  # its keys are addresses
            return not key
        found: Any = _TABLES.get(table)
        return found is not None and (
            not key or key in {KEYS.get(field.name, field.name) for field in attrs.fields(found)}
        )
