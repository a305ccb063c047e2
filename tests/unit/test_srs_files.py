"""The secrets of rewritten senders on the disk, and bounces that only the history can send home."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.config.loader import load
from twisted_mta.core.queue import Expanded, Failed, Transport
from twisted_mta.delivery.returns import ReturnDelivery
from twisted_mta.interfaces import IDelivery
from twisted_mta.store.queue.bodies import MemoryBody
from twisted_mta.store.srs import load_forwarding, make_secret
from twisted_mta.testing.directory import make_directory
from twisted_mta.testing.queued import queued_message, queued_recipient

CONFIG = """\
hostname = "mx.example.test"
domains = ["example.test", "other.test"]
postmaster = "postmaster@example.test"
data = "data"
[[listen]]
role = "mx"
endpoint = "tcp:25"
"""


class SecretTests(SynchronousTestCase):
    def config(self, text: str = "") -> Any:
        path = Path(self.mktemp())
        path.mkdir()
        (path / "mta.toml").write_text(CONFIG + text)
        return load(path / "mta.toml", check_files=False)

    def test_made_once(self) -> None:
        config = self.config()
        self.assertEqual(load_forwarding(config)[1], "", "the server has not been started yet")
        self.assertIsNone(load_forwarding(config)[0].srs)
        make_secret(config.srs_secret_file, lambda size: b"\x01" * size)
        self.assertEqual(config.srs_secret_file.stat().st_mode & 0o777, 0o600)
        before = config.srs_secret_file.read_text()
        make_secret(config.srs_secret_file, lambda size: b"\x02" * size)
        self.assertEqual(config.srs_secret_file.read_text(), before)
        rules, trouble = load_forwarding(config)
        assert rules.srs is not None
        self.assertEqual((rules.srs.domain, rules.srs.secrets, trouble), ("example.test", (b"01" * 32,), ""))
        self.assertTrue(rules.tickets)

    def test_workers_that_start_together_have_the_same(self) -> None:
        path = self.config().srs_secret_file

        def random(size: int) -> bytes:
            made.append(size)
            if len(made) == 1:  # another process comes meanwhile, and has to wait
                other.start()
                other.join(0.05)
            return bytes([len(made)]) * size

        made: list[int] = []
        other = threading.Thread(target=make_secret, args=(path, random))
        make_secret(path, random)
        other.join()
        self.assertEqual(made, [32])
        self.assertIn("01" * 32, path.read_text())

    def test_settings(self) -> None:
        config = self.config(
            '[queue]\nhistory = 0\n[forward]\nsrs_domain = "other.test"\nsrs_expire = "3d"\nsrs_secret_file = "s"\n'
            'srs_bounces_only = false\ninstead = "refuse"\nnot_if_header = ["X-A: b"]\n'
        )
        make_secret(config.srs_secret_file, lambda size: b"\x01" * size)
        rules, _ = load_forwarding(config)
        assert rules.srs is not None
        self.assertEqual((rules.srs.domain, rules.srs.expire), ("other.test", 3 * 86400.0))
        self.assertEqual((rules.tickets, rules.refuse, rules.bounces_only), (False, True, False))
        self.assertEqual([str(test) for test in rules.not_if], ["x-a: b"])
        self.assertIsNone(load_forwarding(self.config("[forward]\nsrs = false\n"))[0].srs)

    def test_trouble(self) -> None:
        config = self.config()
        path = config.srs_secret_file
        path.parent.mkdir()
        path.write_text("short\n")
        path.chmod(0o600)
        self.assertIn("not rewritten: a secret has fewer than 16", load_forwarding(config)[1])
        path.chmod(0o604)
        self.assertIn("open to other users", load_forwarding(config)[1])
        path.unlink()
        path.mkdir()
        self.assertIn("Is a directory", load_forwarding(config)[1])


@attrs.frozen
class Past:
    """What of a PastMessage is looked at."""

    sender: str


class ReturnDeliveryTests(SynchronousTestCase):
    def deliver(self, *found: Past) -> Any:
        asked: list[Any] = []

        class History:
            async def recall(self, names: Any) -> Any:
                asked.extend(names)
                return found

        delivery = ReturnDelivery(History(), make_directory(), lambda: "new", Clock())  # type: ignore[arg-type]
        verifyObject(IDelivery, delivery)
        one = queued_recipient("SRS0=x@example.test", transport=Transport.RETURN, target="0Wkz")
        self.assertEqual(delivery.destination(one), "0Wkz")

        async def run() -> Any:
            outcomes = await delivery.deliver(queued_message(sender=None), MemoryBody(b"x"), [one], "0Wkz")
            await delivery.close()
            return outcomes

        (outcome,) = self.successResultOf(Deferred.fromCoroutine(run()))
        self.assertEqual(asked, ["0Wkz"])
        return outcome

    def test_home(self) -> None:
        outcome = self.deliver(Past("bob@example.com"))
        self.assertIsInstance(outcome, Expanded)
        (letter,) = outcome.messages
        self.assertEqual((letter.sender, letter.parent, letter.origin), (None, "q1", "bounce of 0Wkz"))
        self.assertEqual([str(one.address) for one in letter.recipients], ["bob@example.com"])

    def test_forgotten(self) -> None:
        for found in ((), (Past(""),)):
            outcome = self.deliver(*found)
            self.assertIsInstance(outcome, Failed)
            self.assertEqual(outcome.reply.enhanced, "5.1.1")
