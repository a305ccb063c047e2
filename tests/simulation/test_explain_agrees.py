"""`mta explain` and the server never disagree: over made-up sites and mail, what was foretold is what happens.

MTA_SEEDS says how many sites; MTA_SEED=n repeats one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.configurations import Mail, Site

_SEEDS = int(os.environ.get("MTA_SEEDS", "100"))
_AT_A_TIME = 50
_ONLY = os.environ.get("MTA_SEED")
_NOT_TRIED = re.compile(r"not tried, since \S+ is out of reach: ")
#: Messages for each site.
_MESSAGES = 7


@pytest.mark.parametrize("first", range(0, _SEEDS, _AT_A_TIME) if _ONLY is None else [int(_ONLY)])
def test_foretold_is_what_happens(tmp_path: Path, first: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, first + (_AT_A_TIME if _ONLY is None else 1)):
        site = Site(tmp_path / str(seed), seed)
        for number in range(_MESSAGES):
            mail = site.mail(number)
            try:
                seen += compare(site, mail, number)
            except BaseException:
                print(
                    f"{site.config}\n{site.aliases}\n{mail}\nAgain: MTA_SEED={seed} python -m pytest {__file__}"
                )
                raise
        site.world.close()
        shutil.rmtree(site.directory)
    if _ONLY is None:  # else what is compared would be nothing
        kinds = (
            "refused",
            "places",
            "remote",
            "failures",
            "lists",
            "handlers",
            "outlets",
            "callouts",
            "rules",
        )
        assert min(seen[each] for each in kinds) > 0, seen


def compare(site: Site, mail: Mail, number: int) -> Counter[str]:
    """Ask, look that nothing happened, send it, and look whether it happens as was said."""
    before = site.world.queued()
    told = site.world.explain(mail.recipient, **mail.arguments())
    assert told == site.world.explain(mail.recipient, **mail.arguments()), "asking changes nothing"
    assert (site.world.queued(), site.copies(number)) == (before, (set(), set()))
    reply = site.bring(mail)
    callouts, rules = (int(words in str(told["steps"])) for words in ("callout: ", "rules of the user"))
    assert told["accepted"] == reply.positive, (told["reply"], reply)
    if not reply.positive:
        same = (*told["reply"].split(" ", 2)[:2],) == (str(reply.code), reply.enhanced)
        unknown = (
            told["reply"].startswith("535") and reply.code == 550
        )  # a login that is none: by AUTH, and by XCLIENT
        assert same or unknown, (told["reply"], str(reply))
        return Counter(refused=1, callouts=callouts)
    site.world.advance(60)
    places, remote = site.copies(number)
    assert set(told["places"]) == places
    foretold = sorted((each["address"], each["reply"]) for each in told["failures"])
    history = site.history(reply.text.rpartition(" ")[2])
    # Who is reached in two ways, by an alias and by a list, gets the one copy where only the other is to fail.
    ways, failing = (Counter(name for name, _ in found) for found in (history, foretold))
    arriving = {name for name in told["remote"] if not failing[name] or ways[name] > failing[name]}
    assert arriving == remote
    failures = sorted((name, text) for name, text in history if not text.startswith("2"))
    assert _met_once(foretold) == _met_once(failures)
    lists = sum("sent to" in text for _, text in history)
    return Counter(
        places=len(places),
        remote=len(remote),
        failures=len(failures),
        lists=lists,
        handlers=sum("handled." in place for place in places),
        outlets=sum(place.startswith((str(site.out), "/bin/")) for place in places),
        callouts=callouts,
        rules=rules,
    )


def _met_once(failures: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is said of a destination that two messages go to, by an alias and by a list: when the second one's turn comes, the
    first may have met what both would."""
    domains = Counter(name.rpartition("@")[2] for name, _ in failures)
    return sorted(
        (name, _NOT_TRIED.sub("", text) if domains[name.rpartition("@")[2]] > 1 else text)
        for name, text in failures
    )
