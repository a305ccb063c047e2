"""The `mta` command: reads the command line and calls what does the work, which is imported only then."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from twisted_mta.admin.arguments import add_explain, add_queue, add_trace
from twisted_mta.admin.errors import EX_CONFIG, EX_IOERR, EX_NOPERM, EX_USAGE, AdminError

_EPILOG = """\
A first server, to try:
  mta init --demo run             write a demo site and tell how to use it
  twistd -n mta --config run/mta.toml

Every day:
  mta check-config                is the configuration right?
  mta expand postmaster           where would mail for this address go?
  mta aliases import /etc/aliases how would that file of another mail system look here?
  mta explain bob@example.org --from carol@example.com --ip 192.0.2.9
                                  would this mail be taken, and what becomes of it?
  mta user add carol              asks for a password; --random makes one
  mta queue list                  what waits, since when, and why
  mta queue retry --all           try everything now
  mta tls --plaintext             which domains get mail without TLS?
  mta trace bob@example.org       what became of the mail for bob?
  mta simulate --down example.org=3d --from-queue
                                  what would become of it?
  mta reload                      read the configuration and the accounts again
  echo hello | mta sendmail bob   as other programs call sendmail

The configuration is the file after --config, else $MTA_CONFIG, else /etc/mta/mta.toml.
Exit codes: 0 done, 1 failed, 64 wrong usage, 75 try again later (no server), 78 the configuration is wrong.
"""

#: What other mail systems call some of our commands.
_CLASSIC = {
    "sendmail": ["sendmail"],
    "mailq": ["queue", "list"],
    "newaliases": ["sendmail", "-bi"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code. `argv` is without the program's name (default: sys.argv)."""
    if argv is None:
        program = os.path.basename(sys.argv[0])
        argv = _CLASSIC.get(program, []) + sys.argv[1:]
    try:
        return _run(list(argv))
    except AdminError as error:
        print(f"mta: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_IOERR
    except OSError as error:
        print(f"mta: {error}", file=sys.stderr)
        return EX_NOPERM if isinstance(error, PermissionError) else EX_IOERR
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str]) -> int:
    from twisted_mta.config.errors import ConfigErrors
    from twisted_mta.store.faults import arm_from

    arm_from(os.environ)
    try:
        before, command = _split_at_sendmail(argv)
        if command is not None:
            # The classic flags (-oi, -FName, -bs) are none that argparse could read.
            options = _parser().parse_args([*before, "sendmail"])
            from twisted_mta.admin.sendmail import main as sendmail

            return sendmail(options, command, main)
        options = _parser().parse_args(argv)
        if not hasattr(options, "run"):
            _parser().print_help()
            return EX_USAGE
        return _imported(options.run)(options)
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return EX_CONFIG
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a mistake
        return EX_USAGE if stop.code == 2 else int(stop.code or 0)


def _split_at_sendmail(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """What precedes "sendmail", and its own arguments; (argv, None) if that is not the command."""
    position = 0
    while position < len(argv) and argv[position].startswith("-"):
        position += 2 if argv[position] in ("-c", "--config") else 1
    if argv[position : position + 1] == ["sendmail"]:
        return argv[:position], argv[position + 1 :]
    return argv, None


def _imported(name: str) -> Callable[[argparse.Namespace], int]:
    module, _, function = name.partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(
        import_module(f"twisted_mta.admin.{module}"), function
    )
    return found


class _Parser(argparse.ArgumentParser):
    """Prints a hint to --help with its errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{self.prog}: {message}\nTry: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mta",
        description="Administer a twisted_mta mail server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration file")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, run: str, text: str, into: argparse._SubParsersAction[_Parser] = commands
    ) -> argparse.ArgumentParser:
        added = into.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        # Where people write it as well; SUPPRESS, for a default here would undo what stood before the command.
        added.add_argument("-c", "--config", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return added

    _add_users(
        command, commands.add_parser("user", help="accounts: add, passwd, remove, list, rules, app-password")
    )
    check = command(
        "check-config", "directory:check_config", "tell everything that is wrong with the configuration"
    )
    check.add_argument("file", nargs="?", metavar="FILE", help="instead of the one in use")
    expanded = command("expand", "directory:expand", "tell where mail for an address goes, and why")
    expanded.add_argument("addresses", nargs="+", metavar="ADDRESS")
    _add_aliases(command, commands.add_parser("aliases", help="alias files: check, import"))
    explained = command("explain", "explain:explain", "tell what would become of a mail, without sending it")
    explained.epilog = "exit codes: 0 it would be accepted, 1 it would be refused (now or for good)"
    add_explain(explained)
    add_queue(
        command,
        commands.add_parser(
            "queue", help="the queue: list, show, destinations, hold, release, retry, expire, delete, reroute"
        ),
    )
    add_trace(command("trace", "trace:trace", "tell what happened to a message"))
    command("reload", "server:reload", "let the server read its configuration, aliases and accounts again")
    _add_simulate(
        command("simulate", "simulate:simulate", "tell what would become of messages, without sending any")
    )
    _add_callouts(command("callouts", "callouts:callouts", "tell what other servers said about addresses"))
    _add_tls(command("tls", "tls:show", "tell which TLS other domains have and demand"))
    status = command("status", "server:status", "tell what the server is doing")
    status.add_argument("--json", action="store_true", help="for programs")
    commands.add_parser(
        "sendmail", help="send a message from standard input (see: mta sendmail --help)", add_help=False
    )
    _add_init(command("init", "init:init", "write a new site: configuration, accounts, certificate"))
    return parser


def _add_aliases(command: Callable[..., argparse.ArgumentParser], parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    checked = command("check", "aliases:check", "tell what is wrong with alias files", commands)
    checked.add_argument("files", nargs="*", metavar="FILE", help="instead of those in use")
    imported = command(
        "import",
        "aliases:convert_file",
        "rewrite an alias file of Postfix, Sendmail or Exim, and tell what of it can't be taken",
        commands,
    )
    imported.add_argument("file", metavar="FILE", help="aliases(5), virtual(5) or a virtusertable")


def _add_init(init: argparse.ArgumentParser) -> None:
    init.add_argument(
        "directory", metavar="DIR", help="made if it is not there; nothing in it is overwritten"
    )
    init.add_argument(
        "--demo", action="store_true", help="a site to try on this machine, with users alice and bob"
    )
    init.add_argument("--domain", metavar="DOMAIN", help="the domain whose mail ends here")
    init.add_argument("--hostname", metavar="NAME", help="the full name of this machine")


_SIMULATE = """\
examples:
  mta simulate --down example.org=3d --from-queue
  mta simulate --down example.org=3d@2h --message f.eml
  mta simulate --greylist '*=10m' --synthetic 100000 --over 1d
"""


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    from twisted_mta.admin.simulate_options import add_arguments

    parser.epilog, parser.formatter_class = _SIMULATE, argparse.RawDescriptionHelpFormatter
    add_arguments(parser)


def _add_callouts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--forget", metavar="ADDRESS", help='ask about it again; "@example.org" is a whole domain'
    )
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="at most so many (1000)")
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", nargs="?", metavar="DOMAIN", help="only this one")
    parser.add_argument("--plaintext", action="store_true", help="only those whose last session had no TLS")
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="at most so many (1000)")
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_users(command: Callable[..., argparse.ArgumentParser], parser: argparse.ArgumentParser) -> None:
    into = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, text in (
        ("add", "accounts:add", "add an account"),
        ("passwd", "accounts:passwd", "set the password of an account"),
    ):
        added = command(name, run, text, into)
        added.add_argument("name", metavar="NAME", help='"alice@example.org", or "alice" of the first domain')
        added.add_argument("--random", action="store_true", help="make a password and print it")
    removed = command("remove", "accounts:remove", "remove an account, but not its mail", into)
    removed.add_argument("name", metavar="NAME")
    listed = command("list", "accounts:list_accounts", "list the accounts", into)
    listed.add_argument("--json", action="store_true", help="for programs")
    rules = command("rules", "user_rules:rules", "show or change what a user's mail goes through", into)
    rules.add_argument(
        "name", nargs="?", metavar="NAME", help="without it all accounts that have some are listed"
    )
    rules.add_argument("--json", action="store_true", help="for programs")
    changed = rules.add_mutually_exclusive_group()
    changed.add_argument(
        "--set", metavar="FILE", help='lines such as "forward: bob@example.net, keep"; - is standard input'
    )
    changed.add_argument("--clear", action="store_true", help="take all rules away")
    apps = into.add_parser("app-password", help="passwords for single programs: add, list, revoke")
    _add_app_passwords(command, apps)


def _add_app_passwords(
    command: Callable[..., argparse.ArgumentParser], parser: argparse.ArgumentParser
) -> None:
    into = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    added = command("add", "app_passwords:add", "make an app password and print it, once", into)
    listed = command("list", "app_passwords:list_app_passwords", "list the app passwords of an account", into)
    revoked = command("revoke", "app_passwords:revoke", "make an app password useless, at once", into)
    for each in (added, listed, revoked):
        each.add_argument("name", metavar="NAME")
    for each in (added, revoked):
        each.add_argument("label", metavar="LABEL", help='which program it is for: "phone"')
    added.add_argument("--only", metavar="SERVICES", help="smtp, imap, pop3, or several with commas")
    listed.add_argument("--json", action="store_true", help="for programs")


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from twisted_mta import __version__

        print(f"mta {__version__}")
        raise SystemExit(0)
