"""How long many aliases take to load, and addresses to be looked up and expanded: `python -m benchmarks.aliases`.

CPU time, since that is all there is to it once the file is in memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from twisted_mta.config.schema import Accounts, Config, Listen, Role
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import expand, resolves, route
from twisted_mta.store.directory import Directory, DirectoryHolder, load_directory
from twisted_mta.testing.directory import MemoryUsers, make_rule

#: Look-ups of each kind.
_ROUNDS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="aliases")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        seconds, directory = _load(Path(name), options.count)
    print(f"{options.count} aliases, {3 * options.count} targets: loaded in {seconds:.2f} s")
    holder = DirectoryHolder(directory)
    step = max(options.count // 1000, 1)
    for what, addresses in (
        ("an account", [Address("alice", "example.test")]),
        ("an account with a detail", [Address("alice+x", "example.test")]),
        ("an alias", [Address(f"name{n}", "example.test") for n in range(0, options.count, step)]),
        ("an address by a pattern", [Address("sales-x", "example.test")]),
        ("nobody", [Address("nobody", "example.test")]),
        ("somebody elsewhere", [Address("x", "example.org")]),
    ):
        _measure(f"resolves (RCPT), {what}", addresses, lambda one: resolves(one, holder))
        _measure(f"expand, {what}", addresses, lambda one: expand(one, holder))
        _measure(f"route (queue), {what}", addresses, lambda one: route((Recipient(one),), holder))


def _load(folder: Path, count: int) -> tuple[float, Directory]:
    (folder / "aliases").write_text(
        "".join(f"name{n}: alice, other{n}@example.org, bob@example.test\n" for n in range(count))
    )
    config = Config(
        path=folder / "mta.toml",
        hostname="mx.example.test",
        domains=("example.test",),
        data=folder,
        postmaster=Address("alice", "example.test"),
        listen=(Listen(role=Role.MX, endpoint="tcp:25"),),
        accounts=Accounts(file=folder / "users", maildir="/var/mail/{user}"),
        aliases=(folder / "aliases",),
        virtual=(make_rule("sales-(.*)@example.test", "{1}@crm.example.net"),),
    )
    users = MemoryUsers(["alice@example.test", "bob@example.test"])
    began = time.process_time()
    directory, problems = load_directory(config, users, {})
    assert not problems, problems
    return time.process_time() - began, directory


def _measure(what: str, addresses: list[Address], look: Callable[[Address], object]) -> None:
    rounds = max(_ROUNDS // len(addresses), 1)
    began = time.process_time()
    for _ in range(rounds):
        for address in addresses:
            look(address)
    took = (time.process_time() - began) / (rounds * len(addresses))
    print(f"  {what}: {took * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
