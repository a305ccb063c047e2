"""`twistd`, with a parent that has little patience with its workers; they are started by this file too."""

from __future__ import annotations

from twisted.scripts.twistd import run

from twisted_mta.service import heartbeat

heartbeat.BEAT = 0.1
heartbeat.SILENCE = 6.0
run()
