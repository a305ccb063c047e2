"""The pure part of commands: their arguments, their environment, and what their end means."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.commands import (
    MAX_OUTPUT,
    CommandError,
    Delivery,
    Exit,
    environment,
    judge,
    printable,
    split_command,
)
from twisted_mta.core.queue import Delivered, Failed, TryLater

BOB = Address("bob", "example.test")


class SplitTests(SynchronousTestCase):
    def test_words_and_quotes(self) -> None:
        for text, wanted in (
            ("/bin/cat", ("/bin/cat",)),
            ("/bin/x -f  a@b", ("/bin/x", "-f", "a@b")),
            ("/bin/x 'a b' \"c d\" e\\ f", ("/bin/x", "a b", "c d", "e f")),
            ("/bin/x # no comment", ("/bin/x", "#", "no", "comment")),
            ("/bin/x --to=*", ("/bin/x", "--to=*")),
            ('/bin/x ""', ("/bin/x", "")),
        ):
            self.assertEqual(split_command(text, shell=False), wanted)

    def test_what_needs_a_shell_is_refused(self) -> None:
        for text in ("a | b", "a > f", "a;b", "a && b", "a $HOME", "a `b`", "(a)"):
            with self.assertRaisesRegex(CommandError, "means something to a shell only"):
                split_command(text, shell=False)

    def test_a_shell(self) -> None:
        self.assertEqual(split_command("a | b > $X", shell=True), ("/bin/sh", "-c", "a | b > $X"))

    def test_nonsense(self) -> None:
        for text, why in (
            ("", "no command"),
            ("  ", "no command"),
            ("a\0b", "no command"),
            ("a 'b", "never closed"),
        ):
            with self.assertRaisesRegex(CommandError, why):
                split_command(text, shell=False)


class EnvironmentTests(SynchronousTestCase):
    def of(self, sender: Address | None) -> dict[str, str]:
        delivery = Delivery(queue_id="q1", sender=sender, recipient=BOB, original=Address("b", "old.example"))
        return dict(environment(delivery, user="filter", home="/srv/filter", path="/bin"))

    def test_all_there_is(self) -> None:
        self.assertEqual(
            self.of(Address("a", "b.example")),
            {
                "SENDER": "a@b.example",
                "RECIPIENT": "bob@example.test",
                "ORIGINAL_RECIPIENT": "b@old.example",
                "LOCAL": "bob",
                "DOMAIN": "example.test",
                "QUEUE_ID": "q1",
                "USER": "filter",
                "LOGNAME": "filter",
                "HOME": "/srv/filter",
                "SHELL": "/bin/sh",
                "PATH": "/bin",
                "LANG": "C.UTF-8",
            },
        )

    def test_what_a_sender_can_say(self) -> None:
        self.assertEqual(self.of(None)["SENDER"], "")
        self.assertEqual(self.of(Address("() { :;}; x", "b.example"))["SENDER"], '"()_{ :;}; x"@b.example')
        self.assertEqual(self.of(Address("a\nb\0", "b.example"))["SENDER"].count("_"), 2)


class JudgeTests(SynchronousTestCase):
    def test_the_codes_of_sysexits(self) -> None:
        for code, kind, status in (
            (0, Delivered, "2.0.0"),
            (1, Failed, "5.3.0"),
            (64, Failed, "5.3.5"),
            (65, Failed, "5.6.0"),
            (67, Failed, "5.1.1"),
            (68, Failed, "5.1.2"),
            (69, Failed, "5.3.0"),
            (71, TryLater, "4.3.0"),
            (74, TryLater, "4.3.0"),
            (75, TryLater, "4.3.0"),
            (77, Failed, "5.7.0"),
            (78, TryLater, "4.3.5"),
            (127, Failed, "5.3.0"),
        ):
            outcome = judge(Exit(code=code))
            self.assertIsInstance(outcome, kind, str(code))
            self.assertEqual(outcome.reply.enhanced, status)
            self.assertEqual(outcome.reply.code // 100, int(status[0]))

    def test_other_ends(self) -> None:
        for end, text in (
            (Exit(error="no such file"), "the command can't be run: no such file"),
            (Exit(late=True, signal=15), "the command took too long and was ended"),
            (Exit(signal=11, output="x"), "the command was killed by signal 11: x"),
        ):
            outcome = judge(end)
            self.assertIsInstance(outcome, TryLater)
            self.assertEqual(outcome.reply.text, text)

    def test_the_output_is_told(self) -> None:
        self.assertEqual(
            judge(Exit(code=1, output="no\x1b[2J\n\n  such ticket \n")).reply.text,
            "the command failed (it ended with 1): no?[2J / such ticket",
        )

    def test_a_status_in_the_output(self) -> None:
        for code, output, status, text in (
            (69, "5.7.1 not for you", "5.7.1", "not for you"),
            (75, "4.2.2 full", "4.2.2", "full"),
            (75, "5.7.1 no", "4.3.0", "5.7.1 no"),
            (69, "5.7.1x", "5.3.0", "5.7.1x"),
        ):
            reply = judge(Exit(code=code, output=output)).reply
            self.assertEqual(reply.enhanced, status)
            self.assertTrue(reply.text.endswith(f": {text}"), reply.text)

    def test_long_output_is_cut(self) -> None:
        self.assertEqual(printable("x" * 5000), "x" * MAX_OUTPUT + "...")
