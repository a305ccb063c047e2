"""Events of the log that happen with every message: told for a fraction of what twisted.logger.Logger takes.

A Logger makes a copy of itself for each use, and sorts the log levels to see whether one exists. What observers get is
the same: a dictionary with the fields, and what Twisted puts beside them.
"""

from __future__ import annotations

from time import time
from typing import Any

from twisted.logger import ILogObserver, Logger, LogLevel, globalLogPublisher


class LogEvent:
    """One kind of event of level info: called with its fields, it tells of one.

    received = LogEvent(__name__, "{queue_id}: received from {client}")
    received(queue_id="A1", client="192.0.2.1", size=100)
    """

    def __init__(self, namespace: str, text: str, observer: ILogObserver = globalLogPublisher) -> None:
        """`text` is a format of PEP 3101; the fields may be more than those in it."""
        self._logger = Logger(namespace, observer=observer)
        self._always = {
            "log_logger": self._logger,
            "log_level": LogLevel.info,
            "log_namespace": namespace,
            "log_source": None,
            "log_format": text,
        }

    def __call__(self, **fields: Any) -> None:
        fields.update(self._always, log_time=time())
        self._logger.observer(fields)
