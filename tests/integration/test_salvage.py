"""`mta queue salvage`: what can be read of a damaged database is delivered."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from twisted_mta.admin.main import main
from twisted_mta.service.start import StartError
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

_RELAY = '\n[relay]\nnetworks = ["127.0.0.0/8"]\n'
_COUNT = 80


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Crashed, with a queue of many messages; the last one has a body file."""
    world = World(tmp_path / "world", _RELAY)
    world.host("example.org", "192.0.2.1")
    world.network.servers.clear()
    for number in range(_COUNT):
        size = 300 if number < _COUNT - 1 else 300_000
        message = f"Message-ID: <{number}@example.test>\r\n\r\n{'x' * 70}\r\n".encode() * (size // 100)
        assert world.send("alice@example.test", ["carol@example.org"], message).code == 250
    world.crash()
    return world


def damage(world: World, name: str, part: float = 0.0) -> None:
    """Overwrite a page of a table or index: its root, or one behind that part of the file's pages that belong to it."""
    path = world.config.queue_directory / "queue.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        if part:
            query = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path"
            try:
                pages = [number for (number,) in connection.execute(query, (name,))]
            except sqlite3.OperationalError:
                pytest.skip("this SQLite does not tell where tables lie")
            page = pages[int(len(pages) * part)]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def deliver(world: World) -> SmtpPeer:
    """Who gets it."""
    peer = world.host("example.org", "192.0.2.1")
    world.advance(6 * 3600, step=600)
    return peer


def salvage(world: World) -> int:
    return main(["--config", str(world.directory / "mta.toml"), "queue", "salvage"])


def test_an_index(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    damage(world, "recipient_due")
    with pytest.raises(
        StartError, match=r"the queue's database is damaged: .*malformed.* docs/operations\.md"
    ):
        world.start()
    assert salvage(world) == 0
    told = capsys.readouterr().out
    assert f"{_COUNT} of message, {_COUNT} of recipient" in told
    assert "Nothing was missing." in told
    world.start()
    peer = deliver(world)
    assert len(peer.messages) == _COUNT
    assert len({message.data for message in peer.messages}) == _COUNT
    world.close()


def test_a_page_in_the_middle(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What lies on other pages is got back, from both ends."""
    damage(world, "message", 0.5)
    assert salvage(world) == 0
    assert "Not all could be read of: message." in capsys.readouterr().out
    world.start()
    peer = deliver(world)
    assert _COUNT * 0.8 < len(peer.messages) < _COUNT
    assert len(list(world.config.queue_directory.glob("damaged-*/queue.sqlite"))) == 1
    world.close()


def test_nothing_to_be_read(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.config.queue_directory / "queue.sqlite"
    path.write_bytes(b"no database" * 1000)
    assert salvage(world) == 74
    assert "nothing was changed" in capsys.readouterr().err
    assert path.read_bytes() == b"no database" * 1000
