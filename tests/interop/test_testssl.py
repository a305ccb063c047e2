"""testssl.sh on the default settings: nothing above LOW, but for who signed the certificate of a test.

Two ports, some minutes each; MTA_TESTSSL=all (`make testssl`) takes each port that speaks TLS.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.peers import run
from twisted_mta.testing.site import Site

#: Role -> what testssl.sh calls the protocol, "" for TLS from the first octet.
PORTS = {
    "submission": "smtp",
    "imaps": "",
    "submissions": "",
    "mx": "smtp",
    "imap": "imap",
    "pop3": "pop3",
    "pop3s": "",
}
CHOSEN = list(PORTS) if os.environ.get("MTA_TESTSSL") == "all" else ["submission", "imaps"]
#: What is said of a certificate that signs itself, for another name than 127.0.0.1, for ten years.
_TRUST = {"cert_trust", "cert_chain_of_trust", "cert_validityPeriod", "cert_revocation", "cert_extlifeSpan"}
#: No finding, but a check that testssl.sh could not finish.
_HARMLESS = {"OK", "INFO", "LOW", "DEBUG", "WARN"}
#: Seconds, and failures, after which it takes a server for one that does not speak TLS as it should.
_PATIENT = {
    "MAX_WAITSOCK": "60",
    "STARTTLS_SLEEP": "60",
    "MAX_SOCKET_FAIL": "10",
    "MAX_OSSL_FAIL": "10",
}


@pytest.mark.parametrize("role", CHOSEN)
def test_default_settings(site: Site, role: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    start = ("-t", PORTS[role]) if PORTS[role] else ()
    # Its exit code counts what it found, the trust included.
    said = run(
        "testssl",
        *("--quiet", "--color", "0", "--warnings", "off", "--jsonfile", str(report), *start),
        f"127.0.0.1:{site.port(role)}",
        seconds=3000,
        environment=_PATIENT,
        expect=None,
    )
    assert report.exists(), said
    findings = json.loads(report.read_text())
    found = {each["id"]: each for each in findings}
    offered = {
        version
        for version in ("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3")
        if not found[version]["finding"].startswith("not offered")
    }
    assert offered == {"TLS1_2", "TLS1_3"}, said
    bad = [
        f"{each['severity']} {each['id']}: {each['finding']}"
        for each in findings
        if each["severity"] not in _HARMLESS and each["id"].partition(" ")[0] not in _TRUST
    ]
    assert not bad, "\n".join(bad)
