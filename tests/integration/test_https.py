"""Fetching MTA-STS policies and posting reports over real sockets on loopback, with real certificates."""

from __future__ import annotations

import socket
from typing import Any

from OpenSSL import crypto
from twisted.internet import reactor as real_reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.certificates import Authority, TlsServer
from twisted_mta.core.route import LookupFailed
from twisted_mta.core.tls_policy.results import FetchFailed, Result
from twisted_mta.core.tls_policy.sts import Mode
from twisted_mta.net.https import Https, HttpsError
from twisted_mta.net.sts_fetch import PolicyFetcher
from twisted_mta.testing.dns import FakeResolver

reactor: Any = real_reactor
ROOT = Authority()
POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mx.x.test\r\nmax_age: 86400\r\n"


class Page(Resource):
    """Answers everything, as it is told."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.body = POLICY
        self.status = 200
        self.headers: dict[bytes, bytes] = {b"content-type": b"Text/Plain; charset=utf-8"}
        self.silent = False
        self.seen: list[tuple[bytes, bytes, bytes]] = []

    def render(self, request: Any) -> Any:
        self.seen.append(
            (request.method, request.getRequestHostname() + request.path, request.content.read())
        )
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        if self.silent:
            request.write(self.body)
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET
        return self.body


class HttpsCase(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]
        self.page = Page()
        self.tls = TlsServer(
            ROOT.issue("other.test"),
            {
                b"mta-sts.x.test": ROOT.issue("mta-sts.x.test"),
                b"mta-sts.old.test": ROOT.issue("mta-sts.old.test", days=(-2, -1)),
                b"mta-sts.self.test": Authority("Nobody").issue("mta-sts.self.test"),
            },
        )
        site = Site(self.page)
        self.port = await SSL4ServerEndpoint(
            reactor,
            0,
            self.tls,
            interface="127.0.0.1",  # type: ignore[arg-type]
        ).listen(site)
        self.addCleanup(self.port.stopListening)
        names = ("x", "old", "self", "wrong")
        self.resolver = FakeResolver(addresses={f"mta-sts.{name}.test": ["127.0.0.1"] for name in names})
        self.https = self.client(self.port.getHost().port)

    def client(self, port: int) -> Https:
        """One that reaches all servers at this port."""
        authorities = ssl.trustRootFromCertificates(
            [ssl.Certificate(crypto.X509.from_cryptography(ROOT.certificate))]
        )
        return Https(reactor, self.resolver, port=port, authorities=authorities)


class PolicyTests(HttpsCase):
    async def fails(self, domain: str, result: Result) -> str:
        with self.assertRaises(FetchFailed) as caught:
            await PolicyFetcher(self.https)(domain)
        self.assertEqual(caught.exception.failure.result, result)
        return caught.exception.failure.code

    async def test_policy(self) -> None:
        policy = await PolicyFetcher(self.https)("x.test")
        self.assertEqual((policy.mode, policy.mx), (Mode.ENFORCE, ("mx.x.test",)))
        self.assertEqual(self.page.seen, [(b"GET", b"mta-sts.x.test/.well-known/mta-sts.txt", b"")])
        self.assertEqual(self.tls.asked, [b"mta-sts.x.test"])  # RFC 8461 §7.1

    async def test_the_next_address_where_one_does_not_answer(self) -> None:
        self.resolver.data["addresses"]["mta-sts.x.test"] = ["127.0.0.77", "::1", "127.0.0.1"]
        self.assertEqual((await PolicyFetcher(self.https)("x.test")).mode, Mode.ENFORCE)

    async def test_certificates(self) -> None:
        self.assertIn("certificate", await self.fails("self.test", Result.STS_WEBPKI_INVALID))
        self.assertIn("certificate", await self.fails("old.test", Result.STS_WEBPKI_INVALID))
        self.assertEqual(
            await self.fails("wrong.test", Result.STS_WEBPKI_INVALID), "its certificate is for another name"
        )
        self.assertEqual(self.page.seen, [])

    async def test_redirects_are_not_followed(self) -> None:
        self.page.status = 302
        self.page.headers[b"location"] = b"https://mta-sts.x.test/elsewhere"
        self.assertEqual(await self.fails("x.test", Result.STS_POLICY_FETCH_ERROR), "status 302")
        self.assertEqual(len(self.page.seen), 1)

    async def test_media_type(self) -> None:
        self.page.headers[b"content-type"] = b"text/html"
        self.assertEqual(
            await self.fails("x.test", Result.STS_POLICY_INVALID), "'text/html' is not text/plain"
        )

    async def test_what_is_no_policy(self) -> None:
        self.page.body = b"<html>"
        self.assertIn("no field", await self.fails("x.test", Result.STS_POLICY_INVALID))

    async def test_too_long(self) -> None:
        self.page.body = b"x" * 70000
        self.assertIn("longer than 65536", await self.fails("x.test", Result.STS_POLICY_FETCH_ERROR))

    async def test_header_that_never_ends(self) -> None:
        self.page.headers |= {b"x-%d" % number: b"x" * 10000 for number in range(100)}
        await self.fails("x.test", Result.STS_POLICY_FETCH_ERROR)

    async def test_nobody_there(self) -> None:
        nobody = socket.socket()  # it has the port, so that nobody else listens there meanwhile
        self.addCleanup(nobody.close)
        nobody.bind(("127.0.0.1", 0))
        self.https = self.client(nobody.getsockname()[1])
        self.assertIn("can't connect", await self.fails("x.test", Result.STS_POLICY_FETCH_ERROR))

    async def test_names_that_cannot_be_looked_up(self) -> None:
        self.assertIn("has no address", await self.fails("nowhere.test", Result.STS_POLICY_FETCH_ERROR))
        self.resolver.data["addresses"]["mta-sts.fail.test"] = LookupFailed("SERVFAIL")
        self.assertIn("SERVFAIL", await self.fails("fail.test", Result.STS_POLICY_FETCH_ERROR))


class RequestTests(HttpsCase):
    async def test_deadline(self) -> None:
        for body in (b"", b"half of"):
            self.page.silent, self.page.body = True, body
            with self.assertRaises(HttpsError) as caught:
                await self.https.request("GET", "https://mta-sts.x.test/", timeout=0.3, limit=10)
            self.assertEqual(str(caught.exception), "no answer within 0.3 seconds")
        await self.gone()

    async def gone(self) -> None:
        """Wait until the server knows that the connections are cut."""
        while any(reader.__class__.__name__ == "Server" for reader in reactor.getReaders()):
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.01, waiting.callback, None)
            await waiting

    async def test_post(self) -> None:
        self.page.status = 201
        answer = await self.https.request(
            "POST",
            "https://mta-sts.x.test/r",
            timeout=60,
            limit=100,
            body=b"{}",
            media_type="application/json",
        )
        self.assertEqual(answer.status, 201)
        self.assertEqual(self.page.seen, [(b"POST", b"mta-sts.x.test/r", b"{}")])

    async def test_only_https_to_names(self) -> None:
        for url, why in {
            "http://mta-sts.x.test/": "is not https",
            "https://127.0.0.1/": "127.0.0.1 is an IP address",
        }.items():
            with self.assertRaises(HttpsError) as caught:
                await self.https.request("GET", url, timeout=5, limit=100)
            self.assertIn(why, str(caught.exception))
