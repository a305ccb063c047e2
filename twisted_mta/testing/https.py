"""Web servers for tests: answers from a dict."""

from __future__ import annotations

import attrs

from twisted_mta.net.https import Answer, HttpsError


@attrs.frozen
class Request:
    """One request that was made."""

    method: str
    url: str
    body: bytes
    media_type: str


class FakeWeb:
    """What `net.https.Https` does, without a network: `pages` has the answer, or the HttpsError, for each URL."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer | HttpsError] = {}
        #: All that was asked.
        self.requests: list[Request] = []

    def policy(self, domain: str, text: str) -> None:
        """Publish an MTA-STS policy (lines split by LF)."""
        self.pages[f"https://mta-sts.{domain}/.well-known/mta-sts.txt"] = Answer(
            200, "text/plain", text.encode()
        )

    async def request(
        self, method: str, url: str, *, timeout: float, limit: int, body: bytes = b"", media_type: str = ""
    ) -> Answer:
        """See `net.https.Https`."""
        self.requests.append(Request(method, url, body, media_type))
        page = self.pages.get(url, HttpsError("nobody is there"))
        if isinstance(page, HttpsError):
            raise page
        return page
