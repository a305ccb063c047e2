"""Kills the server thousands of times: `make torture`, or `python -m tests.crash [--kills N] [--seed FIRST]`.

Ends at the first ledger that does not hold, and says how to see it again.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.crash.episodes import mail_episode, mailbox_episode
from tests.crash.nursery import Nursery


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=3000, help="how many (3000)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first episode (the time)")
    options = parser.parse_args()
    begin, kills, seed = time.monotonic(), 0, options.seed
    with Nursery() as nursery:
        while kills < options.kills:
            episode = mailbox_episode if seed % 8 == 7 else mail_episode
            try:
                kills += episode(nursery, seed)
            except Exception:
                print(
                    f"after {kills} kills. Again: python -m tests.crash --kills 1 --seed {seed}",
                    file=sys.stderr,
                )
                raise
            seed += 1
            print(f"\r{kills} kills, {time.monotonic() - begin:.0f} s, seed {seed}", end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
