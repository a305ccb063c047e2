"""TLS reports: what was counted, written down for the domains that ask for it. RFC 8460, without any I/O."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.message import format_date
from twisted_mta.core.tls_policy.results import Failure
from twisted_mta.core.values import value

DAY = 86400
#: Places that one domain may name for its reports; more are passed over.
MAX_PLACES = 10
#: Characters of a failure's code in a report.
MAX_CODE = 200

_VERSION = re.compile(rb"v=TLSRPTv1[ \t]*;")


@value
class Applied:
    """The policy that a session was held to: RFC 8460 §4.4."""

    #: "sts", "tlsa" or "no-policy-found".
    type: str
    #: RFC 8460 §4.5: the lines of an MTA-STS policy, or TLSA records.
    lines: tuple[str, ...] = ()
    #: The patterns of an MTA-STS policy, or the host with the TLSA records.
    hosts: tuple[str, ...] = ()


NO_POLICY = Applied("no-policy-found")


@value(kw_only=True)
class Session:
    """One session with a mail host, or the attempt at one."""

    #: When it was: Unix seconds.
    time: float
    #: The policy domain.
    domain: str
    applied: Applied
    host: str = ""
    #: IP addresses: the peer's, and ours.
    address: str = ""
    source: str = ""
    #: None: it was as the policy wants it.
    failure: Failure | None = None

    @property
    def day(self) -> int:
        """Days since 1970, UTC: what reports go by (RFC 8460 §4.1)."""
        return int(self.time // DAY)


@value(kw_only=True)
class FailureCount:
    """Failures that are alike in all."""

    result: str
    host: str
    address: str
    source: str
    code: str
    count: int


@value(kw_only=True)
class PolicyCount:
    """The sessions of one day under one policy of a domain."""

    applied: Applied
    successes: int
    failures: int
    details: tuple[FailureCount, ...] = ()


@value(kw_only=True)
class Reporter:
    """Who reports. `contact` is where questions go and what the reports come from."""

    organization: str
    contact: Address


@value(kw_only=True)
class Report:
    """A report about one domain and one day."""

    reporter: Reporter
    domain: str
    #: Days since 1970, UTC.
    day: int
    id: str
    policies: tuple[PolicyCount, ...]

    def json(self) -> bytes:
        """RFC 8460 §4.4."""
        facts = {
            "organization-name": self.reporter.organization,
            "date-range": {
                "start-datetime": _datetime(self.day * DAY),
                "end-datetime": _datetime((self.day + 1) * DAY - 1),
            },
            "contact-info": str(self.reporter.contact),
            "report-id": self.id,
            "policies": [_policy(self.domain, count) for count in self.policies],
        }
        return json.dumps(facts, indent=2, ensure_ascii=False).encode("utf-8")

    def compressed(self) -> bytes:
        """RFC 8460 §5.2. The same octets each time."""
        return gzip.compress(self.json(), mtime=0)

    @property
    def file_name(self) -> str:
        """RFC 8460 §5.1."""
        begin = self.day * DAY
        return f"{self.reporter.contact.domain}!{self.domain}!{begin}!{begin + DAY - 1}!{self.id}.json.gz"

    def message(self, to: Address, now: float) -> bytes:
        """The report as mail: RFC 8460 §5.3. CRLF line ends."""
        submitter = self.reporter.contact.domain
        boundary = f"=_tls_{self.id}"
        day = _datetime(self.day * DAY)[:10]
        failed = sum(count.failures for count in self.policies)
        good = sum(count.successes for count in self.policies)
        lines = [
            f"From: {self.reporter.contact}",
            f"To: {to}",
            f"Subject: Report Domain: {self.domain}",
            f" Submitter: {submitter}",
            f" Report-ID: <{self.id}@{submitter}>",
            f"Date: {format_date(now)}",
            f"Message-ID: <{self.id}@{submitter}>",
            f"TLS-Report-Domain: {self.domain}",
            f"TLS-Report-Submitter: {submitter}",
            "Auto-Submitted: auto-generated",
            # RFC 8460 §3: delivered whatever is wrong with TLS; RFC 8689 §3 has a field that says so to the next host.
            "TLS-Required: No",
            "MIME-Version: 1.0",
            f'Content-Type: multipart/report; report-type="tlsrpt"; boundary="{boundary}"',
            "",
            f"--{boundary}",
            "Content-Type: text/plain; charset=us-ascii",
            "",
            f"A report about TLS between {submitter} and the mail hosts of {self.domain}",
            f"on {day} (UTC): {good} sessions were as they should be, {failed} were not.",
            "",
            f"--{boundary}",
            "Content-Type: application/tlsrpt+gzip",
            "Content-Transfer-Encoding: base64",
            f'Content-Disposition: attachment; filename="{self.file_name}"',
            "",
            *_base64_lines(self.compressed()),
            f"--{boundary}--",
            "",
        ]
        return "\r\n".join(lines).encode("ascii")


def record_name(domain: str) -> str:
    """The name of the TXT record that asks for reports: RFC 8460 §3."""
    return f"_smtp._tls.{domain}"


def places(records: Sequence[bytes]) -> list[Address | str]:
    """Where a domain wants its reports, by its TXT records: addresses, and https URLs. Empty if it wants none."""
    # RFC 8460 §3: others are discarded; what is left must be one.
    found = [record for record in records if _VERSION.match(record)]
    if len(found) != 1 or not found[0].isascii():
        return []
    fields = (field.strip(" \t").partition("=") for field in found[0].decode("ascii").split(";")[1:])
    rua = next((value for name, _, value in fields if name == "rua"), "")
    wanted = (_place(uri.strip(" \t")) for uri in rua.split(","))
    return [place for place in wanted if place is not None][:MAX_PLACES]


def _place(uri: str) -> Address | str | None:
    if not uri.isprintable() or " " in uri:
        return None
    scheme, _, rest = uri.partition(":")
    if scheme.lower() == "mailto":
        try:
            # RFC 6068 §2: what stands behind the "?" would be header fields of the domain's choice.
            address = Address.parse(unquote(rest.partition("?")[0]))
        except AddressError:
            return None
        return address if str(address).isascii() else None
    try:
        parts = urlsplit(uri)
        return uri if scheme.lower() == "https" and parts.hostname and parts.port in (None, 443) else None
    except ValueError:
        return None


def _policy(domain: str, count: PolicyCount) -> Mapping[str, Any]:
    applied = count.applied
    policy: dict[str, Any] = {"policy-type": applied.type, "policy-domain": domain}
    if applied.lines:
        policy["policy-string"] = list(applied.lines)
    if applied.hosts:
        policy["mx-host"] = list(applied.hosts)
    facts: dict[str, Any] = {
        "policy": policy,
        "summary": {
            "total-successful-session-count": count.successes,
            "total-failure-session-count": count.failures,
        },
    }
    if count.details:
        facts["failure-details"] = [_detail(each) for each in count.details]
    return facts


def _detail(failure: FailureCount) -> Mapping[str, Any]:
    facts: dict[str, Any] = {"result-type": failure.result}
    for key, fact in (
        ("sending-mta-ip", failure.source),
        ("receiving-mx-hostname", failure.host),
        ("receiving-ip", failure.address),
        ("failure-reason-code", failure.code),
    ):
        if fact:
            facts[key] = fact
    facts["failed-session-count"] = failure.count
    return facts


def _datetime(seconds: float) -> str:
    """RFC 3339 §5.6, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _base64_lines(data: bytes) -> Iterable[str]:
    text = base64.b64encode(data).decode("ascii")
    return (text[start : start + 76] for start in range(0, len(text), 76))
