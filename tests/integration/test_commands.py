"""Commands as real processes, through the helper."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.ordinary import python_for_all
from tests.peers import has_ended, wait_for
from twisted_mta.core.commands import SHELL
from twisted_mta.net import command_helper
from twisted_mta.net.commands import HelperError, identity, start_helper

_ENVIRONMENT = {"PATH": os.defpath, "GREETING": "hello"}


class HelperTests(SynchronousTestCase):
    """Speaks with the helper as the server does."""

    def setUp(self) -> None:
        self.directory = Path(os.path.realpath(self.mktemp()))
        self.directory.mkdir()
        with mock.patch("twisted_mta.net.commands.identity", return_value=pwd.getpwuid(os.geteuid())):
            self.socket, self.process = start_helper("whoever")
        self.socket.settimeout(60)
        self.addCleanup(self._end)
        self.number = 0

    def _end(self) -> None:
        self.socket.close()
        assert isinstance(self.process, subprocess.Popen)
        self.assertEqual(self.process.wait(60), 0)

    def start(self, script: str, message: bytes = b"", *, timeout: float = 30.0, **more: Any) -> int:
        self.number += 1
        request = {
            "id": self.number,
            "argv": [SHELL, "-c", script],
            "environment": _ENVIRONMENT,
            "directory": str(self.directory),
            "timeout": timeout,
            "grace": 5.0,
            **more,
        }
        with tempfile.TemporaryFile() as file:
            file.write(message)
            file.seek(0)
            socket.send_fds(self.socket, [json.dumps(request).encode()], [file.fileno()])
        return self.number

    def answer(self) -> Any:
        return json.loads(self.socket.recv(command_helper.MAX_REQUEST))

    def run_one(self, script: str, message: bytes = b"", **more: Any) -> Any:
        number = self.start(script, message, **more)
        answer = self.answer()
        self.assertEqual(answer["id"], number)
        return answer

    def run_late(self, script: str, **more: Any) -> Any:
        """Run it until its time is over. It makes the file `ready` once it is where it is to be found: on a busy machine
        that may take longer than the time it was given, and then it gets more.
        """
        ready = self.directory / "ready"
        for timeout in (0.3, 2.0, 15.0):
            answer = self.run_one(script, timeout=timeout, **more)
            self.assertTrue(answer["late"])
            if ready.exists():
                return answer
        raise AssertionError(f"it was never ready: {answer}")

    def test_input_output_and_code(self) -> None:
        answer = self.run_one("echo $GREETING; cat; echo oops >&2; exit 67", b"Subject: x\n")
        self.assertEqual((answer["code"], answer["signal"], answer["late"]), (67, 0, False))
        self.assertEqual(answer["output"], "hello\nSubject: x\noops\n")

    def test_the_environment_and_the_place_are_what_was_asked_for(self) -> None:
        with mock.patch.dict(os.environ, SECRET="1"):
            answer = self.run_one(
                "env | grep -v -e ^_= -e ^SHLVL= -e ^PWD= -e ^OLDPWD= | sort; pwd; umask; ls /proc/$$/fd"
            )
        lines = answer["output"].split("\n")
        self.assertEqual(lines[:4], ["GREETING=hello", f"PATH={os.defpath}", str(self.directory), "0077"])
        self.assertEqual(lines[4:8], ["0", "1", "2", ""][: len(lines[4:8])])

    def test_one_that_does_not_read(self) -> None:
        self.assertEqual(self.run_one("exit 0", b"x" * 5_000_000)["code"], 0)

    def test_one_that_never_stops_to_print(self) -> None:
        answer = self.run_one("head -c 20000000 /dev/zero | tr '\\0' x; exit 3")
        self.assertEqual(answer["code"], 3)
        self.assertEqual(answer["output"], "x" * command_helper.MAX_OUTPUT)

    def test_one_that_takes_too_long(self) -> None:
        answer = self.run_late("echo begun; : > ready; sleep 100")
        self.assertEqual((answer["signal"], answer["output"]), (signal.SIGTERM, "begun\n"))

    def test_what_it_started_is_ended_too(self) -> None:
        self.run_late("sleep 100 & echo $! > child; : > ready; sleep 100")
        child = int((self.directory / "child").read_text())
        wait_for(lambda: has_ended(child), "the child's end")

    def test_one_that_does_not_obey(self) -> None:
        answer = self.run_late("trap '' TERM; : > ready; while :; do sleep 0.1; done", grace=0.2)
        self.assertEqual(answer["signal"], signal.SIGKILL)

    def test_cancel(self) -> None:
        number = self.start("sleep 100")
        self.socket.send(json.dumps({"id": number, "cancel": True}).encode())
        self.assertEqual(self.answer()["signal"], signal.SIGTERM)
        self.socket.send(json.dumps({"id": number, "cancel": True}).encode())
        self.assertEqual(self.run_one("exit 0")["code"], 0)

    def test_one_process_of_the_server_that_is_killed_before_it_reads_is_not_the_end_of_the_others(
        self,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            socket.send_fds(self.socket, [b'{"join": true}'], [theirs.fileno()])
            theirs.close()
            request = {
                "id": 1,
                "argv": ["/nowhere"],
                "environment": {},
                "directory": "/",
                "timeout": 5,
                "grace": 5,
            }
            with open(os.devnull, "rb") as file:
                socket.send_fds(ours, [json.dumps(request).encode()], [file.fileno()])
            ours.settimeout(60)
            ours.recv(1, socket.MSG_PEEK)
        self.assertEqual(self.run_one("exit 4")["code"], 4)

    def test_no_descriptor(self) -> None:
        self.socket.send(json.dumps({"id": 7}).encode())
        self.assertEqual(self.answer(), {"id": 7, "error": "no descriptor is left for the message"})
        self.socket.send(b'{"join": true}')
        self.assertEqual(self.run_one("exit 4")["code"], 4)

    def test_many_at_a_time(self) -> None:
        numbers = {self.start(f"exit {code}"): code for code in range(20)}
        found = [self.answer() for _ in numbers]
        self.assertEqual({answer["id"]: answer["code"] for answer in found}, numbers)

    def test_a_child_that_keeps_printing_holds_up_nobody(self) -> None:
        wait = self.directory / "wait"
        os.mkfifo(wait)
        # It has the pipe of the output until somebody writes to `wait`, which is after the answer.
        answer = self.run_one("(read line < wait; : > ended; echo late) & echo soon")
        self.assertEqual((answer["code"], answer["output"]), (0, "soon\n"))
        wait.write_text("go\n")
        wait_for((self.directory / "ended").exists, "the child's end")

    def test_what_can_not_be_run(self) -> None:
        self.number += 1
        request = {
            "id": self.number,
            "argv": ["/nowhere/at/all"],
            "environment": {},
            "directory": "/",
            "timeout": 5,
            "grace": 5,
        }
        with tempfile.TemporaryFile() as file:
            socket.send_fds(self.socket, [json.dumps(request).encode()], [file.fileno()])
        self.assertIn("No such file", self.answer()["error"])
        self.assertIn("No such file", self.run_one("exit 0", directory="/nowhere")["error"])

    def test_the_end_of_the_server_ends_all(self) -> None:
        self.start("echo $$ > self; exec sleep 100")
        written = self.directory / "self"
        wait_for(lambda: written.exists() and written.read_text(), "the command")
        child = int(written.read_text())
        self.socket.close()
        assert isinstance(self.process, subprocess.Popen)
        self.assertEqual(self.process.wait(60), 0)
        self.assertFalse(Path(f"/proc/{child}").exists())

    def test_what_the_server_may_do_commands_may_not(self) -> None:
        """The unit of systemd lets the server bind low ports, by a capability that all it starts would inherit."""
        setpriv = shutil.which("setpriv")
        if os.geteuid() != 0 or setpriv is None:
            self.skipTest("needs root, and setpriv of util-linux")
        may_bind = ["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"]
        who = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        self._end()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(60)
        helper = [python_for_all(), "-I", command_helper.__file__, str(theirs.fileno())]
        self.process = subprocess.Popen([setpriv, *may_bind, *who, *helper], pass_fds=[theirs.fileno()])
        theirs.close()
        answer = self.run_one("grep -E '^Cap(Prm|Eff|Amb)' /proc/self/status", directory="/")
        self.assertEqual(
            answer["output"], "".join(f"Cap{one}:\t{'0' * 16}\n" for one in ("Prm", "Eff", "Amb"))
        )


class IdentityTests(SynchronousTestCase):
    def test_who_can_not_be(self) -> None:
        for user, why in (("no-such-user", "there is no user"), ("root", "never run as root")):
            with self.assertRaisesRegex(HelperError, why):
                identity(user)

    def test_ourselves_or_as_root_anybody(self) -> None:
        with mock.patch("os.geteuid", return_value=pwd.getpwnam("nobody").pw_uid):
            self.assertEqual(identity("nobody").pw_name, "nobody")
            with self.assertRaisesRegex(HelperError, "must be started as root, or as that user"):
                identity("daemon")
        with mock.patch("os.geteuid", return_value=0):
            self.assertEqual(identity("daemon").pw_name, "daemon")

    def test_root_gives_up_everything(self) -> None:
        if os.geteuid() != 0:
            self.skipTest(f"needs root, this is {getpass.getuser()}")
        with mock.patch("sys.executable", python_for_all()):
            ours, process = start_helper("nobody")
        assert isinstance(process, subprocess.Popen)
        self.addCleanup(process.wait)
        self.addCleanup(ours.close)
        ours.setblocking(True)
        ours.settimeout(60)
        nobody = pwd.getpwnam("nobody")
        request = {
            "id": 1,
            "argv": ["/usr/bin/id"],
            "environment": {},
            "directory": "/",
            "timeout": 10,
            "grace": 5,
        }
        with tempfile.TemporaryFile() as file:
            socket.send_fds(ours, [json.dumps(request).encode()], [file.fileno()])
        output = json.loads(ours.recv(command_helper.MAX_REQUEST))["output"]
        self.assertIn(f"uid={nobody.pw_uid}", output)
        self.assertNotIn("root", output)
        status = Path(f"/proc/{process.pid}/status").read_text()
        self.assertIn(f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}\n", status)
