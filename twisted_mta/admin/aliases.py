"""`mta aliases`: looks at alias files, and rewrites those of other mail systems."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from twisted_mta.admin.errors import EX_NOINPUT, AdminError
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load
from twisted_mta.core.aliases import AliasProblem
from twisted_mta.core.aliases.convert import convert
from twisted_mta.store.alias_files import Loader, Unusable, read_text


def check(options: argparse.Namespace) -> int:
    """mta aliases check [FILE...]"""
    if options.files:
        paths = [Path(name).absolute() for name in options.files]
    else:
        config = load(config_path(options), check_files=False)
        paths = [*config.aliases, *(path for block in config.domain_blocks for path in block.aliases)]
    loader = Loader()
    wrong = 0
    for path in paths:
        parsed = loader.aliases(path)
        problems = (*parsed.problems, *loader.problems)
        loader.problems.clear()
        _tell(problems)
        wrong += len(problems)
        count = f"{len(parsed.entries)} aliases"
        print(f"{path}: {count}, {f'{len(problems)} lines are wrong' if problems else 'good'}")
    if not paths:
        print("the configuration names no alias files (aliases)")
    return 1 if wrong else 0


def convert_file(options: argparse.Namespace) -> int:
    """mta aliases import FILE"""
    path = Path(options.file)
    try:
        text = read_text(path)
    except Unusable as error:
        raise AdminError(f"{path}: {error}", EX_NOINPUT) from None
    converted = convert(text, str(path))
    sys.stdout.write(converted.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    _tell(converted.problems)
    return 1 if converted.problems else 0


def _tell(problems: tuple[AliasProblem, ...]) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)
