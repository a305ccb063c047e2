"""Reads a configuration file: TOML in, `schema.Config` out, or everything that is wrong with it at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted_mta.config import tables
from twisted_mta.config.checks import check
from twisted_mta.config.errors import ConfigErrors, Problem
from twisted_mta.config.fields import Reading
from twisted_mta.config.files import check_files as look_at_files
from twisted_mta.config.lines import KeyLines
from twisted_mta.config.reading import read_at_most
from twisted_mta.config.schema import Config

_POSITION = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)$")
#: A larger file is no configuration.
MAX_FILE = 16 << 20


def load(path: str | Path, *, check_files: bool = True) -> Config:
    """Read and check a file. Raises ConfigErrors with everything that is wrong; warnings alone raise nothing.

    Without `check_files` the files it names need not exist, as for the tool that creates them.
    """
    return load_with_warnings(path, check_files=check_files)[0]


def load_with_warnings(
    path: str | Path, *, check_files: bool = True, text: str | None = None
) -> tuple[Config, Sequence[Problem]]:
    """As `load`, with the warnings. `text` is what the file says, if it is not to be read."""
    document, reading = _parse(path, text)
    config = tables.config(document, reading, Path(path).absolute())
    check(config, reading)
    if check_files:
        look_at_files(config, reading)
    return config, _verdict(reading)


def load_data_directory(path: str | Path) -> Path:
    """Only `data`, whatever else the file says: a running server must be reachable while somebody edits the file.

    Raises ConfigErrors when the file is no TOML, or `data` itself is wrong.
    """
    document, reading = _parse(path)
    data = tables.data_directory(document, reading)
    _verdict(reading)
    return data


def read_text(path: str | Path) -> str:
    """What the file says. Raises ConfigErrors when it can't be read, or is no UTF-8."""
    return _read(Path(path), str(path))


def _parse(path: str | Path, text: str | None = None) -> tuple[dict[str, Any], Reading]:
    name = str(path)
    if text is None:
        text = read_text(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigErrors([_syntax_problem(error, text, name)]) from None
    except RecursionError:
        raise ConfigErrors([Problem(file=name, message="arrays or tables are nested too deeply")]) from None
    return document, Reading(name, Path(path).absolute().parent, KeyLines(text))


def _verdict(reading: Reading) -> Sequence[Problem]:
    """The warnings, in the order of the file. Raises ConfigErrors if there are errors."""
    problems = sorted(reading.problems, key=lambda problem: problem.line)
    if not all(problem.warning for problem in problems):
        raise ConfigErrors(problems)
    return problems


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            octets = read_at_most(file, MAX_FILE + 1)
    except OSError as error:
        raise ConfigErrors([Problem(file=name, message=f"can't be read: {error.strerror}")]) from None
    if len(octets) > MAX_FILE:
        raise ConfigErrors([Problem(file=name, message=f"is larger than {MAX_FILE >> 20} MB")])
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise ConfigErrors([Problem(file=name, line=line, message="is not UTF-8")]) from None


def _syntax_problem(error: tomllib.TOMLDecodeError, text: str, name: str) -> Problem:
    message = str(error)
    position = _POSITION.search(message)
    line = text.count("\n") + 1
    if position is not None:
        message = message[: position.start()]
        line = int(position[1]) if position[1] else line
    hint = ""
    if message.startswith("Invalid value"):
        hint = ' (text needs quotes: hostname = "mail.example.org")'
    return Problem(file=name, line=line, message=f"TOML syntax: {message}{hint}")
