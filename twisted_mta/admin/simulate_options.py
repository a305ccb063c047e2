"""The command line of `mta simulate`: apart from what it runs, which is imported only then."""

from __future__ import annotations

import argparse

from twisted_mta.core.conditions import Kind

_CONDITIONS = (
    (Kind.DOWN, "DOMAIN=TIME[@START]", "out of reach for that time"),
    (Kind.TEMPFAIL, "DOMAIN=TIME[@START]", "answers 451 for that time"),
    (Kind.GREYLIST, "DOMAIN=TIME", "takes a message only that long after the first attempt"),
    (Kind.SLOW, "DOMAIN=TIME", "takes that long for each message"),
    (Kind.REJECT, "DOMAIN", "refuses every message"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--from-queue", action="store_true", help="what waits in the queue now")
    what.add_argument("--message", metavar="FILE", help='one message; "-": from standard input')
    what.add_argument("--synthetic", type=int, metavar="N", help="so many made-up messages")
    parser.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a recipient in place of those that the message's header names, or a domain of made-up ones",
    )
    parser.add_argument("--from", dest="sender", metavar="ADDRESS", help="the sender (the postmaster)")
    parser.add_argument(
        "--over", metavar="TIME", help="made-up messages come in during that time (the first day)"
    )
    for kind, metavar, text in _CONDITIONS:
        parser.add_argument(f"--{kind}", action="append", default=[], metavar=metavar, help=text)
    parser.add_argument("--for", dest="length", default="7d", metavar="TIME", help="how long (7d)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides what is left to chance")
    parser.add_argument("--json", action="store_true", help="for programs")
