"""A backup MX that asks the other server, both real; with a worker for each of two processors, which share what they learn."""

from __future__ import annotations

import smtplib
import subprocess

import pytest

from twisted_mta.testing.site import Site, program

_PRIMARY = '[[domain]]\nname = "primary.test"\n'


def _backup(port: int) -> str:
    return (
        '[[domain]]\nname = "primary.test"\nrelay = true\ncallout = true\n'
        f'[relay]\nroutes = {{ "primary.test" = "127.0.0.1:{port}" }}\n'
    )


def mta(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("mta"), "--config", str(site.config_file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def rcpt(site: Site, name: str) -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=60) as client:
        client.ehlo()
        client.mail("x@example.org")
        return client.rcpt(f"{name}@primary.test")


@pytest.mark.parametrize("workers", [1, 2])
def test_backup(workers: int) -> None:
    primary = Site(config=_PRIMARY, aliases="joe@primary.test: alice\n", roles=("mx",))
    with primary, Site(config=_backup(primary.port("mx")), roles=("mx",), workers=workers) as backup:
        assert rcpt(backup, "joe")[0] == 250
        code, text = rcpt(backup, "jim")
        assert (code, b"there is no user jim@primary.test here" in text) == (550, True)
        backup.wait_for_log("callout about jim@primary.test: does not exist: 127.0.0.1 [127.0.0.1] 550")
        listed = mta(backup, "callouts")
        assert "joe@primary.test exists: 127.0.0.1 [127.0.0.1] said 250 2.1.5 Recipient OK" in listed.stdout
        assert mta(backup, "callouts", "--forget", "jim@primary.test").stdout == "forgotten: 1\n"
        assert mta(backup, "callouts", "--forget", "jim@primary.test").returncode == 1
        with smtplib.SMTP("127.0.0.1", backup.port("mx"), timeout=60) as client:
            client.sendmail("x@example.org", ["joe@primary.test"], "Subject: hello\r\n\r\nbody\r\n")
        primary.wait_for(lambda: primary.maildir("alice"))
        primary.stop()
        assert rcpt(backup, "joe")[0] == 250
        assert rcpt(backup, "jim")[0] == 450
