"""Several worker processes, which are one server to clients and to `mta`."""

from __future__ import annotations

import os
import signal
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest

from twisted_mta.testing.site import Site

#: Nobody listens at the discard port: what goes to far.test waits.
_RELAY = '[relay]\nnetworks = ["127.0.0.0/8"]\nroutes = { "far.test" = "127.0.0.1:9" }\n'


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site(config=_RELAY, workers=2) as site:
        yield site


def workers(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.control("status")["workers"]
    return found


def send(site: Site, subject: str, to: str = "alice@example.test") -> None:
    with smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
        client.sendmail("dave@example.org", [to], f"Subject: {subject}\r\n\r\nx\r\n")


def everybody_up(site: Site, restarts: int = 0) -> bool:
    found = workers(site)
    return all(one["state"] == "up" for one in found) and sum(one["restarts"] for one in found) >= restarts


class WorkersTests:
    def test_both_work(self, site: Site) -> None:
        clients = [smtplib.SMTP("127.0.0.1", site.port("mx")) for _ in range(20)]
        for client in clients:
            client.ehlo()  # a worker has accepted it
        status = site.control("status")
        counts = [one["connections"] for one in status["workers"]]
        assert sum(counts) == status["connections"] == 20
        assert min(counts) > 0
        for client in clients:
            client.quit()

    def test_mail_is_delivered_whoever_takes_it(self, site: Site) -> None:
        before = len(site.maildir("alice"))
        for number in range(12):
            send(site, str(number))
        site.wait_for(lambda: len(site.maildir("alice")) == before + 12)

    def test_commands_see_one_queue(self, site: Site) -> None:
        for number in range(8):
            send(site, f"far {number}", "carol@far.test")
        found = site.control("queue.list")["messages"]
        ids = [one["id"] for one in found]
        assert len(ids) == 8
        assert ids == sorted(ids)
        # The worker's number is in the id.
        assert {name[10:12] for name in ids} <= {"00", "01"}
        assert site.control("queue.show", ids=[ids[0]])["id"] == ids[0]
        assert site.control("queue.show", ids=[ids[-1]])["id"] == ids[-1]
        assert len(site.control("trace", what="carol@far.test")["trees"]) == 8
        assert site.control("queue.delete", all=True)["messages"] == 8
        assert site.control("queue.list") == {"messages": []}

    def test_a_bad_file_changes_nothing_and_a_good_one_all(self, site: Site) -> None:
        text = site.config_file.read_text()
        site.config_file.write_text(text + "\n[queue]\nexpire = true\n")
        result = site.control("reload")
        assert result["failed"]
        assert "queue.expire" in result["problems"][0]
        site.config_file.write_text('greeting = "hello there"\n' + text)
        assert site.control("reload")["changed"] == ["greeting"]
        greetings = set()
        for _ in range(10):
            client = smtplib.SMTP()
            greetings.add(client.connect("127.0.0.1", site.port("mx"))[1])
            client.close()
        assert greetings == {b"mx.example.test ESMTP hello there"}

    def test_a_worker_that_dies_is_replaced(self, site: Site) -> None:
        before = len(site.maildir("bob"))
        os.kill(workers(site)[1]["pid"], signal.SIGKILL)
        for number in range(10):  # nobody is turned away meanwhile
            send(site, str(number), "bob@example.test")
        site.wait_for(lambda: everybody_up(site, restarts=1))
        site.wait_for(lambda: len(site.maildir("bob")) == before + 10)
        assert "ended by signal 9" in site.log()
        # It has the configuration that is in force, and log lines bear its number.
        assert " incoming/0: " in site.log()
        assert " worker/1: worker 1 is up" in site.log()
