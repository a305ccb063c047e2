"""`mta explain` as a person types it, with the server running and without it; and files that are taken up while it runs."""

from __future__ import annotations

import json
import smtplib
import subprocess

from twisted_mta.testing.site import Site, program

_RELAY = '[relay]\nnetworks = ["127.0.0.1"]\nroutes = { "example.org" = "127.0.0.1:9" }\n'


def explain(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        program("mta"),
        "--config",
        str(site.config_file),
        "explain",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_with_and_without_the_server() -> None:
    """The same answer, but for what only the server knows."""
    asked = (
        ("team@example.test", "--from", "x@example.org"),
        ("nobody@example.test",),
        ("dave@example.org", "--ip", "127.0.0.1"),
        ("dave@example.org", "--ip", "192.0.2.1"),
        ("bob@example.test", "--size", "1G"),
    )
    with Site(config=_RELAY, aliases="team: bob, dave@example.org, nobody\n", roles=("mx",)) as site:
        there = [explain(site, *each, "--json") for each in asked]
        text = explain(site, *asked[0]).stdout
        nonsense = explain(site, "a b@example.test")
        several = explain(site, "bob", "nobody", "--from", "x@example.org")
        in_json = [explain(site, "bob", "nobody", "--json")]
        site.stop()
        down = explain(site, *asked[0])
        offline = [explain(site, *each, "--json", "--offline") for each in asked]
        in_json.append(explain(site, "bob", "nobody", "--json", "--offline"))
        wrong = explain(site, "a b@example.test", "--offline")
    assert [one.returncode for one in there] == [0, 1, 0, 1, 1]
    assert [one.returncode for one in offline] == [0, 1, 0, 1, 1]
    assert "x nobody@example.test: there is no user" in text
    assert f"({site.config_file.parent / 'aliases'}:1)" in text
    assert "by the route to 127.0.0.1, port 9   (relay.routes)" in text
    for one, other in zip(there, offline, strict=True):
        assert (one.stderr, other.stderr) == ("", "")
        found, again = json.loads(one.stdout), json.loads(other.stdout)
        assert again.pop("warnings")[0].startswith("the server was not asked")
        assert found.pop("warnings") == []
        assert found == again
    heads = [
        line for line in several.stdout.splitlines() if line.startswith(("Mail from", "Accepted", "Refused"))
    ]
    assert heads == [
        "Mail from <x@example.org> to <bob@example.test>",
        "Accepted; goes to 1 mailbox here.",
        "Mail from <x@example.org> to <nobody@example.test>",
        "Refused: 550 5.1.1 there is no user nobody@example.test here",
    ]
    assert several.returncode == 1
    for one in in_json:
        assert [json.loads(line)["accepted"] for line in one.stdout.splitlines()] == [True, False]
        assert one.returncode == 1
    assert (nonsense.returncode, wrong.returncode, down.returncode) == (1, 1, 75)
    assert nonsense.stderr == wrong.stderr != ""
    assert "--offline explains what can be told without it" in down.stderr


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not() -> None:
    with Site(aliases="sales: bob\n", roles=("mx",)) as site:
        aliases = site.config_file.parent / "aliases"

        def code(name: str) -> int:
            with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
                client.ehlo()
                client.mail("x@example.org")
                return client.rcpt(f"{name}@example.test")[0]

        assert (code("sales"), code("other")) == (250, 550)
        aliases.write_text("sales: bob\nother: alice\n")
        site.wait_for(lambda: code("other") == 250)
        aliases.write_text("other: alice\nsales: bob, <\n")
        site.wait_for(lambda: site.control("status")["warnings"])
        (warning,) = site.control("status")["warnings"]
        assert f"accounts and aliases stay as they were: {aliases}:2: " in warning
        site.wait_for_log(warning)
        assert code("sales") == 250
        aliases.write_text("sales: alice\n")
        site.wait_for(lambda: not site.control("status")["warnings"])
        assert code("other") == 550
