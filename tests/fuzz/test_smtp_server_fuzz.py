"""A small part of `tests.fuzz.smtp_server`; MTA_FUZZ_COUNT asks for more, MTA_FUZZ_SEED for others."""

from __future__ import annotations

import os
import unittest

from tests.fuzz import smtp_server
from twisted_mta.core.smtp.states import State

COUNT = int(os.environ.get("MTA_FUZZ_COUNT", "1500"))
SEED = int(os.environ.get("MTA_FUZZ_SEED", "1"))


class FuzzSmtpServerTests(unittest.TestCase):
    def test_dialogues(self) -> None:
        """Every state is reached, and nothing goes wrong in any."""
        states: set[State] = set()
        for seed in range(SEED, SEED + COUNT):
            try:
                states |= smtp_server.play(seed).states
            except Exception as error:
                raise AssertionError(
                    f"replay with: python -m tests.fuzz.smtp_server --count 1 --show --seed {seed}"
                ) from error
        self.assertEqual(states, set(State))

    def test_the_same_seed_is_the_same_input(self) -> None:
        shown: list[str] = []
        for _ in range(2):
            smtp_server.play(SEED, shown.append)
        self.assertEqual(shown[0], shown[1])
