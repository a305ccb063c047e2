"""Small files beside the queue, with several at work on one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.store.answers import AnswerFile
from twisted_mta.store.side_file import SideFile


class SideFileTests(SynchronousTestCase):
    def together(self, work: Callable[[int], object]) -> list[object]:
        """What eight threads that begin at once come to: results, and what was raised."""
        begun = threading.Event()
        found: list[object] = []

        def run(number: int) -> None:
            begun.wait()
            try:
                found.append(work(number))
            except Exception as error:
                found.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        begun.set()
        for thread in threads:
            thread.join()
        return found

    def test_workers_that_start_together_open_it_one_by_one(self) -> None:
        # SQLite does not wait for another one that makes the file WAL.
        path, alone, clashes = Path(self.mktemp()), threading.Lock(), []
        prepare = SideFile._prepare

        def watched(file: SideFile, version: int, tables: Sequence[str]) -> None:
            free = alone.acquire(blocking=False)
            prepare(file, version, tables)
            if free:
                alone.release()
            else:
                clashes.append(file)

        with mock.patch.object(SideFile, "_prepare", watched):
            self.assertEqual(self.together(lambda _: AnswerFile(path).close()), [None] * 8)
        self.assertEqual(clashes, [])

    def test_changes_from_several_threads(self) -> None:
        answers = AnswerFile(Path(self.mktemp()))
        self.addCleanup(answers.close)

        def claim(number: int) -> bool:
            return all(answers.claim("alice@x", f"{number}.{n}@x", "h", "q", 0.0, 60.0) for n in range(20))

        self.assertEqual(self.together(claim), [True] * 8)
