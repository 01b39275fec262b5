# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader who follows the first tutorial literally sees the text of the page."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from consumer_framework.testing.broker import Broker

from .pages import Reader

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("build") is None, reason="the extra `dev` is not installed"
)

PAGE = Path(__file__).resolve().parents[2] / "docs/tutorial/first-consumer.md"
# The packages of the reader's virtual environment are those of this one, and need no network.
PIP = """\
#!/bin/sh
command=$1
shift
exec "{python}" -m pip --python "{reader}" "$command" --no-deps --no-build-isolation --no-index "$@"
"""


def virtual_environment(place: Path) -> dict[str, str]:
    """Make a virtual environment that has this one's packages, and return its variables."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    programs = place / "bin"
    python = programs / "python"
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
    )
    pip = programs / "pip"
    pip.write_text(PIP.format(python=sys.executable, reader=python))
    pip.chmod(0o755)
    for script in ("fm-consumer", "pytest"):
        (programs / script).write_text(
            f"#!{python}\n" + Path(sys.executable).with_name(script).read_text().partition("\n")[2]
        )
        (programs / script).chmod(0o755)
    unset = {"PYTHONPATH", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "FEDORA_MESSAGING_CONF"}
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    return {**inherited, "PATH": f"{programs}:{os.environ['PATH']}"}


def test_the_first_tutorial_keeps_its_promises(tmp_path):
    if lacking := Broker.missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    environment = virtual_environment(tmp_path / "venv")
    projects = tmp_path / "projects"
    projects.mkdir()
    Reader(projects, "greeter.toml", environment).follow(PAGE.read_text(encoding="utf-8"))
