"""The SMTP client logs in at the whole server as at a smarthost, over real TLS, bound to the connection."""

from __future__ import annotations

import os
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.trial.unittest import TestCase

from twisted_mta.core.smtp.client import Login, SmtpClient, State
from twisted_mta.net.scram_client import ScramHelper
from twisted_mta.net.smtp_client import OpportunisticTls, SessionError, SmtpConnection, opportunistic_context
from twisted_mta.store.passwords import hash_password, scram_keys
from twisted_mta.store.threads import Workers
from twisted_mta.testing.site import PASSWORD, Site

reactor: Any = real_reactor


class ScramClientTests(TestCase):
    site: Site

    @classmethod
    def setUpClass(cls) -> None:
        cls.site = Site()
        stored = hash_password(PASSWORD.encode(), os.urandom)
        keys = scram_keys(PASSWORD.encode(), stored, 4096)
        line = f"alice@example.test:{stored}::::::scram_sha256={keys}\n"
        (cls.site.directory / "users").write_text(line, encoding="utf-8")
        cls.site.start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.site.__exit__(None, None, None)

    def setUp(self) -> None:
        workers = Workers(reactor, 1, "keys")
        self.addCleanup(workers.close)
        self.scram = ScramHelper(workers)
        self.context = opportunistic_context()

    async def log_in(self, password: str) -> str:
        """The mechanism that let us in. Raises SessionError."""
        core = SmtpClient("me.test", login=Login("alice", password), nonces=self.scram.nonce)
        connection = SmtpConnection(core, reactor, OpportunisticTls(self.context, ""), self.scram)
        ended: Deferred[SmtpConnection] = Deferred()
        connection.on_end = ended.callback
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.site.port("submission"))
        await connectProtocol(endpoint, connection)
        try:
            await connection.ready
            connection.quit()
        finally:
            await ended
        return core.mechanism

    async def test_bound_by_the_exporter(self) -> None:
        for _ in range(2):
            self.assertEqual(await self.log_in(PASSWORD), "SCRAM-SHA-256-PLUS")

    async def test_bound_by_the_certificate(self) -> None:
        self.context.set_max_proto_version(SSL.TLS1_2_VERSION)
        self.assertEqual(await self.log_in(PASSWORD), "SCRAM-SHA-256-PLUS")

    async def test_a_wrong_password(self) -> None:
        with self.assertRaises(SessionError) as caught:
            await self.log_in("wrong")
        self.assertEqual(caught.exception.state, State.AUTH)
        self.assertEqual(caught.exception.reply.code, 535)
