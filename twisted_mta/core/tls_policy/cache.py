"""What is remembered of a domain's MTA-STS policy, and when it is to be fetched: RFC 8461 §3.3, §5.1."""

from __future__ import annotations

import attrs

from twisted_mta.core.tls_policy.sts import Mode, StsPolicy
from twisted_mta.core.values import value

#: Seconds for which a fetch that failed is not repeated, while the id is the same.
RETRY = 300.0
#: Seconds after which a policy is fetched again though its id is the same.
REFRESH = 86400.0
#: Seconds for which a policy that nobody has asked for is still refreshed. Then it may expire.
UNUSED = 31 * 86400.0


@value(kw_only=True)
class StsEntry:
    """One domain. Times are Unix seconds; 0.0: never."""

    domain: str
    #: The policy that was fetched last, its id, and when that was.
    policy: StsPolicy | None = None
    id: str = ""
    fetched: float = 0.0
    #: The last fetch that failed, with the id that there was then, and why.
    failed: float = 0.0
    failed_id: str = ""
    problem: str = ""
    #: When mail asked for it, give or take a day.
    used: float = 0.0

    @property
    def expires(self) -> float:
        """The end of the policy, if it is not fetched again before."""
        return self.fetched + self.policy.max_age if self.policy is not None else 0.0

    def in_force(self, now: float) -> StsPolicy | None:
        """The policy, unless it has expired."""
        return self.policy if now < self.expires else None

    def must_fetch(self, live_id: str | None, now: float) -> bool:
        """Whether mail is to wait for a fetch. `live_id`: what the DNS says; None: nothing, or it can't be asked."""
        # RFC 8461 §3.3: without a record, what is cached goes on to count.
        if live_id is None or (self.in_force(now) is not None and live_id == self.id):
            return False
        return not (live_id == self.failed_id and now < self.failed + RETRY)

    def refresh_due(self, now: float) -> bool:
        """Whether the policy should be fetched again while nobody waits for it."""
        if self.in_force(now) is None or now >= self.used + UNUSED:
            return False
        # Half of its life, for policies that live less than two days.
        after = min(REFRESH, (self.expires - self.fetched) / 2)
        return now >= max(self.fetched, self.failed) + after

    @property
    def is_missed(self) -> bool:
        """Whether somebody should know that it can't be fetched: RFC 8461 §3.3."""
        return self.policy is not None and self.policy.mode is not Mode.NONE

    def with_policy(self, policy: StsPolicy, identifier: str, now: float) -> StsEntry:
        """After a fetch."""
        return attrs.evolve(
            self, policy=policy, id=identifier, fetched=now, failed=0.0, failed_id="", problem=""
        )

    def with_failure(self, identifier: str, problem: str, now: float) -> StsEntry:
        """After a fetch that failed: the old policy stays."""
        return attrs.evolve(self, failed=now, failed_id=identifier, problem=problem)
