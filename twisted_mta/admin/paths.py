"""Where the configuration is."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from twisted_mta.admin.errors import EX_CONFIG, AdminError

SYSTEM_CONFIG = Path("/etc/mta/mta.toml")


def config_path(options: argparse.Namespace) -> Path:
    """The configuration file to use. Raises AdminError if there is none."""
    given = options.config or os.environ.get("MTA_CONFIG")
    if given:
        return Path(given)
    if SYSTEM_CONFIG.exists():
        return SYSTEM_CONFIG
    hint = "name one with --config or $MTA_CONFIG, or make a demo site with: mta init --demo run"
    if Path("run/mta.toml").exists():
        hint = "the demo site's would be: mta --config run/mta.toml"
    raise AdminError(f"there is no {SYSTEM_CONFIG}; {hint}", EX_CONFIG)
