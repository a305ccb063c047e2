"""`mta queue salvage`: another database of what can be read of a damaged one."""

from __future__ import annotations

import argparse
import json
import time

from twisted_mta.admin.errors import EX_IOERR, AdminError
from twisted_mta.admin.paths import config_path
from twisted_mta.admin.queue import locked
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import QUEUE


def salvage(options: argparse.Namespace) -> int:
    """mta queue salvage"""
    from twisted_mta.store.queue.salvage import salvage as save
    from twisted_mta.store.queue.schema import QueueFileError

    directory = load_data_directory(config_path(options)) / QUEUE
    name = time.strftime("damaged-%Y%m%d-%H%M%S")
    with locked(directory):
        try:
            done = save(directory, name)
        except QueueFileError as error:
            raise AdminError(f"{error}; nothing was changed", EX_IOERR) from None
    if options.json:
        print(json.dumps({"kept": str(done.kept), "rows": done.rows, "torn": list(done.torn)}))
        return 0
    found = ", ".join(f"{count} of {table}" for table, count in done.rows.items())
    print(f"Rows that were read: {found}.")
    print(f"Not all could be read of: {', '.join(done.torn)}." if done.torn else "Nothing was missing.")
    print(f"What there was is now in {done.kept}.")
    return 0
