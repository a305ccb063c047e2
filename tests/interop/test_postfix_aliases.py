"""The same aliases files read by Postfix and by us: what stands in them, and where mail goes.

`aliases/*.aliases` are the files; @DIR@ stands for the directory, @OUT@ for the one of files and commands. Where we differ on
purpose stands in DIFFERENT, and in docs/addresses.md why.
"""

from __future__ import annotations

import re
import shutil
import smtplib
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.peers import PATIENCE, HeldPort, Postfix, accepts, wait_for
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias, parse_aliases
from twisted_mta.core.expand import expand
from twisted_mta.core.queue import Transport
from twisted_mta.testing.world import BASE, World

CORPUS = Path(__file__).parent / "aliases"
PAGE = Path(__file__).parents[2] / "docs" / "addresses.md"
USERS = ("alice", "bob", "carol", "dave", "erin", "s3")
SENDER = "sender@example.com"
_RECIPIENT = re.compile(r"<(.*)>")

#: Where a copy goes ("bob@example.test", "file f1"), and from whom.
Copies = set[tuple[str, str]]

#: What docs/addresses.md calls a difference -> the aliases whose mail goes elsewhere for it.
DIFFERENT: Mapping[str, set[str]] = {
    "Comments behind an entry": {"c8", "c11"},
    "Targets without commas": {"c9", "d3"},
    "Names without targets": {"c10"},
    "Names and comments beside an address": {"q4", "q5"},
    "A backslash": {"q11"},
    "Full addresses as names": {"full@example.test"},
    "Relative paths": {"i8"},
    "Words with colons": {"d5", "d6"},
    "An alias with an owner within another": {"o2"},
}
#: And what already looks different in the database that postalias makes.
READ_DIFFERENTLY = {"erin", "q11", "full@example.test"}


@pytest.fixture(scope="module")
def corpus() -> Iterator[Path]:
    """The files, in a place that Postfix's local(8) may write below."""
    directory = Path(tempfile.mkdtemp(prefix="mta-aliases-"))
    directory.chmod(0o755)
    (directory / "out").mkdir()
    (directory / "out").chmod(0o777)
    for path in CORPUS.iterdir():
        text = path.read_text().replace("@DIR@", str(directory)).replace("@OUT@", str(directory / "out"))
        (directory / path.name).write_text(text)
    yield directory
    shutil.rmtree(directory)


def names(corpus: Path) -> list[str]:
    """All that any of the files might have as an alias."""
    found = []
    for path in sorted(corpus.glob("*.aliases")):
        for line in path.read_text().splitlines():
            match = re.match(r'("(?:[^"\\]|\\.)*"|[^\s:#"]+)\s*:', line)
            if match:
                found.append(match[1])
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def told_by_postfix(corpus: Path) -> dict[str, Copies]:
    """Where Postfix delivers a message to each name; all users exist."""
    held = HeldPort()
    port = held.number
    dump = corpus / "dump"
    dump.mkdir()
    dump.chmod(0o777)
    sink = subprocess.Popen(["smtp-sink", "-u", "nobody", "-d", f"{dump}/%M.", f"127.0.0.1:{port}", "100"])
    files = sorted(corpus.glob("*.aliases"))
    postfix = Postfix(domains="", relayhost=f"[127.0.0.1]:{port}")
    try:
        for path in files:
            postfix.command("postalias", f"hash:{path}")
        postfix.command(
            "postconf",
            "-e",
            "mydestination = example.test",
            "myorigin = example.test",
            "virtual_mailbox_domains =",
            f"alias_maps = {' '.join(f'hash:{path}' for path in files)}",
            f"mailbox_transport = smtp:[127.0.0.1]:{port}",
            "local_recipient_maps =",
            "recipient_delimiter = +",
            # What is put off, because the machine was busy, comes in this life.
            "queue_run_delay = 1s",
        )
        wait_for(lambda: accepts(port), "smtp-sink")
        with postfix:
            for number, name in enumerate(names(corpus)):
                address = name if "@" in name else f"{name}@example.test"
                with smtplib.SMTP("127.0.0.1", postfix.port, timeout=PATIENCE) as client:
                    client.sendmail(SENDER, [address], f"Subject: probe {number}\r\n\r\nx\r\n")
            wait_for(lambda: not postfix.queued(), "Postfix to deliver", PATIENCE)
    finally:
        sink.terminate()
        sink.wait()
        held.close()
    return {name: _copies(corpus, number) for number, name in enumerate(names(corpus))}


def _copies(corpus: Path, number: int) -> Copies:
    wanted = f"Subject: probe {number}"
    found: Copies = set()
    for path in (corpus / "dump").iterdir():
        head = path.read_text().partition("\n\n")[0].splitlines()
        if wanted in head:
            said = {line.partition(": ")[0]: line.partition(": ")[2] for line in head}
            sender, recipient = (
                _RECIPIENT.search(said[key].partition(" ORCPT")[0]) for key in ("X-Mail-Args", "X-Rcpt-Args")
            )
            assert sender is not None
            assert recipient is not None
            found.add((recipient[1].lower(), sender[1]))
    for path in (corpus / "out").rglob("*"):
        if path.is_file():
            for message in path.read_text().split("\nReturn-Path: "):
                if wanted in message.partition("\n\n")[0].splitlines():
                    top = path.relative_to(corpus / "out").parts[0]
                    sender = _RECIPIENT.search(message.splitlines()[0]) or _RECIPIENT.search(message)
                    found.add((f"out {top}", SENDER if sender is None else sender[1]))
    return found


@pytest.fixture(scope="module")
def told_by_us(corpus: Path) -> dict[str, Copies]:
    """Where our plans lead."""
    files = ", ".join(f'"{path}"' for path in sorted(corpus.glob("*.aliases")))
    base = BASE.replace('aliases = ["aliases"]', f"aliases = [{files}]")
    world = World(corpus / "world", base=base)
    users = corpus / "world" / "users"
    users.write_text("".join(f"{name}@example.test:!::::::\n" for name in USERS))
    world.restart()
    directory = world.parts.accounts.directory.current
    found: dict[str, Copies] = defaultdict(set)
    for name in names(corpus):
        address = Address.parse(name if "@" in name else f"{name}@example.test")
        for place in expand(address, directory).recipients:
            if place.transport is Transport.DISCARD:
                continue
            where = (
                place.address.folded
                if place.transport in (Transport.LOCAL, Transport.SMTP)
                else _outlet(place.target)
            )
            sender = str(place.sender) if place.sender is not None else SENDER
            found[name].add((where, sender))
    world.close()
    return found


def _outlet(target: str) -> str:
    match = re.search(r"/out/([^/]*)/?$", target)
    return f"out {match[1]}" if match else target


def test_what_stands_in_the_files(corpus: Path) -> None:
    """postalias reads the same names, with the same targets behind them."""
    differ = {}
    for path in sorted(corpus.glob("*.aliases")):
        subprocess.run(["postalias", f"hash:{path}"], check=True, capture_output=True)
        dumped = subprocess.run(
            ["postalias", "-s", f"hash:{path}"], check=True, capture_output=True, text=True
        ).stdout
        pairs = dict(line.split(":\t", 1) for line in dumped.splitlines())
        theirs = {
            name.lower(): _targets(f'"{_escaped(name)}": {value}\n')
            for name, value in pairs.items()
            if not name.startswith(("@", "YP_"))
        }
        ours: dict[str, list[str]] = {}
        for entry in parse_aliases(path.read_text(), str(path)).entries:
            name = str(entry.name) if entry.name.domain else entry.name.local
            ours.setdefault(name.lower(), _shown(entry))  # of two for one name the first counts
        for name in theirs.keys() | ours.keys():
            if theirs.get(name, []) != ours.get(name, []):
                differ[name] = theirs.get(name), ours.get(name)
    for name, each in sorted(differ.items()):
        print(name, each)
    assert set(differ) == READ_DIFFERENTLY


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _targets(text: str) -> list[str]:
    return [shown for entry in parse_aliases(text, "x").entries for shown in _shown(entry)]


def _shown(entry: Alias) -> list[str]:
    return [str(attrs.evolve(target, source="")) for target in entry.targets]


def test_where_mail_goes(
    corpus: Path, told_by_postfix: dict[str, Copies], told_by_us: dict[str, Copies]
) -> None:
    differ = {name for name in names(corpus) if told_by_postfix[name] != told_by_us.get(name, set())}
    for name in sorted(differ):
        print(
            f"{name}\n  Postfix {sorted(told_by_postfix[name])}\n  we      {sorted(told_by_us.get(name, set()))}"
        )
    assert differ == set().union(*DIFFERENT.values())


def test_the_differences_are_documented() -> None:
    section = PAGE.read_text("utf-8").partition("## Compared with Postfix")[2].partition("\n## ")[0]
    assert set(re.findall(r"^- \*\*(.*?)\.\*\*", section, re.M)) == set(DIFFERENT)
