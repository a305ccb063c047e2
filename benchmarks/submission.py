"""Messages a second that users submit: over TLS and with a login for each message, until they are in a Maildir. Against
Postfix with Dovecot's SASL on the same machine.

    python -m benchmarks.submission [--messages 1000] [--rounds 3] [--json FILE]

Each message has a connection of its own: EHLO, STARTTLS with a full handshake, AUTH PLAIN, one message, QUIT. Both servers
have the same certificate (ECDSA P-256). Ours has the password as Argon2id and remembers for a while that it was right, as
it does by default. Dovecot would compute the hash for each login, some 0.2 s, and so it has the password in plain: compared
is all but the hash. The load comes from a process for each session,
written in Python too, so that a part of the time is its own, the same for both: what the servers differ by is more than
the ratio says. Needs root, as Postfix and Dovecot do.
"""

from __future__ import annotations

import argparse
import base64
import multiprocessing
import os
import socket
import ssl
import time

from benchmarks.common import Rates, Server, rounds_of, run_comparison, whose_turn
from tests.peers import Dovecot, Postfix, wait_for
from twisted_mta.testing.site import PASSWORD, Site

SENDER, RECIPIENT = "alice@example.test", "bob@example.test"
_CONFIG = """\
[limits]
connections_per_address = 1000

[submission]
messages_per_hour = 0
messages_per_day = 0
recipients_per_hour = 0
recipients_per_day = 0
"""
_HEADER = (
    f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nSubject: a benchmark\r\nMessage-ID: <1@client.example.org>\r\n"
    "Date: Sat, 21 Nov 2026 10:00:00 +0000\r\n\r\n"
).encode()
_LINE = b"x" * 70 + b"\r\n"


class _Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._rest = b""

    def secure(self, context: ssl.SSLContext) -> None:
        self._socket = context.wrap_socket(self._socket)

    def say(self, command: bytes, replies: int = 1) -> None:
        """Send, and wait for so many good replies."""
        if command:
            self._socket.sendall(command)
        while replies:
            line, newline, rest = self._rest.partition(b"\r\n")
            if not newline:
                data = self._socket.recv(65536)
                if not data:
                    raise RuntimeError(f"closed after {command[:40]!r}")
                self._rest += data
                continue
            self._rest = rest
            if line[:1] not in b"23":
                raise RuntimeError(f"{command[:40]!r} was answered with {line!r}")
            replies -= line[3:4] != b"-"

    def close(self) -> None:
        self._socket.close()


def submit(port: int, count: int, size: int) -> None:
    """Submit `count` messages of about `size` octets, one after the other."""
    context = ssl._create_unverified_context()
    login = base64.b64encode(f"\0{SENDER}\0{PASSWORD}".encode())
    message = _HEADER + _LINE * max(1, (size - len(_HEADER)) // len(_LINE)) + b".\r\n"
    envelope = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
    for _ in range(count):
        client = _Client(port)
        client.say(b"")
        client.say(b"EHLO client.example.org\r\n")
        client.say(b"STARTTLS\r\n")
        client.secure(context)
        client.say(b"EHLO client.example.org\r\n")
        client.say(b"AUTH PLAIN " + login + b"\r\n")
        client.say(envelope, 3)
        client.say(message)
        client.say(b"QUIT\r\n")
        client.close()


def measure(server: Server, options: argparse.Namespace) -> float:
    """Messages a second of one run, from the first connection until the last message is in the Maildir."""
    each = -(-options.messages // options.sessions)
    goal = server.finished() + each * options.sessions
    fork = multiprocessing.get_context("fork")
    clients = [
        fork.Process(target=submit, args=(server.port, each, options.size)) for _ in range(options.sessions)
    ]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
        if client.exitcode:
            raise RuntimeError(f"a client of {server.name} failed")
    wait_for(lambda: server.finished() >= goal, f"{server.name} to finish", 300)
    return each * options.sessions / (time.perf_counter() - began)


def submission(options: argparse.Namespace) -> dict[str, Rates]:
    """Mode -> server -> rates, round by round."""
    rates: Rates = {}
    with Site(_CONFIG, roles=("submission",), workers=options.workers) as site:
        folder = site.directory
        new = folder / "mail" / RECIPIENT / "new"
        plain = folder / "plain"
        plain.write_text(f"{SENDER}:{{PLAIN}}{PASSWORD}::::::\n", encoding="utf-8")
        with (
            Dovecot(users=plain, maildir=f"{folder}/mail/%u", sasl=True) as dovecot,
            Postfix(certificate=folder / "cert.pem", key=folder / "key.pem", sasl=dovecot.sasl) as postfix,
        ):
            servers = [
                Server("postfix", postfix.port, postfix.delivered),
                Server(
                    "twisted_mta",
                    site.port("submission"),
                    lambda: len(os.listdir(new)) if new.is_dir() else 0,
                ),
            ]
            for number in rounds_of(options, options.messages):
                for server in whose_turn(servers, number):
                    rate = measure(server, options)
                    if number > 0:
                        rates.setdefault(server.name, []).append(rate)
                        print(f"round {number}: {server.name} {rate:.0f}/s", flush=True)
    return {"TLS and a login for each message": rates}


if __name__ == "__main__":
    run_comparison(__doc__ or "", submission)
