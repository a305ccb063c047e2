"""service.reload and service.accounts, on the simulated server: all of a new configuration, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.service.reload import Reloaded, reload
from twisted_mta.testing.world import World

MESSAGE = b"Subject: x\r\n\r\n"


class ReloadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()), aliases="sales: bob\n")
        self.addCleanup(self.world.close)
        self.file = self.world.directory / "mta.toml"

    def reload(self) -> Reloaded:
        world = self.world
        result: Any = self.successResultOf(
            Deferred.fromCoroutine(reload(world.listeners.serving, world.parts, world.listeners))
        )
        assert isinstance(result, Reloaded)
        return result

    def code(self, recipient: str, client: str = "192.0.2.9") -> int:
        return self.world.send("dave@example.org", [recipient], MESSAGE, client).code

    def test_nothing_changed(self) -> None:
        self.assertEqual(self.reload(), Reloaded())

    def test_a_network_may_relay_from_now_on(self) -> None:
        self.assertEqual(self.code("carol@example.org"), 550)
        self.file.write_text(self.file.read_text() + '\n[relay]\nnetworks = ["192.0.2.0/24"]\n')
        self.assertEqual(self.reload().changed, ("relay.networks",))
        self.assertEqual(self.code("carol@example.org"), 250)

    def test_lists_and_aliases_are_read(self) -> None:
        self.file.write_text(
            self.file.read_text()
            + '\n[[list]]\naddress = "team@example.test"\nowner = "bob@example.test"\nmembers = ["bob@example.test"]\n'
        )
        (self.world.directory / "aliases").write_text("support: bob\n")
        self.assertEqual(
            [self.code(f"{name}@example.test") for name in ("team", "support", "sales")], [550, 550, 250]
        )
        self.reload()
        self.assertEqual(
            [self.code(f"{name}@example.test") for name in ("team", "support", "sales")], [250, 250, 550]
        )

    def test_what_others_hold_is_changed_too(self) -> None:
        """The postmaster of bounces, the reserve of the disk, the memory for what comes in, the separator of details."""
        self.file.write_text(
            self.file.read_text()
            .replace("postmaster@example.test", "bob@example.test")
            .replace("[accounts]", '[accounts]\nseparator = "-"')
            + '\n[limits]\ndisk_reserve = "1000000000G"\nmemory = "5M"\n'
        )
        self.assertEqual(self.world.parts.store.body_memory.limit, 64 << 20)
        self.reload()
        self.assertEqual(self.world.parts.store.body_memory.limit, 5 << 20)
        self.assertEqual(self.code("bob@example.test"), 452)
        self.file.write_text(self.file.read_text().replace('"1000000000G"', "0"))
        self.reload()
        self.assertEqual(self.code("bob-work@example.test"), 250)
        self.assertEqual(len(self.world.mail("bob")), 1)

    def test_a_bad_file_changes_nothing(self) -> None:
        self.file.write_text(self.file.read_text() + '\n[relay]\nnetworks = ["192.0.2.0/24"]\nport = "x"\n')
        result = self.reload()
        self.assertTrue(result.failed)
        self.assertIn("relay.port", result.problems[0])
        self.assertIn("the last reload changed nothing: ", self.world.parts.warnings()[0])
        self.assertEqual(self.code("carol@example.org"), 550)

    def test_accounts_that_cannot_be_read_change_nothing(self) -> None:
        (self.world.directory / "users").unlink()
        self.assertTrue(self.reload().failed)
        self.assertEqual(self.code("bob@example.test"), 250)

    def test_aliases_with_a_line_that_is_none_change_nothing(self) -> None:
        """The entries that can't be read any more were good until now: a reload for another reason must not refuse their mail."""
        aliases = self.world.directory / "aliases"
        aliases.write_text("sales: bob, <\nother: bob\n")
        self.file.write_text(self.file.read_text() + '\n[relay]\nnetworks = ["192.0.2.0/24"]\n')
        result = self.reload()
        self.assertTrue(result.failed)
        (problem,) = result.problems
        self.assertIn(f"{aliases}:1: ", problem)
        self.assertEqual(self.world.parts.warnings(), [f"the last reload changed nothing: {problem}"])
        codes = [self.code(to) for to in ("sales@example.test", "other@example.test", "carol@example.org")]
        self.assertEqual(codes, [250, 550, 550])
        aliases.write_text("sales: bob\nother: bob\n")
        self.assertFalse(self.reload().failed)
        self.assertEqual(self.world.parts.warnings(), [])
        codes = [self.code(to) for to in ("sales@example.test", "other@example.test", "carol@example.org")]
        self.assertEqual(codes, [250, 250, 250])

    def test_accounts_with_a_line_that_is_none_change_nothing(self) -> None:
        users = self.world.directory / "users"
        text = users.read_text()
        users.write_text(text.replace("bob@example.test:", "bob@example@test:"))
        self.assertTrue(self.reload().failed)
        self.assertEqual(self.code("bob@example.test"), 250)

    def test_what_was_wrong_at_the_start_holds_up_no_reload(self) -> None:
        aliases = self.world.directory / "aliases"
        aliases.write_text("nonsense\nsales: bob\n")
        self.world.restart()
        self.file = self.world.directory / "mta.toml"
        aliases.write_text("# a line more\nnonsense\nsales: bob\nother: bob\n")
        self.assertFalse(self.reload().failed)
        self.assertEqual(self.code("other@example.test"), 250)
        (warning,) = self.world.parts.warnings()
        self.assertTrue(warning.startswith("passed over: "), warning)

    def test_what_waits_for_a_restart(self) -> None:
        self.file.write_text(self.file.read_text().replace("mx.example.test", "new.example.test"))
        self.assertEqual(list(self.reload().restart), ["hostname"])
        self.assertEqual(self.world.listeners.serving.config.hostname, "mx.example.test")
