"""`twistd` finds the plugin however the package was installed, and `mta` is there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def run(*command: str | Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=clean | environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lists_mta(output: str) -> bool:
    return any(line.split()[:1] == ["mta"] for line in output.splitlines())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel installed; its bin directory."""
    directory = tmp_path_factory.mktemp("packaging")
    # Built from a copy: setuptools writes beside the sources.
    sources = directory / "sources"
    sources.mkdir()
    for name in run("git", "-C", CHECKOUT, "ls-files", "-co", "--exclude-standard").splitlines():
        origin, copy = CHECKOUT / name, sources / name
        if origin.is_file() and not name.startswith("tests/"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(origin.read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, sources)
    (wheel,) = directory.glob("*.whl")
    venv.create(directory / "venv", with_pip=True)
    run(directory / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel)
    return directory / "venv/bin"


def test_from_a_wheel(bare: Path) -> None:
    assert lists_mta(run(bare / "twistd", "--help"))
    assert "mta init --demo" in run(bare / "twistd", "mta", "--help")
    assert "mta user add" in run(bare / "mta", "--help")
    # Nothing that the program reads at run time was left out of the wheel.
    demo = bare.parent / "demo"
    run(bare / "mta", "init", "--demo", demo)
    run(bare / "mta", "check-config", demo / "mta.toml")


def test_from_a_checkout(bare: Path) -> None:
    run(bare / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "twisted-mta")
    assert not lists_mta(run(bare / "twistd", "--help"))
    assert lists_mta(run(bare / "twistd", "--help", PYTHONPATH=str(CHECKOUT)))


def test_from_an_editable_install() -> None:
    """The one that `make test` made."""
    assert lists_mta(run(Path(sys.executable).with_name("twistd"), "--help"))
