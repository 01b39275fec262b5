# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the tests on every supported Python of this machine: `make test-all`."""

import os
from pathlib import Path

import nox

# PATH does not lead to pyenv's interpreters.
for directory in sorted(Path.home().glob(".pyenv/versions/3.1*/bin")):
    os.environ["PATH"] += f"{os.pathsep}{directory}"

nox.options.default_venv_backend = "venv"
nox.options.download_python = "never"
# Skip a missing Python, also with $CI.
nox.options.error_on_missing_interpreters = False


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the unit and integration tests; arguments after `--` go to pytest."""
    session.install(".[test]")
    # It is compiled, which not every machine can do for every Python.
    session.install(".[proton]", success_codes=[0, 1])
    session.run("pytest", *(session.posargs or ("tests/unit", "tests/integration")))


@nox.session(python="3.11")
def schemas(session: nox.Session) -> None:
    """Compare the codec with fedora-messaging over every known package of message schemas."""
    session.install(".[test,schemas]")
    session.run("pytest", "tests/unit/test_schema_packages.py", env={"SCHEMAS": "full"})
