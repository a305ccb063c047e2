"""`mta queue` and `mta trace` as a person types them, with the server running and without it."""

from __future__ import annotations

import json
import smtplib
import socket
import subprocess
from typing import Any

from twisted_mta.testing.site import Site, program

ALIASES = "team: bob, dave@example.org\n"
_MESSAGE = b"From: a@example.org\r\nMessage-ID: <trace-1@example.org>\r\n\r\nhello\r\n"


def mta(site: Site, *arguments: str, status: int = 0) -> str:
    command = [program("mta"), "--config", str(site.config_file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout


def bound(closed: socket.socket) -> str:
    """The configuration that sends mail for example.org where nobody listens."""
    closed.bind(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    return f'[relay]\nnetworks = ["127.0.0.1"]\nroutes = {{ "example.org" = "127.0.0.1:{port}" }}\n'


def found(site: Site, *arguments: str) -> Any:
    return json.loads(mta(site, *arguments, "--json"))


def test_orders_and_the_way_of_a_message() -> None:
    with socket.socket() as nobody, Site(config=bound(nobody), aliases=ALIASES, roles=("mx",)) as site:
        with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
            client.sendmail("alice@example.test", ["team@example.test"], _MESSAGE)
        site.wait_for(lambda: site.maildir("bob"))

        def waiting() -> list[tuple[str, str]]:
            (message,) = found(site, "queue", "list")["messages"]
            return [(one["address"], one["status"]) for one in message["recipients"]]

        # The queue hears of bob's copy when it is there.
        site.wait_for(lambda: waiting() == [("dave@example.org", "deferred")])
        (message,) = found(site, "queue", "list", "--status", "deferred")["messages"]
        queue_id = message["id"]
        assert [one["address"] for one in message["recipients"]] == ["dave@example.org"]
        text = mta(site, "trace", "<trace-1@example.org>")
        assert "to team@example.test -> bob@example.test (local)" in text
        assert "to team@example.test -> dave@example.org (smtp)" in text
        assert "deferred by 127.0.0.1 [127.0.0.1]: 451 4.4.1" in text
        assert ": out of reach for " in mta(site, "queue", "destinations")
        (destination,) = found(site, "queue", "destinations")["destinations"]
        assert (destination["state"], destination["put_off"]) == ("down", 1)
        assert mta(site, "queue", "hold", "--domain", "example.org", "--reason", "as a test").endswith(
            ": held\n"
        )
        site.stop()
        assert ", on hold: as a test" in mta(site, "queue", "list")
        assert "held: as a test" in mta(site, "trace", queue_id)
        assert mta(site, "queue", "release", "--status", "held").endswith(": released\n")
        assert mta(site, "queue", "expire", queue_id).endswith("their senders are told\n")
        site.start()
        site.wait_for(lambda: found(site, "trace", queue_id)["trees"][0]["children"])
        (tree,) = found(site, "trace", "--since", "1h")["trees"]
        states = {one["address"]: one["state"] for one in tree["recipients"]}
        assert states == {"bob@example.test": "delivered", "dave@example.org": "failed"}
        assert [event["kind"] for event in tree["events"]][-3:] == ["held", "released", "expired"]
        assert "Not found" in mta(site, "trace", "nobody@example.org", status=1)
