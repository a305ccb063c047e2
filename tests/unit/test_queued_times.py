"""When a message may be attempted, before and after it is in the queue."""

from __future__ import annotations

import unittest

from twisted_mta.core.queue import NewMessage


class ReleaseTests(unittest.TestCase):
    def test_held_until_after_it_arrived(self) -> None:
        for not_before, held, released in ((0.0, False, 100.0), (100.0, False, 100.0), (101.0, True, 101.0)):
            message = NewMessage(
                id="a", sender=None, recipients=(), arrived=100.0, expires=200.0, not_before=not_before
            )
            with self.subTest(not_before):
                self.assertEqual((message.held, message.released), (held, released))
