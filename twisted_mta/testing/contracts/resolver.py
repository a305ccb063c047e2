"""The contract of IMailResolver. Mix `ResolverContract` into a SynchronousTestCase and make the resolver that it describes."""

# mypy: disable-error-code="no-untyped-call"
# (trial's assertions have no annotations)

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.interfaces import IMailResolver, Proof


class ResolverContract(SynchronousTestCase):
    """Subclasses set `resolver` in setUp to one that knows

    x.test: MX 20 b.x.test and 10 a.x.test, TXT "one two"; a.x.test: A 192.0.2.7, AAAA 2001:db8::7;
    null.test: the null MX; 192.0.2.7: PTR a.x.test; fail.test: cannot be looked up; _25._tcp.a.x.test: TLSA "3 1 1 ab...";
    alias.test: an alias of a.x.test; nothing else. All of it is proven by DNSSEC, but for null.test.
    """

    #: Not run by itself.
    __test__ = False
    resolver: Any

    def settle(self) -> None:
        """Let a question and its answer pass."""

    def get(self, question: Awaitable[Any]) -> Any:
        """The answer, which must be there by now."""

        async def ask() -> Any:
            return await question

        asking = Deferred.fromCoroutine(ask())
        self.settle()
        return self.successResultOf(asking)

    def fails(self, error: type[Exception], question: Awaitable[Any]) -> None:
        """It raises `error`, and says why."""

        async def ask() -> Any:
            return await question

        asking = Deferred.fromCoroutine(ask())
        self.settle()
        self.assertTrue(str(self.failureResultOf(asking, error).value), "an error without a text")

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(IMailResolver, self.resolver))

    def test_mx(self) -> None:
        self.assertEqual(sorted(self.get(self.resolver.mx("x.test"))), [(10, "a.x.test"), (20, "b.x.test")])

    def test_null_mx(self) -> None:
        self.assertEqual(list(self.get(self.resolver.mx("null.test"))), [(0, "")])

    def test_addresses(self) -> None:
        self.assertEqual(set(self.get(self.resolver.addresses("a.x.test"))), {"192.0.2.7", "2001:db8::7"})

    def test_txt(self) -> None:
        self.assertEqual(list(self.get(self.resolver.txt("x.test"))), [b"one two"])

    def test_ptr(self) -> None:
        self.assertEqual(list(self.get(self.resolver.ptr("192.0.2.7"))), ["a.x.test"])

    def test_proofs(self) -> None:
        self.assertEqual(self.get(self.resolver.mx_proof("x.test")), Proof(secure=True, name="x.test"))
        self.assertEqual(self.get(self.resolver.mx_proof("null.test")), Proof(secure=False, name="null.test"))
        self.assertEqual(
            self.get(self.resolver.address_proof("a.x.test")), Proof(secure=True, name="a.x.test")
        )
        self.assertEqual(
            self.get(self.resolver.address_proof("alias.test")), Proof(secure=True, name="a.x.test")
        )
        self.fails(NoSuchDomain, self.resolver.mx_proof("nowhere.test"))
        self.fails(LookupFailed, self.resolver.address_proof("fail.test"))

    def test_tlsa(self) -> None:
        [record] = self.get(self.resolver.tlsa("_25._tcp.a.x.test"))
        self.assertEqual(str(record), "3 1 1 " + "ab" * 32)
        self.fails(NoSuchDomain, self.resolver.tlsa("_25._tcp.x.test"))
        self.fails(LookupFailed, self.resolver.tlsa("fail.test"))

    def test_a_name_without_such_records(self) -> None:
        self.assertEqual(list(self.get(self.resolver.mx("a.x.test"))), [])
        self.assertEqual(list(self.get(self.resolver.addresses("x.test"))), [])
        self.assertEqual(list(self.get(self.resolver.txt("a.x.test"))), [])

    def test_a_name_that_does_not_exist(self) -> None:
        for ask in (self.resolver.mx, self.resolver.addresses, self.resolver.txt):
            self.fails(NoSuchDomain, ask("nowhere.test"))

    def test_a_name_that_cannot_be_looked_up(self) -> None:
        for ask in (self.resolver.mx, self.resolver.addresses, self.resolver.txt):
            self.fails(LookupFailed, ask("fail.test"))
