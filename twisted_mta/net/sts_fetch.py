"""Fetches MTA-STS policies: RFC 8461 §3.3."""

from __future__ import annotations

from twisted_mta.core.tls_policy.results import Failure, FetchFailed, Result
from twisted_mta.core.tls_policy.sts import MAX_POLICY, PolicyError, StsPolicy, parse_policy, policy_host
from twisted_mta.net.https import HttpsError, Requests

#: Seconds for a policy: RFC 8461 §3.3 suggests a minute, and mail waits for it.
TIMEOUT = 30.0


class PolicyFetcher:
    """Call it with a domain (A-labels, lower-case): the policy. Raises FetchFailed."""

    def __init__(self, web: Requests) -> None:
        self._web = web

    async def __call__(self, domain: str) -> StsPolicy:
        # RFC 8461 §3.2
        url = f"https://{policy_host(domain)}/.well-known/mta-sts.txt"
        try:
            answer = await self._web.request("GET", url, timeout=TIMEOUT, limit=MAX_POLICY)
        except HttpsError as error:
            result = Result.STS_WEBPKI_INVALID if error.untrusted else Result.STS_POLICY_FETCH_ERROR
            raise _failed(result, url, str(error)) from None
        if answer.status != 200:  # RFC 8461 §3.3: redirects are not followed
            raise _failed(Result.STS_POLICY_FETCH_ERROR, url, f"status {answer.status}")
        if answer.media_type != "text/plain":  # RFC 8461 §3.2: it may be a page that some user wrote
            raise _failed(Result.STS_POLICY_INVALID, url, f"{answer.media_type[:60]!r} is not text/plain")
        try:
            return parse_policy(answer.body)
        except PolicyError as error:
            raise _failed(Result.STS_POLICY_INVALID, url, str(error)) from None


def _failed(result: Result, url: str, why: str) -> FetchFailed:
    return FetchFailed(Failure(result, f"{url}: {why}", why))
