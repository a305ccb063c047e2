"""The real server in a subprocess: what its users see, and what a crash or a full disk leaves."""

from __future__ import annotations

import imaplib
import os
import poplib
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from twisted_mta.testing.site import PASSWORD, Site

TLS = ssl._create_unverified_context()
MESSAGE = (
    b"From: dave@example.org\r\nSubject: dots and such\r\n\r\n.one\r\n..two\r\n\xc3\xbc\r\n"
    + b"x" * 990
    + b"\r\n\r\n"
)


def send(port: int, recipient: str, message: bytes = MESSAGE, sender: str = "dave@example.org") -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail(sender, [recipient], message)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site(aliases="sales: bob\n") as running:
        yield running


def test_sent_to_an_alias_and_read_byte_for_byte(site: Site) -> None:
    before = len(site.maildir("bob"))
    send(site.port("mx"), "sales@example.test")
    site.wait_for(lambda: len(site.maildir("bob")) > before)

    pop = poplib.POP3("127.0.0.1", site.port("pop3"), timeout=30)
    pop.stls(TLS)
    pop.user("bob@example.test")
    pop.pass_(PASSWORD)
    count, _ = pop.stat()
    by_pop = b"\r\n".join(pop.retr(count)[1]) + b"\r\n"
    pop.quit()
    with imaplib.IMAP4_SSL("127.0.0.1", site.port("imaps"), ssl_context=TLS, timeout=30) as imap:
        imap.login("bob", PASSWORD)
        imap.select("INBOX", readonly=True)
        _, ((head, by_imap), _) = imap.fetch(str(count), "(RFC822.SIZE BODY.PEEK[])")  # type: ignore[misc]
    assert by_imap == by_pop
    assert f"RFC822.SIZE {len(by_imap)} ".encode() in head
    trace, found, _ = by_imap.partition(MESSAGE)
    assert found
    assert re.match(
        rb"Return-Path: <dave@example.org>\r\nDelivered-To: bob@example.test\r\nReceived: from ", trace
    )


def test_status_tells_the_python(site: Site) -> None:
    assert site.control("status")["python"].startswith(("CPython 3.", "PyPy 7."))


def test_submission_needs_tls_and_login(site: Site) -> None:
    with smtplib.SMTP("127.0.0.1", site.port("submission"), timeout=30) as client:
        client.ehlo("client")
        assert not client.has_extn("auth")
        assert client.docmd("MAIL FROM:<alice@example.test>")[0] == 530
        client.starttls(context=TLS)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("alice@example.test", "wrong")
        client.login("alice@example.test", PASSWORD)
        before = len(site.maildir("bob"))
        client.sendmail("alice@example.test", ["bob@example.test"], b"Subject: x\r\n\r\n")
        site.wait_for(lambda: len(site.maildir("bob")) > before)
    assert b"with ESMTPSA" in site.maildir("bob")[-1].read_bytes()


def test_a_session_may_not_go_on_without_a_message(site: Site) -> None:
    before = len(site.maildir("bob"))
    with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
        for _ in range(2):
            client.ehlo("client")
            for _ in range(90):
                assert client.noop()[0] == client.rset()[0] == 250
            client.sendmail("dave@example.org", ["bob@example.test"], MESSAGE)
        for _ in range(200):
            assert client.noop()[0] == 250
        code, text = client.noop()
        assert (code, text[:6]) == (421, b"4.7.0 ")
        client.close()
    site.wait_for(lambda: len(site.maildir("bob")) == before + 2)


def test_uids_last_over_a_restart() -> None:
    def look(site: Site) -> object:
        with imaplib.IMAP4_SSL("127.0.0.1", site.port("imaps"), ssl_context=TLS, timeout=30) as imap:
            imap.login("bob@example.test", PASSWORD)
            imap.select("INBOX", readonly=True)
            return imap.response("UIDVALIDITY"), imap.uid("SEARCH", "ALL")

    with Site() as site:
        for _ in range(3):
            send(site.port("mx"), "bob@example.test")
        site.wait_for(lambda: len(site.maildir("bob")) == 3)
        first = look(site)
        site.stop()
        site.start()
        assert look(site) == first


def test_lmtp_answers_for_each_recipient() -> None:
    with Site(roles=("lmtp",)) as site, smtplib.LMTP("127.0.0.1", site.port("lmtp"), timeout=30) as client:
        client.ehlo("client")
        client.mail("dave@example.org")
        assert [client.rcpt(f"{name}@example.test")[0] for name in ("alice", "nobody", "bob")] == [
            250,
            550,
            250,
        ]
        assert client.data(MESSAGE)[0] == 250
        assert client.getreply()[0] == 250
        site.wait_for(lambda: site.maildir("alice") and site.maildir("bob"))


def test_chunks_and_a_notice_of_success(site: Site) -> None:
    """A message in BDAT chunks to an account, with NOTIFY=SUCCESS: it arrives, and the sender hears of it."""
    subject = b"Subject: in chunks\r\n\r\n"
    with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
        client.ehlo("client")
        assert client.has_extn("chunking")
        client.mail("alice@example.test", ["RET=HDRS", "ENVID=abc+2B"])
        client.rcpt("bob@example.test", ["NOTIFY=SUCCESS", "ORCPT=rfc822;bob@example.test"])
        client.send(b"BDAT %d\r\n" % len(subject) + subject + b"BDAT 7 LAST\r\n.\r\nab\r\n")
        assert [client.getreply()[0] for _ in range(2)] == [250, 250]
    notice = site.wait_for(lambda: [path for path in site.maildir("alice") if b"abc+" in path.read_bytes()])[
        0
    ].read_bytes()
    assert b"\nAction: delivered\n" in notice
    assert b"\nOriginal-Recipient: rfc822; bob@example.test\n" in notice
    arrived = [path.read_bytes() for path in site.maildir("bob")]
    assert [
        message
        for message in arrived
        if message.endswith(b"\n\n.\nab\n") and b"Subject: in chunks" in message
    ]


def test_shutdown_tells_open_sessions() -> None:
    with Site(roles=("mx",)) as site, socket.create_connection(("127.0.0.1", site.port("mx")), 30) as client:
        file = client.makefile("rb")
        assert file.readline().startswith(b"220 ")
        site.stop()
        assert file.readline().startswith(b"421 4.3.2 ")
        assert file.readline() == b""


def test_reload_by_signal_and_a_bad_file_changes_nothing() -> None:
    with Site(top='greeting = "one"\n', roles=("mx",)) as site:
        text = site.config_file.read_text()
        assert banner(site) == "220 mx.example.test ESMTP one"
        site.config_file.write_text(text.replace('"one"', '"two"'))
        assert site.process is not None
        site.process.send_signal(signal.SIGHUP)
        site.wait_for(lambda: banner(site) == "220 mx.example.test ESMTP two")
        site.config_file.write_text(text.replace('"one"', "3"))
        result = site.control("reload")
        assert result["failed"]
        assert "greeting" in result["problems"][0]
        assert banner(site) == "220 mx.example.test ESMTP two"


def banner(site: Site) -> str:
    with socket.create_connection(("127.0.0.1", site.port("mx")), 30) as client:
        return client.makefile("rb").readline().decode().strip()


def test_new_accounts_and_aliases_are_noticed() -> None:
    with Site(roles=("mx",)) as site:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(site.port("mx"), "new@example.test")
        site.alias_file.write_text("new: alice\n")

        def accepted() -> bool:
            try:
                send(site.port("mx"), "new@example.test")
            except smtplib.SMTPRecipientsRefused:
                return False
            return True

        site.wait_for(accepted)
        site.wait_for(lambda: site.maildir("alice"))


def test_second_server_on_the_same_data_is_refused() -> None:
    with Site(roles=("mx",)) as site:
        done = subprocess.run(site.command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        assert "another server is running" in done.stdout + done.stderr
        assert banner(site).startswith("220 ")


def test_busy_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = f'[[listen]]\nrole = "mx"\nendpoint = "tcp:{port}:interface=127.0.0.1"\n'
        site = Site(listen, roles=())
        with pytest.raises(
            RuntimeError, match=f"mta: can't listen on tcp:{port}:interface=127.0.0.1 .*in use"
        ):
            site.start()
        assert "Traceback" not in site.log()


def test_relay_between_two_servers() -> None:
    with Site(roles=("mx",), domain="example.net", accounts=("carol",)) as remote:
        route = f'[relay]\n[relay.routes]\n"example.net" = "127.0.0.1:{remote.port("mx")}"\n'
        lists = (
            '[[list]]\naddress = "team@example.test"\nowner = "alice@example.test"\n'
            'members = ["alice@example.test", "bob@example.test", "carol@example.net"]\n'
        )
        with Site(lists + route, roles=("mx",)) as site:
            send(site.port("mx"), "team@example.test")
            site.wait_for(lambda: site.maildir("alice") and site.maildir("bob"))
            remote.wait_for(lambda: remote.maildir("carol"))
            copy = remote.maildir("carol")[0].read_bytes()
    assert copy.startswith(b"Return-Path: <team-bounces@example.test>\n")
    assert b"List-Id: <team.example.test>\n" in copy
    assert b"using TLSv1.3" in copy, "STARTTLS is used where it is offered"


def test_kill_9_right_after_the_250() -> None:
    """Whatever was accepted is there after the restart, and there once."""
    accepted: list[str] = []
    with Site(roles=("mx",)) as site:
        for number in range(4):
            port = site.port("mx")
            threads = [
                threading.Thread(target=flood, args=(port, f"{number}-{n}", accepted)) for n in range(4)
            ]
            goal = len(accepted) + 30
            for thread in threads:
                thread.start()
            site.wait_for(lambda goal=goal: len(accepted) >= goal)
            site.kill()
            for thread in threads:
                thread.join()
            site.start()
        wanted = Counter(accepted)
        site.wait_for(lambda: set(wanted) <= set(delivered(site)))
        site.wait_for_empty_queue()
        copies = Counter(delivered(site))
    assert set(wanted) <= set(copies)
    assert [name for name, count in copies.items() if count != 1] == []


def flood(port: int, name: str, accepted: list[str]) -> None:
    """Send messages over one connection until the server dies; note each that got its 250."""
    try:
        client = smtplib.SMTP("127.0.0.1", port, timeout=30)
        for n in range(10000):
            identity = f"{name}-{n}"
            client.sendmail("dave@example.org", ["bob@example.test"], f"Subject: {identity}\r\n\r\n")
            accepted.append(identity)
    except (smtplib.SMTPException, OSError):
        return


def delivered(site: Site) -> list[str]:
    return [
        match[1]
        for path in site.maildir("bob")
        if (match := re.search(r"^Subject: (\S+)$", path.read_text(), re.M))
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes of file system."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root can mount a small file system")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def try_to_send(port: int, message: bytes) -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo("client")
        client.mail("dave@example.org")
        client.rcpt("carol@example.net")
        return client.data(message)


def test_full_disk(small_disk: Path) -> None:
    """452 when there is no room, nothing acknowledged is lost, and it goes on when there is room again."""
    down = '[relay]\nnetworks = ["127.0.0.0/8"]\n[relay.routes]\n"example.net" = "127.0.0.1:1"\n[limits]\ndisk_reserve = 0\n'
    with Site(down, roles=("mx",)) as site:
        site.stop()
        (site.directory / "data").rename(site.directory / "unused")
        (site.directory / "data").symlink_to(small_disk)
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 1_500_000)
        site.start()
        accepted = 0
        for lines in (100, 1):
            big = b"Subject: big\r\n\r\n" + (b"y" * 900 + b"\r\n") * lines
            code = 250
            while code == 250:
                code, text = try_to_send(site.port("mx"), big)
                accepted += code == 250
            assert (code, text[:6]) == (452, b"4.3.1 ")
        assert accepted > 3
        ballast.unlink()
        send(site.port("mx"), "carol@example.net")
        site.kill()
        site.start()
        messages = site.control("queue.list")["messages"]
        assert len(messages) == accepted + 1
        assert os.path.islink(site.directory / "data")


def test_mail_is_refused_before_the_disk_is_full(small_disk: Path) -> None:
    """At MAIL by the announced size, while a message comes in, and for all when the reserve is reached."""
    # It asks by MAIL and RSET, fifty times a second, whether the server has noticed.
    with Site('[limits]\ndisk_reserve = "1M"\nidle_commands = 10000\n', roles=("mx",)) as site:
        site.stop()
        (site.directory / "data").rename(site.directory / "unused")
        (site.directory / "data").symlink_to(small_disk)
        site.start()
        disk = site.control("status")["disk of the queue"]
        assert (disk["reserve"], disk["mail"]) == (1 << 20, "accepted")
        with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
            client.ehlo("client")
            fits = disk["free"] - (1 << 20) - 100_000
            assert client.mail("dave@example.org", [f"SIZE={fits + 200_000}"])[0] == 452  # RFC 1870 §6.1
            assert client.mail("dave@example.org", [f"SIZE={fits}"])[0] == 250
            client.rcpt("alice@example.test")
            big = b"Subject: big\r\n\r\n" + (b"y" * 900 + b"\r\n") * (disk["free"] // 900)
            assert client.data(big)[0] == 452
            # What was there of it is dropped.
            site.wait_for(lambda: site.control("status")["disk of the queue"]["mail"] == "accepted")
            (small_disk / "ballast").write_bytes(b"x" * (fits + 150_000))
            site.wait_for(lambda: client.mail("dave@example.org")[0] == 452 or client.rset() is None)
            assert site.control("status")["disk of the queue"]["mail"].startswith("refused: ")
            (small_disk / "ballast").unlink()
            site.wait_for(lambda: client.mail("dave@example.org")[0] == 250)
        send(site.port("mx"), "alice@example.test")


def test_xclient_from_a_trusted_filter_only() -> None:
    """The client that it names is judged in its place: here, one that may not relay."""
    relay = '[relay]\nnetworks = ["127.0.0.0/8"]\nxclient_networks = ["127.0.0.1"]\n'
    with Site(relay, roles=("mx",)) as site, smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
        client.ehlo("filter")
        assert client.has_extn("xclient")
        client.mail("dave@example.org")
        assert client.rcpt("carol@example.net")[0] == 250
        client.rset()
        assert (
            client.docmd("XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=x HELO=client.example.org")[0] == 220
        )
        client.ehlo("client.example.org")
        client.mail("dave@example.org")
        assert client.rcpt("carol@example.net")[0] == 550
        assert client.rcpt("bob@example.test")[0] == 250
        client.data(MESSAGE)
        site.wait_for(lambda: site.maildir("bob"))
        assert b"Received: from client.example.org ([192.0.2.7])" in site.maildir("bob")[0].read_bytes()
        assert client.docmd("XCLIENT ADDR=nowhere")[0] == 501


def test_source_address_and_name_by_sender() -> None:
    with Site(domain="example.net", accounts=("carol",), roles=("mx",)) as remote:
        config = (
            f'[relay]\nnetworks = ["127.0.0.0/8"]\n[relay.routes]\n"example.net" = "127.0.0.1:{remote.port("mx")}"\n'
            '[[relay.source]]\nsenders = ["brand.test"]\nbind = ["127.0.0.2"]\nhelo = "out.brand.test"\n'
        )
        with Site(config, roles=("mx",)) as site, smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
            client.sendmail("news@brand.test", ["carol@example.net"], b"Subject: one\r\n\r\n")
            client.sendmail("alice@example.test", ["carol@example.net"], b"Subject: two\r\n\r\n")
            remote.wait_for(lambda: len(remote.maildir("carol")) == 2)
            received = {
                text.partition("Subject: ")[2].split()[0]: text
                for text in (path.read_text() for path in remote.maildir("carol"))
            }
        assert "from out.brand.test" in received["one"]
        assert "[127.0.0.2]" in received["one"]
        assert "from mx.example.test" in received["two"]
        assert "[127.0.0.1]" in received["two"]
