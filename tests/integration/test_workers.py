"""Several worker processes, which are one server to clients and to `mta`."""

from __future__ import annotations

import contextlib
import imaplib
import io
import json
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from tests.peers import has_ended
from twisted_mta.admin.main import main
from twisted_mta.testing.site import PASSWORD, Process, Site, python

#: Nobody listens at the discard port: what goes to far.test waits.
_RELAY = '[relay]\nnetworks = ["127.0.0.0/8"]\nroutes = { "far.test" = "127.0.0.1:9" }\n'


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site(config=_RELAY, workers=2) as site:
        yield site


def workers(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.control("status")["workers"]
    return found


def services(site: Site) -> dict[str, dict[str, int]]:
    return {one.pop("service"): one for one in site.control("status")["services"]}


def send(site: Site, subject: str, to: str = "alice@example.test") -> None:
    with smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
        client.sendmail("dave@example.org", [to], f"Subject: {subject}\r\n\r\nx\r\n")


def everybody_up(site: Site, restarts: int = 0) -> bool:
    found = workers(site)
    return all(one["state"] == "up" for one in found) and sum(one["restarts"] for one in found) >= restarts


def polled(pid: int) -> set[str]:
    """The sockets that a process waits for: "socket:[INODE]"."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        targets = []
        with contextlib.suppress(FileNotFoundError):  # closed since
            targets = re.findall(r"^tfd: +([0-9]+)", entry.read_text(), re.MULTILINE)  # only epoll's have any
        for target in targets:
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/{pid}/fd/{target}"))
    return {name for name in found if name.startswith("socket:")}


class WorkersTests:
    def test_both_work(self, site: Site) -> None:
        clients = [smtplib.SMTP("127.0.0.1", site.port("mx")) for _ in range(20)]
        for client in clients:
            client.ehlo()  # a worker has accepted it
        site.wait_for(lambda: site.control("status")["connections"] == 20)
        counts = [one["connections"] for one in workers(site)]
        assert sum(counts) == 20
        assert min(counts) > 0
        for client in clients:
            client.quit()

    def test_each_accepts_from_its_own_sockets(self, site: Site) -> None:
        """Else each connection would wake all of them, and whoever is quicker has most of them."""
        watched = [polled(one["pid"]) for one in workers(site)]
        assert not watched[0] & watched[1]

    def test_status_tells_the_python(self, site: Site) -> None:
        assert site.control("status")["python"].startswith(("CPython 3.", "PyPy 7."))

    def test_mail_is_delivered_whoever_takes_it(self, site: Site) -> None:
        before = len(site.maildir("alice"))
        for number in range(12):
            send(site, str(number))
        site.wait_for(lambda: len(site.maildir("alice")) == before + 12)

    def test_commands_see_one_queue(self, site: Site) -> None:
        site.wait_for_empty_queue()  # a mailbox has its copy before the queue knows
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
        site.wait_for_empty_queue()  # of what is being tried just now, when that has ended

    def test_a_bad_file_changes_nothing_and_a_good_one_all(self, site: Site) -> None:
        text = site.config_file.read_text()
        site.config_file.write_text(text + "\n[queue]\nexpire = true\n")
        result = site.control("reload")
        assert result["failed"]
        assert "queue.expire" in result["problems"][0]
        (warning,) = site.control("status")["warnings"]
        assert warning == f"the last reload changed nothing: {result['problems'][0]}"
        site.config_file.write_text('greeting = "hello there"\n' + text)
        assert site.control("reload")["changed"] == ["greeting"]
        assert site.control("status")["warnings"] == []
        greetings = set()
        for _ in range(10):
            client = smtplib.SMTP()
            greetings.add(client.connect("127.0.0.1", site.port("mx"))[1])
            client.close()
        assert greetings == {b"mx.example.test ESMTP hello there"}

    def test_a_worker_that_dies_is_replaced(self, site: Site) -> None:
        before = len(site.maildir("bob"))
        pid = workers(site)[1]["pid"]
        os.kill(pid, signal.SIGKILL)
        site.wait_for(lambda: has_ended(pid))
        for number in range(10):  # nobody is turned away meanwhile
            send(site, str(number), "bob@example.test")
        site.wait_for(lambda: everybody_up(site, restarts=1))
        site.wait_for(lambda: len(site.maildir("bob")) == before + 10)
        site.wait_for_log("ended by signal 9")
        site.wait_for(lambda: not polled(workers(site)[0]["pid"]) & polled(workers(site)[1]["pid"]))
        # It has the configuration that is in force, and log lines bear its number.
        site.wait_for_log(" incoming/0: ")
        site.wait_for_log(" worker/1: worker 1 is up")

    def test_idle_sees_what_another_worker_delivers(self, site: Site) -> None:
        """Both sessions have it at once, on whichever worker they are."""
        sessions = [imaplib.IMAP4_SSL("127.0.0.1", site.port("imaps"), ssl_context=_TLS) for _ in range(6)]
        for session in sessions:
            session.login("bob@example.test", PASSWORD)
            session.select("INBOX")
            session.send(b"i IDLE\r\n")
            assert session.readline().startswith(b"+")
        send(site, "for all", "bob@example.test")
        for session in sessions:
            while not session.readline().endswith(b"EXISTS\r\n"):
                pass
            session.shutdown()


_TLS = ssl._create_unverified_context()


class HangingTests:
    def test_a_worker_that_hangs_is_replaced(self) -> None:
        """And whoever turned to it meanwhile is served."""

        def spawn(command: list[str], output: IO[bytes], environment: Mapping[str, str]) -> Process:
            impatient = [python(), str(Path(__file__).with_name("impatient_twistd.py")), *command[1:]]
            return subprocess.Popen(impatient, stdout=output, stderr=subprocess.STDOUT, env=environment)

        with Site(workers=2, spawn=spawn) as site:
            pid = workers(site)[1]["pid"]
            os.kill(pid, signal.SIGSTOP)
            for number in range(10):
                send(site, str(number))
            site.wait_for(lambda: has_ended(pid))
            site.wait_for(lambda: everybody_up(site, restarts=1))
            site.wait_for(lambda: len(site.maildir("alice")) == 10)
            site.wait_for_log(f"worker 1 (process {pid}) hangs, not heard for 6 seconds: it is killed")
            how = workers(site)[1]["last end"]["how"]
            assert re.fullmatch(r"by signal 9 \(not heard for [0-9]+ seconds\)", how)
            site.stop()
            assert "all workers have stopped" in site.log()

    def test_where_a_worker_hangs(self, site: Site) -> None:
        """What the parent does to one before it is killed; here to one that is well."""
        one = workers(site)[0]
        os.kill(one["pid"], signal.SIGQUIT)
        site.wait_for_log("(most recent call first")
        assert workers(site)[0]["pid"] == one["pid"]


class LimitsTests:
    def test_what_an_account_sends_is_counted_for_all(self) -> None:
        """Twelve sessions at a time, on both workers, and a limit of seven messages."""
        with Site(config="[submission]\nmessages_per_day = 7\n", workers=2) as site:
            outcomes: list[int] = []
            together = threading.Barrier(12)

            def submit() -> None:
                with smtplib.SMTP_SSL("127.0.0.1", site.port("submissions"), context=_TLS) as client:
                    client.login("alice@example.test", PASSWORD)
                    together.wait(300)
                    try:
                        client.sendmail("alice@example.test", ["bob@example.test"], "Subject: x\r\n\r\nx\r\n")
                    except smtplib.SMTPResponseException as error:
                        outcomes.append(error.smtp_code)
                    except smtplib.SMTPRecipientsRefused:
                        outcomes.append(550)
                    else:
                        outcomes.append(250)

            threads = [threading.Thread(target=submit) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert Counter(outcomes) == {250: 7, 550: 5}
            site.wait_for(lambda: len(site.maildir("bob")) == 7)
            sent = {one["name"]: one["messages"] for one in site.control("status")["sent in the last day"]}
            assert sent["alice@example.test"] == 7
            site.wait_for(lambda: len(site.maildir("postmaster")) == 1)

    def test_connections_are_counted_for_all(self) -> None:
        """Though each worker has fewer than the limit, both know of five, a tenth of a second later."""
        with Site(config="[limits]\nconnections_per_address = 5\n", workers=2) as site:
            clients = [smtplib.SMTP("127.0.0.1", site.port("mx")) for _ in range(5)]

            def refused() -> bool:
                client = smtplib.SMTP()
                code = client.connect("127.0.0.1", site.port("mx"))[0]
                client.close()
                return code == 421

            # Eight in a row: it would take some chance for all to come to the worker that has most of them.
            site.wait_for(lambda: all(refused() for _ in range(8)))
            for client in clients:
                client.quit()
            site.wait_for(lambda: not refused())

    def test_a_flood_of_one_service_keeps_no_other_out(self) -> None:
        """Each worker may let in too many before it hears of the others'; what is kept for the rest stays theirs."""
        config = "[limits]\nconnections = 20\nconnections_share = 20\n"
        with (
            Site(config=config, roles=("mx", "submission", "imap"), workers=2) as site,
            contextlib.ExitStack() as clients,
        ):

            def greeted(role: str) -> bytes:
                client = socket.create_connection(("127.0.0.1", site.port(role)), timeout=30)
                return clients.enter_context(client).recv(100)

            while not greeted("mx").startswith(b"421"):
                pass
            for _ in range(4):
                assert greeted("imap").startswith(b"* OK")
                assert greeted("submission").startswith(b"220")
            site.wait_for(lambda: services(site)["imap"] == {"connections": 4, "sure of": 4})
            assert services(site)["submission"] == {"connections": 4, "sure of": 4}
            assert services(site)["mx"]["connections"] >= 12
            # Now there is nothing left, a tenth of a second later.
            site.wait_for(lambda: greeted("imap").startswith(b"* BYE"))
            site.wait_for(lambda: greeted("submission").startswith(b"421"))


class StartTests:
    def test_fewer_workers_deliver_what_the_others_have(self) -> None:
        site = Site(config=_RELAY, workers=3)
        try:
            site.start()
            ids: list[str] = []
            while len({name[10:12] for name in ids}) < 3:  # until each has some
                send(site, "x", "carol@far.test")
                ids = [one["id"] for one in site.control("queue.list")["messages"]]
            site.stop()
            # Without a server `mta` sees all parts too.
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                main(["--config", str(site.config_file), "queue", "list", "--json"])
            assert [one["id"] for one in json.loads(printed.getvalue())["messages"]] == ids
            site.set_workers(1)
            site.config_file.write_text(
                site.config_file.read_text().replace('"127.0.0.1:9"', '"127.0.0.1:10"')
            )
            site.start()
            assert [one["id"] for one in site.control("queue.list")["messages"]] == ids
            assert site.control("queue.delete", all=True)["messages"] == len(ids)
        finally:
            site.__exit__(None, None, None)

    def test_a_worker_that_can_not_start_is_said(self) -> None:
        site = Site(workers=2)
        try:
            damaged = site.directory / "data" / "queue-1" / "queue.sqlite"
            damaged.parent.mkdir(parents=True)
            damaged.write_bytes(b"this is no database" * 1000)
            with pytest.raises(RuntimeError, match="the server ended with 1:"):
                site.start()
            (line,) = [line for line in site.log().splitlines() if line.startswith("mta: ")]
            assert "queue-1/queue.sqlite" in line
        finally:
            site.__exit__(None, None, None)

    def test_a_port_that_is_taken(self, site: Site) -> None:
        """Though the kernel would let us share it, being the same user."""
        other = Site(roles=(), workers=2)
        try:
            text = other.config_file.read_text()
            listen = f'[[listen]]\nrole = "mx"\nendpoint = "tcp:{site.port("mx")}:interface=127.0.0.1"\n'
            other.config_file.write_text(text + listen)
            with pytest.raises(RuntimeError, match="Address already in use"):
                other.start()
        finally:
            other.__exit__(None, None, None)

    def test_no_parent_any_more_when_it_is_up(self) -> None:
        with Site(roles=("mx",)) as other, socket.create_server(("127.0.0.1", 0)) as port:
            other.stop()
            parent, child = socket.socketpair()
            lock = os.open(other.directory / "data/lock", os.O_RDWR)
            text = other.config_file.read_text()
            orders = {
                **{"worker": 0, "workers": 2, "former": [], "parts": 2, "path": str(other.config_file)},
                **{
                    "first": text,
                    "text": text,
                    "sockets": [[port.fileno()] * 2],
                    "lock": lock,
                    "commands": -1,
                    "missing": [],
                },
            }
            parent.sendall(json.dumps(orders).encode() + b"\n")
            parent.close()
            options = ["--worker", "0", "--channel", str(child.fileno())]
            command = [*other.command[:-2], *options]
            descriptors = (child.fileno(), lock, port.fileno())
            done = subprocess.run(command, pass_fds=descriptors, capture_output=True, timeout=120, text=True)
            assert done.returncode == 1
            assert "mta: [Errno 32] Broken pipe" in done.stderr

    def test_unix_sockets(self) -> None:
        site = Site(roles=("mx",), workers=2)
        path = Path(site.directory, "lmtp")
        try:
            text = site.config_file.read_text()
            site.config_file.write_text(
                text + f'[[listen]]\nrole = "lmtp"\nendpoint = "unix:{path}:mode=600"\n'
            )
            site.start()
            assert path.stat().st_mode & 0o777 == 0o600
            for _ in range(6):
                with smtplib.LMTP(str(path)) as client:
                    client.sendmail("dave@example.org", ["alice@example.test"], "Subject: x\r\n\r\nx\r\n")
            site.wait_for(lambda: len(site.maildir("alice")) == 6)
            pid = site.control("status")["workers"][0]["pid"]
            os.kill(pid, signal.SIGTERM)  # in order: the path stays, for the others and the next one
            site.wait_for(lambda: everybody_up(site, restarts=1))
            assert path.exists()
            site.stop()
            assert not path.exists()
        finally:
            site.__exit__(None, None, None)
