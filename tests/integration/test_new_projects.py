# SPDX-License-Identifier: GPL-2.0-or-later
"""Projects of ``fm-consumer new`` pass their own tests and checks, and become RPMs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="the extra `dev` is not installed"
)

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Each answer is in a project with it and in one without it; the shortest name, and the longest.
PROJECTS = {
    "x": (),
    "reporter": ("--schema", "--publishing"),
    "a-watcher-of-builds-and-tags": ("--async", "--schema", "--database"),
    "recorder": ("--database", "--publishing", "--topic", "org.fedoraproject.*.bodhi.#"),
    "all-of-it": ("--async", "--schema", "--database", "--publishing"),
}


def skip_unless_in_ci(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@dataclass
class Project:
    """A project, and the environment with which its commands run."""

    name: str
    directory: Path
    environment: dict[str, str]

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def messages(self) -> Path | None:
        """Its package of message classes."""
        directory = self.directory / "messages"
        return directory if directory.exists() else None

    def run(self, *command: object, cwd: Path | None = None) -> str:
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.directory,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout


def installed(project: Project, directory: Path) -> None:
    """Install *project* and its message classes, without their requirements, which are here."""
    sources = filter(None, (project.directory, project.messages))
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    project.run(sys.executable, *pip, "--no-compile", "--target", directory, *sources)


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory) -> Path:
    """The types of the libraries are read once, for all projects."""
    directory: Path = tmp_path_factory.mktemp("mypy")
    return directory


@pytest.fixture(scope="module")
def project(request, tmp_path_factory, mypy_cache) -> Project:
    place: Path = tmp_path_factory.mktemp("projects")
    site = place / "site"
    path = os.pathsep.join((str(BIN), os.environ["PATH"]))
    environment = {"PYTHONPATH": str(site), "PATH": path, "MYPY_CACHE_DIR": str(mypy_cache)}
    made = Project(request.param, place / request.param, environment)
    made.run(BIN / "fm-consumer", "new", made.name, *PROJECTS[made.name], cwd=place)
    installed(made, site)
    return made


@pytest.mark.parametrize("project", PROJECTS, indirect=True)
def test_the_checks_of_a_project_pass(project):
    # ruff (rules and format), mypy --strict, pytest, and `fm-consumer check`.
    said = project.run("./ci")
    assert " passed" in said
    assert "failed" not in said
    assert "Success: no issues found" in said
    assert f"{project.name}.toml: nothing is wrong" in said
    assert "warning" not in said.lower()


@pytest.mark.parametrize("project", ["x", "all-of-it"], indirect=True)
def test_a_project_becomes_an_rpm(project, tmp_path):
    if shutil.which("rpmbuild") is None:
        skip_unless_in_ci("rpmbuild not found: packaging/system-packages rpm")
    sources = {project.directory / f"{project.name}.spec": project.directory}
    if project.messages:
        spec = project.messages / f"python-{project.name}-messages.spec"
        sources[spec] = project.messages
    for spec, directory in sources.items():
        beside = tmp_path / spec.stem
        build = ("-m", "build", "--sdist", "--no-isolation", "--outdir", beside)
        project.run(sys.executable, *build, directory)
        shutil.copy(spec, beside)
        rpm = (ROOT / "packaging/rpm/build", "--python", sys.executable, "--spec")
        # The message classes are not installed where %check runs.
        tests = ("--without", "tests") if project.messages else ()
        project.run(*rpm, beside / spec.name, tmp_path / "rpms", *tests)
    [package] = (tmp_path / "rpms").glob(f"{project.name}-0.1.0-1*.noarch.rpm")
    files = project.run("rpm", "-qpl", package).splitlines()
    unit = f"/usr/lib/systemd/system/fm-consumer@{project.name}.service.d"
    expected = {f"/etc/fedora-messaging/{project.name}.toml", f"{unit}/30-{project.name}.conf"}
    assert expected <= set(files)
    assert f"/usr/share/doc/{project.name}/README.md" in files
    if project.messages:
        [package] = (tmp_path / "rpms").glob(f"python3-{project.name}-messages-*.rpm")
        files = project.run("rpm", "-qpl", package).splitlines()
        assert any(file.endswith(f"/{project.module}_messages/__init__.py") for file in files)
        assert not any("/tests/" in file for file in files)
