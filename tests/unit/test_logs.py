"""service.logs: what a line looks like, and that moving the file away is noticed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.service import logs
from twisted_mta.service.logs import Batches, LogFile, observer
from twisted_mta.store.log_events import LogEvent


class FakeReactor(Clock):
    """A reactor that may be running, and shuts down when it is told to."""

    def __init__(self, running: bool = False) -> None:
        super().__init__()
        self.running = running
        self.at_end: list[Callable[[], None]] = []

    def addSystemEventTrigger(self, phase: str, event: str, run: Callable[[], None]) -> None:
        assert (phase, event) == ("after", "shutdown")
        self.at_end.append(run)


class LineTests(SynchronousTestCase):
    def lines(self, log_format: str, *events: tuple[LogLevel, str, dict[str, Any]]) -> list[str]:
        output = io.StringIO()
        publisher = LogPublisher(observer(log_format, None, output, FakeReactor()))
        logger = Logger("twisted_mta.service.incoming.Incoming", observer=publisher)
        for level, text, fields in events:
            logger.emit(level, text, **fields)
        return output.getvalue().splitlines()

    def test_plain(self) -> None:
        lines = self.lines(
            "plain",
            (LogLevel.info, "{queue_id}: received", {"queue_id": "A1"}),
            (LogLevel.warn, "odd", {}),
            (LogLevel.debug, "not shown", {}),
        )
        self.assertEqual(
            [line.split(" ", 1)[1] for line in lines], ["incoming: A1: received", "incoming: warn: odd"]
        )

    def test_what_peers_say_stays_in_its_line(self) -> None:
        lines = self.lines("plain", (LogLevel.info, "helo {name}", {"name": "x\r\n2026 forged\x1b[2J"}))
        self.assertEqual(len(lines), 2)
        self.assertTrue(lines[1].startswith("\t2026 forged\ufffd[2J"))

    def test_traceback(self) -> None:
        try:
            raise ValueError("why")
        except ValueError:
            failure = Failure()
        lines = self.lines("plain", (LogLevel.critical, "it broke", {"log_failure": failure}))
        self.assertIn("incoming: critical: it broke", lines[0])
        self.assertTrue(all(line.startswith("\t") for line in lines[1:]))
        self.assertIn("ValueError: why", lines[-1])

    def test_formats_beyond_plain_fields(self) -> None:
        lines = self.lines(
            "plain",
            (LogLevel.info, "{{ {a!r} {b:>3} {c.real} {d()}", {"a": "x", "b": 1, "c": 2, "d": lambda: 3}),
            (LogLevel.info, "{a} and {missing}", {"a": 1}),
            (LogLevel.info, "{{}} {a}", {"a": 1}),
        )
        self.assertIn("incoming: { 'x'   1 2 3", lines[0])
        self.assertIn("missing", lines[1])
        self.assertIn("incoming: {} 1", lines[2])

    def test_json(self) -> None:
        (line,) = self.lines(
            "json",
            (
                LogLevel.info,
                "{queue_id}: to {to}",
                {"queue_id": "A1", "to": Path("x"), "size": 3, "message_id": "1@x"},
            ),
        )
        fields = json.loads(line)
        self.assertIsInstance(fields.pop("time"), float)
        self.assertEqual(
            fields,
            {
                "level": "info",
                "source": "twisted_mta.service.incoming.Incoming",
                "text": "A1: to x",
                "queue_id": "A1",
                "to": "x",
                "size": 3,
                "message_id": "1@x",
            },
        )


class EventTests(SynchronousTestCase):
    def test_an_event_is_as_a_logger_gives_it(self) -> None:
        seen: list[Any] = []
        happened = LogEvent("twisted_mta.service.incoming.Incoming", "{queue_id}: received", seen.append)
        Logger("twisted_mta.service.incoming.Incoming", observer=seen.append).info(
            "{queue_id}: received", queue_id="A1", size=3
        )
        happened(queue_id="A1", size=3)
        for event in seen:
            self.assertIsInstance(event.pop("log_time"), float)
            event.pop("log_logger")
        self.assertEqual(seen[0], seen[1])


class BatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor(running=True)
        self.written: list[str] = []
        self.batches = Batches(self.written.append, self.reactor)
        self.in_reactor = True
        self.patch(logs, "_in_reactor", lambda: self.in_reactor)

    def test_one_write_a_while(self) -> None:
        for line in ("a\n", "b\n"):
            self.batches.write(line)
        self.assertEqual(self.written, [])
        self.reactor.advance(0.01)
        self.batches.write("c\n")
        self.reactor.advance(0.01)
        self.assertEqual(self.written, ["a\nb\n", "c\n"])

    def test_at_once_where_no_time_passes(self) -> None:
        self.batches.write("a\n")
        self.in_reactor = False
        self.batches.write("from a thread\n")
        self.in_reactor = True
        self.reactor.running = False
        self.batches.write("b\n")
        self.assertEqual(self.written, ["a\nfrom a thread\n", "b\n"])
        self.reactor.advance(0.01)
        self.assertEqual(len(self.written), 2)

    def test_the_last_lines_are_not_lost(self) -> None:
        self.batches.write("a\n")
        for run in self.reactor.at_end:
            run()
        self.assertEqual(self.written, ["a\n"])


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.path = Path(self.mktemp())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = LogFile(self.path, lambda: self.now)
        self.addCleanup(self.file.close)

    def test_rotation(self) -> None:
        self.file.write("one\n")
        old = self.path.rename(self.path.with_suffix(".1"))
        self.file.write("two\n")
        self.now = 1.5
        self.file.write("three\n")
        self.assertEqual(old.read_text(), "one\ntwo\n")
        self.assertEqual(self.path.read_text(), "three\n")
        self.now = 3.0
        self.file.write("four\n")
        self.assertEqual(self.path.read_text(), "three\nfour\n")

    def test_a_directory_that_went_away_harms_nobody(self) -> None:
        self.patch(__import__("sys"), "__stderr__", io.StringIO())
        self.path.rename(self.path.with_suffix(".1"))
        self.path.mkdir()
        self.now = 1.5
        self.file.write("lost\n")
        self.path.rmdir()
        self.now = 3.0
        self.file.write("back\n")
        self.assertEqual(self.path.read_text(), "back\n")
