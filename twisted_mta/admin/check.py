"""`mta check-config`."""

from __future__ import annotations

import argparse
import sys

from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load_with_warnings


def check_config(options: argparse.Namespace) -> int:
    """Errors come out of `load_with_warnings` as an exception that main prints."""
    path = options.file or config_path(options)
    _, warnings = load_with_warnings(path)
    for warning in warnings:
        print(warning, file=sys.stderr)
    print(f"{path}: good" + (f", with {len(warnings)} warnings" if len(warnings) > 1 else ""))
    return 0
