"""nodemailer, the mail client of Node.js programs: each TLS mode and login, pools, and how it understands refusals."""

from __future__ import annotations

import email
import email.policy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.interop.conftest import User
from tests.peers import run
from twisted_mta.testing.site import Site

_MODULES = Path(__file__).parents[2] / ".venv" / "interop" / "node_modules"


def nodemailer(
    site: Site, role: str, user: User, *messages: dict[str, Any], **options: Any
) -> list[dict[str, Any]]:
    """What became of each message. `options` change the transport's."""
    assert (_MODULES / "nodemailer").exists(), "nodemailer is not installed: run tests/interop/install"
    transport = {
        "host": "127.0.0.1",
        "port": site.port(role),
        "secure": role == "submissions",
        "requireTLS": True,
        "auth": {"user": user.address, "pass": user.password},
        "tls": {"servername": "mx.example.test", "ca": (site.directory / "cert.pem").read_text()},
        **options,
    }
    program = str(Path(__file__).with_name("nodemailer.js"))
    feed = json.dumps({"transport": transport, "messages": messages}).encode()
    found = json.loads(run("node", program, feed=feed, environment={"NODE_PATH": str(_MODULES)}))
    assert len(found) == len(messages)
    return found


def parsed(path: Path) -> Any:
    return email.message_from_bytes(path.read_bytes(), policy=email.policy.default)


class NodemailerTests:
    @pytest.mark.parametrize("role", ["submission", "submissions"])
    @pytest.mark.parametrize("method", ["PLAIN", "LOGIN"])
    def test_a_message_with_everything(self, site: Site, user: User, role: str, method: str) -> None:
        [result] = nodemailer(
            site,
            role,
            user,
            {
                "from": {"name": "Jörg", "address": user.address},
                "to": user.address,
                "bcc": "bob@example.test",
                "subject": "Grüße ☃",
                "text": "first\n.\n..dots\n.last\n" + "x" * 2000 + "\nEnde ü\n",
                "html": "<p>ü</p>",
                "attachments": [{"filename": "a.bin", "content": bytes(range(256)).hex(), "encoding": "hex"}],
            },
            authMethod=method,
        )
        assert result["response"].startswith("250 2.")
        assert result["accepted"] == [user.address, "bob@example.test"]
        message = parsed(site.wait_for(user.files)[0])
        assert message["Subject"] == "Grüße ☃"
        assert message["Bcc"] is None
        assert "with ESMTPSA id" in message["Received"]
        text = message.get_body(("plain",)).get_content()
        assert text == "first\n.\n..dots\n.last\n" + "x" * 2000 + "\nEnde ü\n"
        [attachment] = message.iter_attachments()
        assert attachment.get_content() == bytes(range(256))

    def test_a_pool(self, site: Site, user: User) -> None:
        messages = [
            {"from": user.address, "to": user.address, "subject": f"n{number}", "text": "x"}
            for number in range(30)
        ]
        results = nodemailer(site, "submission", user, *messages, pool=True, maxConnections=3, maxMessages=7)
        assert all(result["response"].startswith("250 2.") for result in results), results
        site.wait_for(lambda: len(user.files()) == 30)
        assert {parsed(path)["Subject"] for path in user.files()} == {f"n{number}" for number in range(30)}

    def test_one_recipient_refused(self, site: Site, user: User) -> None:
        [result] = nodemailer(
            site,
            "submission",
            user,
            {
                "from": user.address,
                "to": [user.address, "nobody@example.test"],
                "subject": "half",
                "text": "x",
            },
        )
        assert (result["accepted"], result["rejected"]) == ([user.address], ["nobody@example.test"])
        site.wait_for(user.files)

    def test_refusals(self, site: Site, user: User) -> None:
        message = {"from": user.address, "to": "nobody@example.test", "subject": "x", "text": "x"}
        [result] = nodemailer(site, "submission", user, message)
        assert (result["code"], result["status"]) == ("EENVELOPE", 550)
        [result] = nodemailer(
            site,
            "submission",
            user,
            message,
            auth={"user": user.address, "pass": "wrong"},
            authMethod="PLAIN",
        )
        assert (result["code"], result["status"]) == ("EAUTH", 535)
        assert result["response"].startswith("535 5.7.8 ")

    def test_a_strange_certificate(self, site: Site, user: User) -> None:
        message = {"from": user.address, "to": user.address, "subject": "x", "text": "x"}
        [result] = nodemailer(site, "submissions", user, message, tls={"servername": "other.example"})
        assert result["code"] in ("ESOCKET", "ETLS")
        assert not user.files()
