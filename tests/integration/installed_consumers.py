# SPDX-License-Identifier: GPL-2.0-or-later
"""Install consumers from PyPI, each in its own virtual environment outside the repository.

The next run reuses them, from ``$XDG_CACHE_HOME/consumer-framework-tests`` or its default. This
checkout is not installed there: :func:`python_path` provides it.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


def cache() -> Path:
    if given := os.environ.get("XDG_CACHE_HOME"):
        base = Path(given)
    else:
        base = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    return base / "consumer-framework-tests"


def _project() -> dict[str, Any]:
    described: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    project: dict[str, Any] = described["project"]
    return project


def own_requirements() -> list[str]:
    """Return the run-time requirements of this project."""
    requirements: list[str] = _project()["dependencies"]
    return requirements


@functools.cache
def python_path() -> str:
    """Return PYTHONPATH for this checkout, with the entry points that an installation has."""
    folder = Path(tempfile.mkdtemp(prefix="entry-points-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    described = folder / "consumer_framework-0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: consumer-framework\nVersion: 0\n"
    )
    lines = []
    for group, points in _project()["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (described / "entry_points.txt").write_text("\n".join(lines))
    return f"{REPOSITORY}{os.pathsep}{folder}"


@functools.cache
def install(
    name: str, requirements: tuple[str, ...], without_dependencies: tuple[str, ...] = ()
) -> Path | str:
    """Install *requirements* next to this project's own.

    Args:
        without_dependencies: Requirements whose own ones are in *requirements*, as far as the tests
            need them.

    Returns:
        The Python of the environment, or the end of pip's output if they do not install.
    """
    wanted = sorted({*requirements, *own_requirements()})
    lines = "\n".join([sys.version, *wanted, *without_dependencies])
    digest = hashlib.sha256(lines.encode()).hexdigest()[:12]
    place = cache() / f"{name}-{digest}"
    place.parent.mkdir(parents=True, exist_ok=True)
    python = place / "bin" / "python"
    complete = place / "complete"
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        # One process of the test run installs, and the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            pip = [str(python), "-m", "pip", "install", "--quiet", "--retries", "1"]
            commands = [
                [sys.executable, "-m", "venv", "--clear", str(place)],
                [*pip, *wanted],
            ]
            if without_dependencies:
                commands.append([*pip, "--no-deps", *without_dependencies])
            for command in commands:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    return done.stderr[-2000:]
            complete.touch()
    return python


def run_script(python: Path, script: str, *arguments: str, **environment: str) -> None:
    """Run *script* with the Python that :func:`install` returned."""
    subprocess.run(
        [str(python), "-c", script, *arguments],
        check=True,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )
