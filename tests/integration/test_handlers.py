"""docs/tutorial-handler.md, done as it says, with a real server."""

from __future__ import annotations

import re
import smtplib
import sqlite3
from contextlib import closing
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.site import Site

_PAGE = Path(__file__).parents[2] / "docs/tutorial-handler.md"


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", _PAGE.read_text("utf-8"), re.M | re.S)


class TutorialTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.tickets, self.client, self.orders = _blocks("python")
        (config,) = _blocks("toml")
        self.site = Site(
            config.replace('["tickets"]', '["tickets", "orders"]'),
            domain="example.org",
            accounts=("alice", "postmaster"),
            aliases="support: new-ticket\n",
            roles=("mx",),
        )
        self.addCleanup(self.site.__exit__, None, None, None)
        self.app = self.site.directory / "app"
        self.app.mkdir()
        (self.app / "tickets.py").write_text(self.tickets)
        (self.app / "orders.py").write_text(self.orders)
        self.site.start()

    def rows(self, database: str, query: str) -> list[tuple[object, ...]]:
        if not (self.app / database).exists():
            return []
        with closing(sqlite3.connect(self.app / database)) as found:
            try:
                return found.execute(query).fetchall()
            except sqlite3.OperationalError:  # the table is not there yet
                return []

    def send(self, recipient: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.site.port("mx")) as server:
            server.sendmail("bob@example.net", [recipient], "Subject: again\r\n\r\nx\r\n")

    def test_the_page_is_true(self) -> None:
        first, second = self.client.split("    server.sendmail")[1:]
        opening = self.client.split("    server.sendmail")[0].replace(
            '"localhost", 25', f'"127.0.0.1", {self.site.port("mx")}'
        )
        exec(f"{opening}    server.sendmail{first}")
        self.site.wait_for(lambda: self.rows("tickets.sqlite", "SELECT id FROM ticket"))
        exec(f"{opening}    server.sendmail{second}")
        self.assertEqual(
            self.rows("tickets.sqlite", "SELECT ticket, sender, text FROM note"),
            [(1, "bob@example.net", "Still.\n")],
        )
        self.site.wait_for_log("new-ticket@example.org by handler tickets.new_ticket: 250 2.0.0 taken by")
        with self.assertRaises(smtplib.SMTPDataError) as refused:
            self.send("ticket-99@example.org")
        self.assertEqual(
            (refused.exception.smtp_code, refused.exception.smtp_error), (550, b"5.1.1 there is no ticket 99")
        )
        with self.assertRaises(smtplib.SMTPRecipientsRefused) as unknown:
            self.send("ticket@example.org")
        self.assertEqual(unknown.exception.recipients["ticket@example.org"][0], 550)
        self.send("support@example.org")
        self.site.wait_for(lambda: len(self.rows("tickets.sqlite", "SELECT id FROM ticket")) == 2)

    def test_the_async_one(self) -> None:
        self.send("order-Smith-12@example.org")
        found = self.site.wait_for(
            lambda: self.rows("orders.sqlite", "SELECT customer, number, subject FROM orders")
        )
        self.assertEqual(found, [("Smith", "12", "again")])

    def test_reload(self) -> None:
        (self.app / "late.py").write_text(
            "from twisted_mta.handlers import rcpt\n\n\n@rcpt('late@example.org')\ndef late(mail):\n    pass\n"
        )
        text = self.site.config_file.read_text()
        self.site.config_file.write_text(text.replace('"orders"]', '"late"]'))
        self.assertFalse(self.site.control("reload")["failed"])
        self.send("late@example.org")
        self.site.wait_for_log("late@example.org by handler late.late")
        with self.assertRaises(smtplib.SMTPRecipientsRefused):
            self.send("order-Smith-12@example.org")
        self.site.config_file.write_text(text.replace('"orders"]', '"no_such_module"]'))
        result = self.site.control("reload")
        self.assertTrue(result["failed"])
        self.assertIn('"no_such_module" can\'t be imported', result["problems"][0])
        self.send("late@example.org")
