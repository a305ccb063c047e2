"""`mta` against a control socket and an SMTP listener that are really there."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import defer, reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from twisted_mta.admin.client import ServerDown, UnknownCommand, call
from twisted_mta.admin.errors import AdminError
from twisted_mta.admin.main import main
from twisted_mta.service.control import AlreadyRunning, ControlError, ControlServer
from twisted_mta.testing.site import python

CONFIG = """
hostname = "mail.example.test"
domains = ["example.test"]
postmaster = "alice"
data = "data"
[[listen]]
role = "mx"
endpoint = "tcp:{port}:interface=127.0.0.1"
"""


class ControlSocketTests(TestCase):
    """The server's side on a real UNIX socket, with the blocking client in a thread."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "data", "control")

        async def echo(arguments: Mapping[str, Any]) -> Any:
            return dict(arguments)

        async def fail(arguments: Mapping[str, Any]) -> Any:
            raise ControlError("no")

        self.handlers = {"echo": echo, "fail": fail}

    def start(self) -> ControlServer:
        server = ControlServer(self.path, self.handlers, reactor)
        server.startService()
        self.addCleanup(server.stopService)
        return server

    async def test_calls(self) -> None:
        self.start()
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(self.path.parent).st_mode & 0o777, 0o700)
        big = {"text": "é" * 100_000}
        self.assertEqual(await deferToThread(call, self.path, "echo", big), big)
        with self.assertRaisesRegex(AdminError, "^no$"):
            await deferToThread(call, self.path, "fail")
        with self.assertRaises(UnknownCommand):
            await deferToThread(call, self.path, "nope")

    async def test_second_server_is_refused(self) -> None:
        self.start()
        second = ControlServer(self.path, self.handlers, reactor)
        self.assertRaises(AlreadyRunning, second.startService)
        self.assertEqual(await deferToThread(call, self.path, "echo"), {})

    async def test_socket_of_a_dead_server_is_replaced(self) -> None:
        self.path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.path))
        self.start()
        self.assertEqual(await deferToThread(call, self.path, "echo"), {})

    async def test_stopped(self) -> None:
        server = ControlServer(self.path, self.handlers, reactor)
        server.startService()
        await defer.maybeDeferred(server.stopService)
        self.assertFalse(self.path.exists())
        with self.assertRaises(ServerDown):
            await deferToThread(call, self.path, "echo")


class FakeServer:
    """One SMTP session: answers each command by its table, and remembers what it got."""

    def __init__(self, answers: Mapping[str, str] = {}) -> None:
        self.answers = {"": "220 hi", "DATA": "354 go", ".": "250 taken", **answers}
        self.commands: list[str] = []
        self.data = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as connection, connection.makefile("rwb") as file:
            file.write(self.answers[""].encode() + b"\r\n")
            file.flush()
            for line in file:
                command = line.decode().rstrip("\r\n")
                self.commands.append(command)
                reply = self.answers.get(command, self.answers.get(command[:4].upper(), "250 ok"))
                file.write(reply.replace("\n", "\r\n").encode() + b"\r\n")
                file.flush()
                if command.upper() == "DATA" and reply.startswith("354"):
                    while (line := file.readline()) not in (b".\r\n", b""):
                        self.data += line
                    file.write(self.answers["."].encode() + b"\r\n")
                    file.flush()
                if command.upper() == "QUIT":
                    return

    def close(self) -> None:
        self._thread.join(60)


class SendmailTests(TestCase):
    """mta sendmail, its server played by a thread."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = Path(directory.name)

    @contextlib.contextmanager
    def server(self, **answers: str) -> Iterator[FakeServer]:
        server = FakeServer({name.replace("_", " "): answer for name, answer in answers.items()})
        self.configure(server.port)
        yield server
        server.close()

    def configure(self, port: int) -> None:
        (self.dir / "mta.toml").write_text(CONFIG.format(port=port))

    def sendmail(self, *argv: str, stdin: bytes = b"Subject: hi\n\nhello\n") -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        ):
            status = main(["--config", str(self.dir / "mta.toml"), "sendmail", *argv])
        return status, out.getvalue(), err.getvalue()

    def test_sent(self) -> None:
        with self.server(EHLO="250-hi\n250-SIZE 1000\n250 8BITMIME") as server:
            status, out, err = self.sendmail(
                "-f", "a@example.test", "bob", "C@d.example", stdin="Subject: hi\n\n.é\n..\n.\nmore".encode()
            )
        self.assertEqual((status, out, err), (0, "", ""))
        self.assertEqual(server.commands[0], "ehlo mail.example.test")
        self.assertRegex(server.commands[1], r"(?i)\Amail FROM:<a@example.test> size=\d+ BODY=8BITMIME\Z")
        self.assertEqual(server.commands[2:4], ["rcpt TO:<bob@example.test>", "rcpt TO:<C@d.example>"])
        self.assertTrue(server.data.endswith("Subject: hi\r\n\r\n..é\r\n...\r\n".encode()))
        self.assertIn(b"From: ", server.data)

    def test_recipients_of_the_header_and_the_null_sender(self) -> None:
        with self.server() as server:
            status, _, _ = self.sendmail(
                "-t", "-f", "<>", "-v", stdin=b"To: bob@example.test, Bob@example.test\nBcc: eve\n\nx\n"
            )
        self.assertEqual(status, 0)
        self.assertEqual(
            server.commands[1:4],
            ["mail FROM:<>", "rcpt TO:<Bob@example.test>", "rcpt TO:<eve@example.test>"],
        )
        self.assertNotIn(b"eve", server.data)

    def test_unknown_recipient_does_not_stop_the_others(self) -> None:
        with self.server(**{"rcpt_TO:<nobody@example.test>": "550 5.1.1 no such user"}) as server:
            status, _, err = self.sendmail("nobody", "bob")
        self.assertEqual((status, err), (67, "sendmail: nobody@example.test: 550 5.1.1 no such user\n"))
        self.assertIn(b"hello", server.data)

    def test_relaying_denied_is_no_unknown_user(self) -> None:
        with self.server(RCPT="550 5.7.1 relaying denied"):
            self.assertEqual(self.sendmail("bob@example.net")[0], 69)

    def test_nobody_left(self) -> None:
        with self.server(RCPT="550 5.1.1 no such user") as server:
            status, _, _ = self.sendmail("nobody")
        self.assertEqual(status, 67)
        self.assertNotIn("data", [command.lower() for command in server.commands])

    def test_anything_temporary_sends_to_nobody(self) -> None:
        with self.server(**{"rcpt_TO:<late@example.test>": "451 4.7.1 later"}) as server:
            status, _, err = self.sendmail("late", "bob")
        self.assertEqual(status, 75)
        self.assertIn("late@example.test: 451 4.7.1 later", err)
        self.assertEqual(server.data, b"")

    def test_refusals(self) -> None:
        cases = [
            ({"": "421 busy"}, 75),
            ({"": "554 go away"}, 69),
            ({"MAIL": "451 later"}, 75),
            ({"MAIL": "552 too large"}, 69),
            ({"DATA": "451 later"}, 75),
            ({"DATA": "554 no"}, 69),
            ({".": "452 4.3.1 disk full"}, 75),
            ({".": "554 5.6.0 no"}, 69),
        ]
        for answers, expected in cases:
            with self.server(**answers):
                status, out, err = self.sendmail("bob")
            self.assertEqual((status, out), (expected, ""), answers)
            self.assertIn(next(iter(answers.values())), err)

    def test_server_down(self) -> None:
        with socket.socket() as nobody:  # it has the port, so that nobody else listens there meanwhile
            nobody.bind(("127.0.0.1", 0))
            self.configure(nobody.getsockname()[1])
            status, _, err = self.sendmail("bob")
        self.assertEqual(status, 75)
        self.assertIn("no server answers at 127.0.0.1 port", err)

    def test_server_that_hangs_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.configure(listener.getsockname()[1])
            thread = threading.Thread(target=lambda: listener.accept()[0].close())
            thread.start()
            status, _, err = self.sendmail("bob")
            thread.join()
        self.assertEqual(status, 75)
        self.assertIn("did not take the message", err)

    def test_wrong_usage(self) -> None:
        self.configure(25)
        cases = [((), 64), (("-t",), 65), (("a b",), 67), (("-f", "a b", "bob"), 65), (("-bx",), 64)]
        for argv, expected in cases:
            self.assertEqual(self.sendmail(*argv)[0], expected, argv)
        self.assertEqual(self.sendmail("-bi")[0], 0)
        self.assertEqual(self.sendmail("-bp")[2].count("there is no queue"), 1)

    def test_address_beyond_ascii(self) -> None:
        with self.server(EHLO="250-hi\n250 SMTPUTF8") as server:
            self.assertEqual(self.sendmail("-f", "a@example.test", "zoë@example.test")[0], 0)
        self.assertIn("SMTPUTF8", server.commands[1])
        self.assertEqual(server.commands[2], "rcpt TO:<zoë@example.test>")
        with self.server():
            self.assertEqual(self.sendmail("zoë@example.test")[0], 69)

    def test_bs_joins_input_and_output_to_the_server(self) -> None:
        with self.server(QUIT="221 bye") as server:
            done = self.run_program(
                "mta", "--config", str(self.dir / "mta.toml"), "sendmail", "-bs", stdin="EHLO x\r\nQUIT\r\n"
            )
        self.assertEqual(done.stdout, "220 hi\n250 ok\n221 bye\n")
        self.assertEqual(done.returncode, 0)
        self.assertEqual(server.commands, ["EHLO x", "QUIT"])

    def test_bs_takes_lines_that_end_with_lf(self) -> None:
        """As people type them, and scripts pipe them: the message must not wait for its end for ever."""
        typed = "EHLO x\nMAIL FROM:<a@b.example>\nRCPT TO:<bob@example.test>\nDATA\nSubject: hi\n\nhello\n.\nQUIT\n"
        with self.server() as server:
            done = self.run_program(
                "mta", "--config", str(self.dir / "mta.toml"), "sendmail", "-bs", stdin=typed
            )
        self.assertEqual((done.returncode, done.stdout.splitlines()[-2:]), (0, ["250 taken", "250 ok"]))
        self.assertEqual(server.data, b"Subject: hi\r\n\r\nhello\r\n")

    def test_called_as_sendmail_and_mailq(self) -> None:
        os.environ["MTA_CONFIG"] = str(self.dir / "mta.toml")
        self.addCleanup(os.environ.pop, "MTA_CONFIG")
        with self.server() as server:
            done = self.run_program("/usr/sbin/sendmail", "-i", "bob", stdin="hello\n")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        self.assertIn(b"hello", server.data)
        self.assertIn("there is no queue", self.run_program("mailq").stderr)
        self.assertEqual(self.run_program("newaliases").returncode, 0)

    def run_program(self, name: str, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        code = (
            f"import sys; sys.argv[0] = {name!r}; from twisted_mta.admin.main import main; sys.exit(main())"
        )
        return subprocess.run(
            [python(), "-c", code, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
