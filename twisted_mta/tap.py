"""`twistd mta`: reads the configuration and makes the service. Nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from twisted.application.service import IService
from twisted.logger import ILogObserver
from twisted.python import usage

from twisted_mta import __version__
from twisted_mta.config.errors import ConfigErrors
from twisted_mta.config.loader import load_with_warnings, read_text
from twisted_mta.config.schema import Config
from twisted_mta.service.logs import observer
from twisted_mta.service.start import StartError
from twisted_mta.store.faults import VARIABLE, arm_from

#: sysexits.h: the configuration is wrong.
EX_CONFIG = 78


_EXAMPLES = """
  mta init --demo run                  makes a demo site to play with
  twistd -n mta --config run/mta.toml  runs it in the foreground
  mta check-config run/mta.toml        tells what is wrong with it
  kill -HUP PID, or mta reload         reads it again; a bad one changes nothing
"""


class Options(usage.Options):
    """The command line of `twistd mta`."""

    synopsis = "[--config FILE]"
    longdesc = """\
Runs a mail server: it receives mail, takes submissions from those who log in, keeps what it can't deliver at once
in a durable queue, delivers to Maildirs, aliases, mailing lists and other hosts, and serves the mailboxes by POP3
and IMAP. What it does is said in one file: see etc/mta.toml, where every setting is explained. Started as root it
binds its ports first and then runs as the configured user."""

    optParameters = (
        ("config", "c", "/etc/mta/mta.toml", "The configuration file."),
        (
            "worker",
            None,
            None,
            "Be this one of several processes; for the server itself, which starts them.",
            int,
        ),
        ("channel", None, None, "The descriptor by which a worker speaks with its parent.", int),
    )

    def getUsage(self, width: int | None = None) -> str:
        """The help; usage.Options would fill the lines of the examples into one paragraph."""
        return super().getUsage(width) + _EXAMPLES

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"twisted_mta {__version__}")
        sys.exit(0)


def makeService(options: Options) -> IService:
    """Make the service from the configuration named on the command line; a bad one ends the program with 78."""
    try:
        _arm_faults()
        if options["worker"] is not None:
            return _worker(options)
        text = read_text(options["config"])
        config, warnings = load_with_warnings(options["config"], text=text)
        for warning in warnings:
            print(warning, file=sys.stderr)
        log = _log_observer(config, options.parent)
        if config.workers != 1:
            return _supervisor(config, text, log, options.parent)
        from twisted_mta.service.server import MailServer

        return MailServer.from_config(config, log)
    except (ConfigErrors, StartError) as error:
        print(error, file=sys.stderr)
        sys.exit(EX_CONFIG)


# What follows is imported where it is needed: the parent of workers has no use for most of the server.


def _worker(options: Options) -> IService:
    from twisted_mta.service.worker import Worker

    if options["channel"] is None:
        raise StartError("a worker is started by its server only")
    worker = Worker.from_parent(options["channel"])
    worker.observer = _log_observer(worker.config, options.parent, worker.number)
    return worker


def _supervisor(
    config: Config, text: str, log: ILogObserver | None, twistd: Mapping[str, Any] | None
) -> IService:
    from twisted.internet import reactor

    from twisted_mta.service.supervisor import Supervisor, worker_count

    if worker_count(config) == 1:  # "auto" on a machine with one processor
        from twisted_mta.service.server import MailServer

        return MailServer.from_config(config, log)
    return Supervisor(config, text, _command(twistd or {}), reactor, log)


#: The options of twistd that workers are to have too.
_PASSED_ON = ("logfile", "syslog", "prefix", "logger", "reactor")


def _command(twistd: Mapping[str, Any]) -> list[str]:
    """What starts this program again, in the foreground."""
    given = {name: twistd.get(name) for name in _PASSED_ON}
    given["logfile"] = _logfile(twistd)
    if given["logfile"] and given["logfile"] != "-":
        given["logfile"] = os.path.abspath(given["logfile"])
    if not given["syslog"]:
        given["prefix"] = None
    found = [sys.executable, os.path.abspath(sys.argv[0]), "--nodaemon", "--pidfile="]
    for name, value in given.items():
        if value:
            found += [f"--{name}"] if value in (True, 1) else [f"--{name}={value}"]
    return [*found, "mta"]


def _arm_faults() -> None:
    """For tests of crashes and failing disks (`store.faults`). Raises StartError."""
    try:
        armed = arm_from(os.environ)
    except ValueError as error:
        raise StartError(str(error)) from None
    if armed:
        print(f"warning: told by {VARIABLE} to fail: {os.environ[VARIABLE]}", file=sys.stderr)


def _log_observer(
    config: Config, twistd: Mapping[str, Any] | None, worker: int | None = None
) -> ILogObserver | None:
    """Our log in place of twistd's own, where twistd would write to the terminal or a file."""
    from twisted.internet import reactor

    if twistd is None or twistd.get("syslog") or twistd.get("logger"):
        return None
    logfile = _logfile(twistd)
    try:
        return observer(config.log_format, logfile, sys.stdout, reactor, worker)
    except OSError as error:
        raise StartError(f"can't log to {logfile}: {error.strerror}") from None


def _logfile(twistd: Mapping[str, Any]) -> str | None:
    logfile: str | None = twistd.get("logfile")
    if not logfile and not twistd.get("nodaemon"):
        return "twistd.log"  # as twistd itself does
    return logfile
