"""The directory: look-ups, loading from files, and what happens to files that can't be used."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.config.schema import (
    Accounts,
    Commands,
    Config,
    Delivery,
    Domain,
    Listen,
    MailingList,
    Relay,
    Role,
)
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Name, parse_aliases
from twisted_mta.core.expand import Kind, expand
from twisted_mta.interfaces import Account, IDirectory
from twisted_mta.store import alias_files as module
from twisted_mta.store.directory import Directory, DirectoryHolder, load_directory
from twisted_mta.store.directory_check import check_directory
from twisted_mta.testing.directory import MemoryUsers, make_directory, make_list, make_rule


class LookupMixin:
    """What holds for the directory, and for the holder of one."""

    def wrap(self, directory: Directory) -> IDirectory:
        raise NotImplementedError

    def setUp(self) -> None:
        self.plain = make_directory(
            ["alice", "Bob@example.test", "dash+ed"],
            "root: alice\n@second.test: alice\n",
            domains=["example.test", "second.test"],
            includes={"f": "alice"},
            lists=[make_list("Team@example.test", ["Root@example.test", "X@example.org"])],
            literals=["[192.0.2.1]"],
        )
        self.directory = self.wrap(self.plain)

    def test_provides_the_interface(self) -> None:
        self.assertTrue(verifyObject(IDirectory, self.directory))

    def test_domains(self) -> None:
        self.assertEqual(self.directory.first_domain(), "example.test")
        local = [self.directory.is_local(one) for one in ("second.test", "[192.0.2.1]", "example.org", "")]
        self.assertEqual(local, [True, True, False, False])

    def test_accounts(self) -> None:
        for text, name in (
            ("alice@example.test", "alice@example.test"),
            ("ALICE+x@example.test", "alice@example.test"),
            ("alice+x+y@example.test", "alice@example.test"),
            ("bob@example.test", "Bob@example.test"),
            ("dash+ed@example.test", "dash+ed@example.test"),
            ("alice@second.test", None),
            ("+alice@example.test", None),
            ("dash@example.test", None),
        ):
            account = self.directory.account(Address.parse(text))
            self.assertEqual(account.name if account else None, name, text)

    def test_detail(self) -> None:
        self.assertEqual(
            self.directory.without_detail(Address("a+b+c", "example.test")), Address("a", "example.test")
        )
        self.assertIsNone(self.directory.without_detail(Address("abc", "example.test")))

    def test_aliases(self) -> None:
        alias = self.directory.alias(Address("ROOT", "second.test"))
        assert alias is not None
        self.assertEqual(str(alias.targets[0]), "alice")
        self.assertIsNone(self.directory.alias(Address("x", "second.test")))
        self.assertIsNotNone(self.directory.catch_all("second.test"))
        self.assertIsNone(self.directory.catch_all("example.test"))
        self.assertEqual([str(target) for target in self.directory.include("f")], ["alice"])
        self.assertEqual(list(self.directory.include("g")), [])

    def test_lists(self) -> None:
        self.assertIsNotNone(self.directory.mailing_list(Address("team", "example.test")))
        self.assertIsNone(self.directory.mailing_list(Address("team", "second.test")))
        self.assertIsNotNone(self.directory.list_owner(Address("TEAM-Owner", "example.test")))
        self.assertIsNone(self.directory.list_owner(Address("team", "example.test")))
        self.assertIsNotNone(self.directory.list_owner(Address("Team-bounces+a=b.test", "example.test")))
        self.assertIsNone(self.directory.list_owner(Address("nobody-bounces+a=b.test", "example.test")))

    def test_posters(self) -> None:
        address = Address("TEAM", "example.test")
        self.assertEqual(
            self.directory.posters(address), {"root@example.test", "alice@example.test", "x@example.org"}
        )
        self.assertIs(self.directory.posters(address), self.directory.posters(address))
        self.assertEqual(self.directory.posters(Address("alice", "example.test")), frozenset())

    def test_postmaster(self) -> None:
        self.assertEqual(self.directory.postmaster(), Address("alice", "example.test"))


class DirectoryTests(LookupMixin, SynchronousTestCase):
    def wrap(self, directory: Directory) -> IDirectory:
        return directory

    def test_without_a_separator_there_is_no_detail(self) -> None:
        directory = make_directory(["alice"], separator="")
        self.assertIsNone(directory.without_detail(Address("alice+x", "example.test")))
        self.assertIsNone(directory.account(Address("alice+x", "example.test")))

    def test_accounts_can_be_read_anew(self) -> None:
        later = self.plain.with_users(MemoryUsers(["carol@example.test"]))
        self.assertIsNotNone(later.account(Address("carol", "example.test")))
        self.assertIsNone(later.account(Address("alice", "example.test")))
        self.assertIsNone(self.plain.account(Address("carol", "example.test")))
        self.assertIsNotNone(later.mailing_list(Address("team", "example.test")))


class HolderTests(LookupMixin, SynchronousTestCase):
    def wrap(self, directory: Directory) -> IDirectory:
        self.holder = DirectoryHolder(directory)
        return self.holder

    def test_replace(self) -> None:
        self.holder.replace(make_directory(["carol"]))
        self.assertIsNotNone(self.holder.account(Address("carol", "example.test")))
        self.assertIsNone(self.holder.account(Address("alice", "example.test")))


class LoadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8", "surrogateescape")
        path.chmod(mode)
        return path

    def config(self, *names: str, lists: tuple[MailingList, ...] = ()) -> Config:
        return Config(
            path=self.folder / "mta.toml",
            hostname="mx.example.test",
            domains=("Example.test", "second.test", "example.test"),
            data=self.folder,
            postmaster=Address("alice", "example.test"),
            listen=(
                Listen(role=Role.MX, endpoint="tcp:25"),
                Listen(role=Role.MX, endpoint=r"tcp6:25:interface=2001\:DB8\:\:1"),
                Listen(role=Role.IMAPS, endpoint="tcp:993:interface=192.0.2.7"),
            ),
            accounts=Accounts(file=self.folder / "users", maildir="/var/mail/{user}"),
            aliases=tuple(self.folder / name for name in names),
            lists=lists,
            relay=Relay(own_addresses=("192.0.2.1",)),
        )

    def load(self, *names: str, lists: tuple[MailingList, ...] = (), **more: Any) -> Directory:
        users = MemoryUsers(["alice@example.test", "bob@example.test"])
        config = attrs.evolve(self.config(*names, lists=lists), **more)
        self.directory, self.problems = load_directory(config, users, {})
        return self.directory

    def told(self) -> list[str]:
        return [str(problem).replace(f"{self.folder}/", "") for problem in self.problems]

    def goes(self, name: str) -> list[str]:
        found = expand(Address(name, "example.test"), self.directory)
        return [str(one.address) for one in found.recipients]

    def test_everything_together(self) -> None:
        self.write("aliases", "root: alice\nstaff: :include:lists/staff, x@example.org\n")
        self.write("more", "info: staff\n")
        self.write("lists/staff", "alice\n:include:deep\n")
        self.write("lists/deep", "bob\n")
        team = make_list("team@example.test", ["info@example.test"], members_only=True)
        directory = self.load("aliases", "more", lists=(team, make_list("open@example.test")))
        self.assertEqual(self.told(), [])
        self.assertEqual(directory.domains, ("example.test", "second.test"))
        self.assertEqual(directory.literals, {"[192.0.2.1]", "[IPv6:2001:db8::1]"})
        self.assertTrue(directory.is_local("[192.0.2.1]"))
        self.assertEqual(directory.mailing_list(team.address), team)
        self.assertIn("bob@example.test", directory.posters(team.address))
        self.assertEqual(
            directory.account(Address("bob", "example.test")),
            Account("bob@example.test", "/var/mail/bob@example.test"),
        )
        self.assertEqual(self.goes("info"), ["alice@example.test", "bob@example.test", "x@example.org"])

    def test_clashes_between_files(self) -> None:
        self.write("aliases", "root: alice\n")
        self.write("more", "\nRoot: bob\n")
        self.load("aliases", "more")
        self.assertEqual(self.goes("root"), ["alice@example.test"])
        self.assertEqual(
            self.told(), ["more:2: the name is already an alias at aliases:1, which is used: Root"]
        )

    def test_missing_alias_file(self) -> None:
        self.write("more", "info: bob\n")
        self.load("aliases", "more")
        self.assertEqual(self.told(), ["aliases: the aliases are not used: No such file or directory"])
        self.assertEqual(self.problems[0].line, 0)
        self.assertEqual(self.goes("info"), ["bob@example.test"])

    def test_files_that_everybody_can_write_to(self) -> None:
        self.write("open", "root: eve\n", 0o666)
        self.write("aliases", "a: bob, :include:evil\n")
        self.write("evil", "eve@example.org\n", 0o646)
        self.load("open", "aliases")
        self.assertEqual(
            self.told(),
            [
                "open: the aliases are not used: everybody can write to it (chmod o-w)",
                "aliases:1: the included file is not used: everybody can write to it (chmod o-w): evil",
            ],
        )
        self.assertEqual(self.goes("a"), ["bob@example.test"])

    def test_includes_that_are_no_files(self) -> None:
        os.mkfifo(self.folder / "fifo")
        self.write("aliases", "a: bob, :include:fifo\nb: bob, :include:gone\nc: bob, :include:.\n")
        self.load("aliases")
        self.assertEqual(
            self.told(),
            [
                "aliases:1: the included file is not used: it is not a regular file: fifo",
                "aliases:2: the included file is not used: No such file or directory: gone",
                "aliases:3: the included file is not used: Is a directory: .",
            ],
        )
        for name in "abc":
            self.assertEqual(self.goes(name), ["bob@example.test"])

    def test_path_that_can_not_be(self) -> None:
        with self.assertRaises(module.Unusable):
            module.read_text(Path("nul\0"))

    def test_size(self) -> None:
        self.write("aliases", "a: bob\nb: bob\n")
        with mock.patch.object(module, "MAX_FILE", 10):
            self.load("aliases")
        self.assertEqual(self.told(), ["aliases: the aliases are not used: it is larger than 10 octets"])

    def test_bad_lines_in_includes(self) -> None:
        self.write("aliases", "a: :include:f\n")
        self.write("f", "bob\n|cmd\n")
        self.load("aliases")
        self.assertEqual(
            self.told(), ["f:2: an included file may name addresses and other files to include only: |cmd"]
        )

    def test_octets_that_are_not_utf8(self) -> None:
        self.write("aliases", "jos\udce9: bob\ninfo: bob\n")
        self.load("aliases")
        self.assertEqual(len(self.problems), 1)
        self.assertEqual(self.goes("info"), ["bob@example.test"])

    def test_includes_that_include_each_other(self) -> None:
        self.write("aliases", "a: :include:f\n")
        self.write("f", ":include:lists/../f2\nbob\n")
        self.write("f2", ":include:f\n")
        (self.folder / "lists").mkdir()
        self.load("aliases")
        self.assertEqual(self.told(), [])
        self.assertEqual(len(self.directory.includes), 2)
        found = expand(Address("a", "example.test"), self.directory)
        self.assertEqual([str(one.address) for one in found.recipients], ["bob@example.test"])
        self.assertIn("alias loop", found.problems[0].text)

    def test_depth_and_number_of_includes(self) -> None:
        self.write("aliases", "a: :include:f0\n")
        for number in range(12):
            self.write(f"f{number}", f":include:f{number + 1}\n")
        self.load("aliases")
        self.assertEqual(
            self.told(), ["f9:1: the included file is not used: more than 10 files include one another: f10"]
        )
        with mock.patch.object(module, "MAX_INCLUDES", 3):
            self.load("aliases")
        self.assertEqual(
            self.told(), ["f2:1: the included file is not used: there are more than 3 files to include: f3"]
        )

    def test_list_whose_address_is_too_long(self) -> None:
        self.load(lists=(make_list("x" * 60 + "@example.test"),))
        self.assertEqual(len(self.problems), 1)
        self.assertIn("too long for a list", self.told()[0])
        self.assertEqual(self.directory.lists, ())

    def test_account_that_vanishes_while_loading(self) -> None:
        users = MemoryUsers(["alice@example.test"])
        users.names = lambda: ("alice@example.test", "gone@example.test")  # type: ignore[method-assign]
        directory, _ = load_directory(self.config(), users, {})
        self.assertEqual(list(directory.accounts), ["alice@example.test"])

    def test_domains_with_files_of_their_own(self) -> None:
        self.write("aliases", "info: alice\nsales@shop.test: alice\n")
        self.write(
            "shop", "info: bob@example.test\nInfo: alice\n@shop.test: bob@example.test\nx@example.test: bob\n"
        )
        self.write("names", "# who is there\njoe\nJim@back.test, |cmd\n:include:names\n")
        blocks = (
            Domain(name="shop.test", source="mta.toml:9", aliases=(self.folder / "shop",), separator="-"),
            Domain(name="old.test", source="mta.toml:12", alias_of="shop.test"),
            Domain(name="back.test", source="mta.toml:15", relay=True, recipients=self.folder / "names"),
            Domain(name="torn.test", source="mta.toml:18", relay=True, recipients=self.folder / "nothere"),
            Domain(
                name="all.test",
                source="mta.toml:21",
                catch_all=(Name(Address("alice", "example.test"), "mta.toml:22"),),
            ),
        )
        virtual = (
            *parse_aliases("v@example.test: bob\n", "mta.toml").entries,
            make_rule("w-(.*)@example.test", "{1}"),
        )
        directory = self.load("aliases", domain_blocks=blocks, virtual=virtual)
        self.assertEqual(directory.domains, ("example.test", "second.test", "shop.test", "all.test"))
        self.assertEqual(
            self.told(),
            [
                "shop:2: the name is already an alias at shop:1, which is used: Info",
                "shop:4: the file is for shop.test only (domain.aliases): x@example.test",
                "names:3: an included file may name addresses and other files to include only: |cmd",
                "names:4: a list of recipients has addresses in it, and nothing else: :include:names",
                "nothere: nobody is accepted for torn.test: No such file or directory",
            ],
        )
        for address, expected in (
            ("info@shop.test", "bob@example.test"),
            ("info-x@old.test", "bob@example.test"),
            ("sales@shop.test", "alice@example.test"),
            ("other@shop.test", "bob@example.test"),
            ("joe@back.test", "joe@back.test"),
            ("jim@back.test", "jim@back.test"),
            ("other@all.test", "alice@example.test"),
            ("v@example.test", "bob@example.test"),
            ("w-alice@example.test", "alice@example.test"),
        ):
            found = expand(Address.parse(address), directory)
            self.assertEqual([str(one.address) for one in found.recipients], [expected], address)
        for address, kind in (("eve@back.test", Kind.UNKNOWN), ("joe@torn.test", Kind.DEFER)):
            found = expand(Address.parse(address), directory)
            self.assertEqual([one.kind for one in found.problems], [kind])

    def test_many_aliases_load_and_look_up_fast(self) -> None:
        """Generous bounds: what matters is that nothing is quadratic."""
        count = 20_000
        lines = (f"name{n}: alice, other{n}@example.org, bob@example.test\n" for n in range(count))
        self.write("aliases", "".join(lines))
        start = time.process_time()
        directory = self.load("aliases")
        self.assertLess(time.process_time() - start, 10)
        start = time.process_time()
        for n in range(0, count, 20):
            directory.alias(Address(f"NAME{n}", "second.test"))
        self.assertLess((time.process_time() - start) / (count / 20), 0.001)


class CheckTests(SynchronousTestCase):
    def told(self, directory: Directory, delivery: Delivery | None = None) -> list[str]:
        found = check_directory(directory, delivery or Delivery())
        return [f"{problem.source}: {problem.text}" for problem in found]

    def test_files_and_commands_that_get_no_mail(self) -> None:
        directory = make_directory(
            aliases='a: alice, /var/mail/a, /var/mail/b/, /etc/c\nb: "|/bin/robot x"\nc: "|/bin/robot \\"x"\n',
            virtual={"x-(.*)@example.test": "/etc/d"},
        )
        off = 'commands are off without "user" and "directory" in [delivery.command]'
        outside = 'it is not below a directory that "files" in [delivery] names'
        self.assertEqual(
            self.told(directory, Delivery(files=(Path("/var/mail"),))),
            [
                f"aliases:1: /etc/c gets no mail: {outside}",
                f"aliases:2: |/bin/robot x gets no mail: {off}",
                f'aliases:3: |/bin/robot "x gets no mail: {off}',
                f"virtual:1: /etc/d gets no mail: {outside}",
            ],
        )
        on = Delivery(files=(Path("/"),), command=Commands(user="mail", directory=Path("/var/empty")))
        (told,) = (each for each in self.told(directory, on) if "robot" in each)
        self.assertTrue(told.startswith("aliases:3: |/bin/robot \"x gets no mail: it can't be run: "), told)

    def test_all_is_well(self) -> None:
        directory = make_directory(
            aliases="root: alice\nall: root, bob, x@example.org\n@example.test: all\n",
            lists=[make_list("team@example.test", ["all@example.test"], "bob@example.test")],
        )
        self.assertEqual(self.told(directory), [])

    def test_everything_that_leads_nowhere_is_told_once(self) -> None:
        directory = make_directory(
            aliases=(
                "a: ghost, alice\nb: a\nc: d\nd: c\nteam: alice\nteam-owner: alice\n"
                "x@example.org: alice\n@example.org: alice\n@example.test: spirit\n"
            ),
            lists=[
                make_list(
                    "team@example.test", ["poltergeist@second.test", "a@example.test"], "alice@example.test"
                ),
                make_list("far@example.org", ["nobody@example.test"]),
            ],
            domains=["example.test", "second.test"],
            postmaster="spook@second.test",
        )
        self.assertEqual(
            self.told(directory),
            [
                "postmaster: there is no user spook@second.test here",
                "list team@example.test: there is no user poltergeist@second.test here",
                "aliases:9: spirit@example.test leads only to itself, and there is no such mailbox",
                "list far@example.org: example.org is not a local domain, so nothing is ever looked up there",
                "aliases:7: example.org is not a local domain, so nothing is ever looked up there",
                "aliases:4: alias loop: c@example.test -> d@example.test -> c@example.test",
                "aliases:3: alias loop: d@example.test -> c@example.test -> d@example.test",
                "aliases:5: team@example.test belongs to a mailing list, so its alias is never looked up",
                "aliases:6: team-owner@example.test belongs to a mailing list, so its alias is never looked up",
                "aliases:8: example.org is not a local domain, so nothing is ever looked up there",
            ],
        )


class FactoryTests(SynchronousTestCase):
    def test_bad_lines_are_errors_of_the_test(self) -> None:
        with self.assertRaises(ValueError):
            make_directory(aliases={"a": "b c"})

    def test_snapshots_compare_by_value(self) -> None:
        self.assertEqual(make_directory(), attrs.evolve(make_directory()))
