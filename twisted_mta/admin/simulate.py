"""`mta simulate`: what would become of messages, by the real queue on a clock of its own."""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    formatEventAsClassicLogText,
    globalLogBeginner,
)

from twisted_mta.admin.directory import read_directory
from twisted_mta.admin.errors import EX_DATAERR, EX_IOERR, EX_USAGE, AdminError
from twisted_mta.admin.message import header_recipients
from twisted_mta.admin.paths import config_path
from twisted_mta.admin.timeline import as_json, as_text
from twisted_mta.config.loader import load
from twisted_mta.config.schema import Config
from twisted_mta.core.address import Address, AddressError, parse_domain
from twisted_mta.core.conditions import Condition, Conditions, Kind
from twisted_mta.core.schedule import parse_duration
from twisted_mta.service.shards import directory_of, shards_in
from twisted_mta.service.simulation.run import Arrival, Setup, Simulation
from twisted_mta.service.simulation.timeline import DETAILED, Timeline
from twisted_mta.store.queue.schema import QueueFileError
from twisted_mta.store.queue.snapshot import read_queue

T = TypeVar("T")

#: Messages that may be made up, and domains that they go to where none is named.
MAX_SYNTHETIC = 1_000_000
_DOMAINS = 1000
#: Seconds by which the clock moves at least where there are too many messages to look at each.
_RESOLUTION = 10.0


def simulate(options: argparse.Namespace) -> int:
    """mta simulate"""
    config = load(config_path(options), check_files=False)
    setup = _setup(options, config)
    with _errors_only(), _rare_collections():
        timeline = _run(options, config, setup)
    if options.json:
        print(json.dumps(as_json(timeline, options.seed)))
    else:
        for line in as_text(timeline, options.seed):
            print(line)
    return 0


def _setup(options: argparse.Namespace, config: Config) -> Setup:
    length = _given(parse_duration, options.length, "--for")
    if length <= 0:
        raise AdminError("--for: nothing happens in no time", EX_USAGE)
    conditions = [
        _given(lambda given, kind=kind: Condition.parse(kind, given), text, f"--{kind}")  # type: ignore[misc]
        for kind in Kind
        for text in getattr(options, kind)
    ]
    directory, told = read_directory(config)
    for text in told:
        print(f"warning: {text}", file=sys.stderr)
    return Setup(
        queue=config.queue,
        relay=config.relay,
        directory=directory,
        hostname=config.hostname,
        postmaster=config.postmaster,
        conditions=Conditions(conditions),
        random=random.Random(options.seed).random,  # noqa: S311  the point is that it repeats
        begin=float(int(time.time())),
        seconds=length,
    )


def _run(options: argparse.Namespace, config: Config, setup: Setup) -> Timeline:
    if options.from_queue:
        return _run_queue(config, setup)
    sender = _address(options.sender, "--from") if options.sender else config.postmaster
    if options.message is not None:
        data = _read(options.message)
        named = options.to or header_recipients(data)
        if not named:
            raise AdminError(
                "--message: its header names no recipient, so say one with --to ADDRESS", EX_USAGE
            )
        recipients = tuple(_address(text, "--to" if options.to else "--message") for text in named)
        detailed = len(recipients) <= DETAILED
        return Simulation(_as_fits(setup, detailed)).run([Arrival(0.0, sender, recipients, data)])
    if not 1 <= options.synthetic <= MAX_SYNTHETIC:
        raise AdminError(f"--synthetic: 1 to {MAX_SYNTHETIC} messages", EX_USAGE)
    over = _given(parse_duration, options.over, "--over") if options.over else 86400.0
    arrivals = _made_up(options, setup, sender, min(over, setup.seconds))
    return Simulation(_as_fits(setup, options.synthetic <= DETAILED)).run(arrivals)


def _run_queue(config: Config, setup: Setup) -> Timeline:
    parts = [directory_of(config.data, number) for number in shards_in(config.data)]
    parts = [directory for directory in parts if (directory / "queue.sqlite").is_file()]
    if not parts:
        raise AdminError(f"there is no queue at {config.queue_directory}")
    try:
        few = sum(len(item.recipients) for part in parts for item, _ in read_queue(part)) <= DETAILED
        simulation = Simulation(_as_fits(setup, few))
        for part in parts:
            for item, body in read_queue(part):
                simulation.load(item, body)
    except QueueFileError as error:
        raise AdminError(str(error), EX_IOERR) from None
    return simulation.run()


def _as_fits(setup: Setup, detailed: bool) -> Setup:
    """Few messages are looked at one by one."""
    return attrs.evolve(setup, detailed=detailed, resolution=0.0 if detailed else _RESOLUTION)


def _made_up(options: argparse.Namespace, setup: Setup, sender: Address, over: float) -> Iterator[Arrival]:
    """Messages at even intervals, to the named places in turn."""
    named = [_place(text) for text in options.to]
    if not named:
        mentioned = dict.fromkeys(each.pattern for each in setup.conditions.conditions)
        named = [Address("", name) for name in mentioned if not name.startswith((".", "*"))]
        named += [Address("", f"d{number}.example.net") for number in range(_DOMAINS - len(named))]
    count = options.synthetic
    for number in range(count):
        place = named[number % len(named)]
        recipient = place if place.local else place.with_local(f"user{number}")
        yield Arrival(number * over / count, sender, (recipient,))


def _place(text: str) -> Address:
    if "@" in text:
        return _address(text, "--to")
    return Address("", _given(parse_domain, text, "--to"))


def _address(text: str, option: str) -> Address:
    return _given(Address.parse, text, option)


def _given(parse: Callable[[str], T], text: str, option: str) -> T:
    """What was given with an option. Raises AdminError."""
    try:
        return parse(text)
    except AddressError as error:
        raise AdminError(f"{option}: {text!r} is not right: {error}", EX_DATAERR) from None
    except ValueError as error:
        raise AdminError(f"{option}: {error}", EX_USAGE) from None


def _read(name: str) -> bytes:
    """The message, with CRLF line ends."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@contextmanager
def _errors_only() -> Iterator[None]:
    """The log of what is only simulated is of no interest, unless a bug speaks."""
    observer = FilteringLogObserver(
        FileLogObserver(sys.stderr, formatEventAsClassicLogText),
        [LogLevelFilterPredicate(defaultLogLevel=LogLevel.critical)],
    )
    globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)
    yield


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Hundreds of thousands of objects that live long make each search for garbage expensive."""
    # PyPy's collector has no thresholds, and looks seldom at what is old.
    if sys.implementation.name != "cpython":
        yield
        return
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
