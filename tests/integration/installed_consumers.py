# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs consumers from PyPI, each in a virtual environment of its own, outside the repository.

They are kept for the next run, under ``$XDG_CACHE_HOME/consumer-framework-tests`` or its like.
Nothing of this checkout is installed there: it comes with PYTHONPATH.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def cache() -> Path:
    if given := os.environ.get("XDG_CACHE_HOME"):
        base = Path(given)
    else:
        base = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    return base / "consumer-framework-tests"


def own_requirements() -> list[str]:
    """What this project needs at run time."""
    described = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    requirements: list[str] = described["project"]["dependencies"]
    return requirements


@functools.cache
def install(name: str, requirements: tuple[str, ...]) -> Path | str:
    """Install *requirements* beside this project's own.

    Returns:
        The Python of the environment, or the end of pip's output where they do not install.
    """
    wanted = sorted({*requirements, *own_requirements()})
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    place = cache() / f"{name}-{digest}"
    place.parent.mkdir(parents=True, exist_ok=True)
    python = place / "bin" / "python"
    complete = place / "complete"
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        # One process of the test run installs, the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            commands = [
                [sys.executable, "-m", "venv", "--clear", str(place)],
                [str(python), "-m", "pip", "install", "--quiet", "--retries", "1", *wanted],
            ]
            for command in commands:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    return done.stderr[-2000:]
            complete.touch()
    return python


def run_script(python: Path, script: str, *arguments: str, **environment: str) -> None:
    """Run *script* by the Python that :func:`install` returned."""
    subprocess.run(
        [str(python), "-c", script, *arguments],
        check=True,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )
