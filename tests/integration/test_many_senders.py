"""Clients that would fill the memory: many with a message under way each, and one that reads no replies."""

from __future__ import annotations

import contextlib
import smtplib
import socket

from twisted_mta.testing.site import Site


def open_message(port: int) -> smtplib.SMTP:
    """A client that has sent DATA."""
    client = smtplib.SMTP("127.0.0.1", port, timeout=120)
    client.ehlo("client")
    client.mail("dave@example.org", ["SIZE=50000000"])
    client.rcpt("alice@example.test")
    assert client.docmd("DATA")[0] == 354
    return client


def test_messages_that_wait_for_their_end_are_on_the_disk() -> None:
    """Each of them is small enough for the memory, but not all of them."""
    line = b"x" * 78 + b"\r\n"
    with Site('[limits]\nmemory = "1M"\n', roles=("mx",)) as site, contextlib.ExitStack() as stack:
        clients = [open_message(site.port("mx")) for _ in range(30)]
        for client in clients:
            stack.callback(client.close)
        for number, client in enumerate(clients):
            client.send(b"Subject: %d\r\n\r\n" % number + line * 1000)

        def files() -> int:
            return len(list((site.directory / "data/queue/bodies/tmp").iterdir()))

        def in_memory() -> int:
            incoming: dict[str, int] = site.control("status")["messages coming in"]
            assert incoming["limit"] == 1 << 20
            return incoming["in memory"]

        # 2.4 MB came; what is over the limit goes to the disk, the oldest first.
        site.wait_for(lambda: files() >= 15 and in_memory() <= 1 << 20)
        for client in clients:
            client.send(line * 1000 + b".\r\n")
        for client in clients:
            assert client.getreply()[0] == 250
        site.wait_for(lambda: len(site.maildir("alice")) == len(clients))
        texts = sorted((path.read_bytes() for path in site.maildir("alice")), key=subject)
        assert [subject(text) for text in texts] == list(range(len(clients)))
        for text in texts:
            assert text.endswith(b"\n\n" + (b"x" * 78 + b"\n") * 2000)
        site.wait_for(lambda: in_memory() == files() == 0)


def subject(text: bytes) -> int:
    """The number of a message."""
    return int(text.partition(b"Subject: ")[2].split(maxsplit=1)[0])


def test_who_reads_no_replies_is_not_read_and_then_cut_off() -> None:
    with Site('[limits]\nsmtp_timeout = "2s"\n', roles=("mx",)) as site:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.connect(("127.0.0.1", site.port("mx")))
        client.settimeout(120)
        sent = 0
        with client, contextlib.suppress(ConnectionError):
            while True:
                sent += client.send(b"EHLO x\r\n" * 1000)
        # What the kernel takes on both sides, and what was answered until our buffers were full.
        assert sent < 10_000_000
        site.wait_for(lambda: site.control("status")["connections"] == 0)
