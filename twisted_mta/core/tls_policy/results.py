"""How sessions with mail hosts ended, in the words of TLS reports: RFC 8460 §4.3."""

from __future__ import annotations

import enum

from twisted_mta.core.values import value


class Result(enum.StrEnum):
    """Why a session was not as the policy wants it: RFC 8460 §4.3.1, §4.3.2."""

    STARTTLS_NOT_SUPPORTED = "starttls-not-supported"
    CERTIFICATE_HOST_MISMATCH = "certificate-host-mismatch"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_TRUSTED = "certificate-not-trusted"
    VALIDATION_FAILURE = "validation-failure"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"
    STS_POLICY_FETCH_ERROR = "sts-policy-fetch-error"
    STS_POLICY_INVALID = "sts-policy-invalid"
    STS_WEBPKI_INVALID = "sts-webpki-invalid"


@value
class Failure:
    """What is wrong with a host or its certificate."""

    result: Result
    #: For people.
    text: str
    #: For reports: a short code where there is one (RFC 8460 §4.3.3).
    code: str = ""


class FetchFailed(Exception):
    """There is a record of MTA-STS, and the policy could not be had: `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure
