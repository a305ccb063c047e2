"""`mta queue salvage`: another database of what can be read of a damaged one."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from twisted_mta.admin.errors import EX_IOERR, AdminError
from twisted_mta.admin.paths import config_path
from twisted_mta.admin.queue import locked
from twisted_mta.config.loader import load_data_directory

if TYPE_CHECKING:  # it is slow to import, and so is left to the command that needs it
    from twisted_mta.store.queue.salvage import Salvaged


def salvage(options: argparse.Namespace) -> int:
    """mta queue salvage"""
    from twisted_mta.store.queue.salvage import salvage as save
    from twisted_mta.store.queue.schema import QueueFileError

    data = load_data_directory(config_path(options))
    name = time.strftime("damaged-%Y%m%d-%H%M%S")
    told: list[dict[str, Any]] = []
    with locked(data) as directories:
        for directory in directories:
            try:
                done = save(directory, name)
            except QueueFileError as error:
                raise AdminError(
                    f"{error}; {'nothing was' if not told else 'the parts before were'} changed", EX_IOERR
                ) from None
            told.append({"kept": str(done.kept), "rows": done.rows, "torn": list(done.torn)})
            if not options.json:
                _tell(done)
    if options.json:
        print(json.dumps(told[0] if len(told) == 1 else {"parts": told}))
    return 0


def _tell(done: Salvaged) -> None:
    found = ", ".join(f"{count} of {table}" for table, count in done.rows.items())
    print(f"Rows that were read: {found}.")
    print(f"Not all could be read of: {', '.join(done.torn)}." if done.torn else "Nothing was missing.")
    print(f"What there was is now in {done.kept}.")
