"""The arguments of `mta queue`, read without anything that takes time to import."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import datetime

from twisted_mta.core.schedule import parse_duration

#: The filters of `service.queue_control`, which are options of the same name.
FILTERS = ("sender", "recipient", "domain", "older", "younger", "larger", "smaller", "status", "reply")


def add_queue(command: Callable[..., argparse.ArgumentParser], parser: argparse.ArgumentParser) -> None:
    """`command` adds one command: its name, what runs it, what it does, and to what."""
    into = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listed = command("list", "queue:list_queue", "list the messages that wait, oldest first", into)
    listed.add_argument("--limit", type=int, default=1000, metavar="N", help="at most so many (1000)")
    listed.add_argument("--after", default="", metavar="ID", help="only those behind this one")
    shown = command("show", "queue:show", "show one message and how its delivery stands", into)
    shown.add_argument("id", metavar="ID")
    saved = command("salvage", "salvage:salvage", "get back what can be read of a damaged queue", into)
    destinations = "how the server gets on with other hosts: who is out of reach, or busy"
    places = command("destinations", "destinations:list_destinations", destinations, into)
    orders = {
        name: command(name, f"queue:{name}", text, into)
        for name, text in (
            ("hold", "hold messages back until they are released"),
            ("release", "let messages go that are held"),
            ("retry", "try now instead of on schedule"),
            ("expire", "give up now, and tell the senders"),
            ("delete", "remove messages; nobody is told"),
            ("reroute", "send to another host than the configuration and the DNS say"),
        )
    }
    orders["hold"].add_argument("--reason", default="", metavar="TEXT", help="what the listing shows")
    orders["reroute"].add_argument(
        "--to", default="", metavar="HOST[:PORT]", help="the host, without an MX look-up"
    )
    orders["reroute"].add_argument("--back", action="store_true", help="to where they would go by themselves")
    for each in orders.values():
        each.add_argument("ids", nargs="*", metavar="ID")
        each.add_argument("--all", action="store_true", help="everything that waits")
        each.add_argument("--dry-run", action="store_true", help="only tell which messages are meant")
    for each in (listed, *orders.values()):
        _add_filters(each)
    for each in (listed, shown, saved, places, *orders.values()):
        each.add_argument("--json", action="store_true", help="for programs")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters (all that are given must hold)")
    group.add_argument("--sender", metavar="ADDRESS", help='"<>" for notifications')
    group.add_argument("--recipient", metavar="ADDRESS")
    group.add_argument("--domain", metavar="DOMAIN", help="of the recipient")
    group.add_argument("--older", metavar="TIME", type=duration, help='than this: "2h", "3d"')
    group.add_argument("--younger", metavar="TIME", type=duration)
    group.add_argument("--larger", metavar="SIZE", type=octets, help='than this: "10K", "5M"')
    group.add_argument("--smaller", metavar="SIZE", type=octets)
    group.add_argument("--status", choices=("new", "deferred", "held"))
    group.add_argument("--reply", metavar="TEXT", help="which stands in the last reply")


def add_trace(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mta trace`."""
    parser.add_argument("what", nargs="?", metavar="WHAT", help="a queue id, a Message-ID, or an address")
    parser.add_argument("--since", metavar="TIME", type=duration, help='instead: what came in the last "2h"')
    parser.add_argument("--from", dest="start", metavar="WHEN", type=moment, help='since "2026-11-22 14:30"')
    parser.add_argument("--to", dest="end", metavar="WHEN", type=moment, help="until then")
    parser.add_argument("--transcripts", action="store_true", help="with the last sessions that ended badly")
    parser.add_argument("--json", action="store_true", help="for programs")


def add_explain(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mta explain`."""
    parser.add_argument(
        "addresses", nargs="+", metavar="ADDRESS", help="the recipient; of several each by itself"
    )
    parser.add_argument("--from", dest="sender", metavar="ADDRESS", help='the sender; "<>" for a bounce')
    parser.add_argument("--ip", metavar="ADDRESS", help="of the client (a stranger of whom nothing is known)")
    parser.add_argument("--helo", metavar="NAME", help="what the client calls itself")
    parser.add_argument("--auth", metavar="USER", help="who has logged in, as on a submission port")
    parser.add_argument("--size", metavar="SIZE", type=octets, help='of the message: "10K", "5M"')
    parser.add_argument("--role", metavar="ROLE", help="of the listener: mx, submission, submissions, lmtp")
    parser.add_argument("--tls", action="store_true", help="the client uses STARTTLS")
    parser.add_argument("--message", metavar="FILE", help='takes the header from this; "-": standard input')
    parser.add_argument("--offline", action="store_true", help="without the server, from its files alone")
    parser.add_argument("--json", action="store_true", help="for programs; a line for each address")


def moment(text: str) -> float:
    """For argparse: "2026-11-22 14:30", "2026-11-22", local time unless it says otherwise; or Unix seconds."""
    return float(text) if text.isdecimal() else datetime.fromisoformat(text).timestamp()


def duration(text: str) -> float:
    """For argparse: "2h", or seconds."""
    return float(text) if text.isdecimal() else parse_duration(text)


def octets(text: str) -> int:
    """For argparse: "10K", or octets."""
    found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text.upper())
    if found is None:
        raise ValueError(text)
    return int(found[1]) << 10 * " KMGT".index(found[2] or " ")
