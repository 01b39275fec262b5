# SPDX-License-Identifier: GPL-2.0-or-later
"""The sdist, the wheel and the RPMs are complete, reproducible and without errors."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

# `make venv` installs hatchling; an environment only for the tests cannot build.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="the extra `dev` is not installed"
)

ROOT = Path(__file__).resolve().parents[2]
RPM = ROOT / "packaging/rpm"
BIN = Path(sys.executable).parent


def skip_unless_in_ci(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Copy the current files of the checkout to another directory."""
    if not (ROOT / ".git").exists():
        skip_unless_in_ci("this is not a checkout")
    target: Path = tmp_path_factory.mktemp("elsewhere") / "a copy"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def rpms(tmp_path_factory) -> Path:
    """Build the packages."""
    if shutil.which("rpmbuild") is None:
        skip_unless_in_ci("rpmbuild not found: packaging/system-packages rpm")
    output: Path = tmp_path_factory.mktemp("rpms")
    build(ROOT, output)
    return output


def build(project: Path, output: Path, **environment: str) -> None:
    run(
        *(project / "packaging/rpm/build", "--python", sys.executable, output),
        *("--without", "tests"),
        cwd=output,
        SOURCE_DATE_EPOCH="1767225600",
        **environment,
    )


def test_the_same_source_gives_the_same_bytes_wherever_it_is_built(rpms, sources, tmp_path):
    build(sources, tmp_path, TZ="Asia/Kathmandu", LANG="de_DE.UTF-8", HOME=str(tmp_path))
    here = {path.name: path.read_bytes() for path in rpms.iterdir()}
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert sorted(here) == sorted(there)
    assert {path.rpartition(".")[2] for path in here} == {"gz", "rpm"}
    assert len(here) == 6, "the sdist, the source package, and four packages"
    assert [name for name in here if here[name] != there[name]] == []


def test_rpmlint_finds_no_error(rpms):
    if not (BIN / "rpmlint").exists() and shutil.which("rpmlint") is None:
        skip_unless_in_ci("rpmlint not found: make venv")
    said = run(RPM / "lint", "--python", sys.executable, rpms)
    assert ": E: " not in said
    assert ": W: " not in said


def package(rpms: Path, name: str) -> Path:
    [found] = rpms.glob(f"{name}-0*.noarch.rpm")
    return found


def test_the_packages_have_the_requirements_of_the_project(rpms):
    library = run("rpm", "-qp", "--requires", package(rpms, "python3-consumer-framework"))
    assert "dist(fedora-messaging) < 3.10" in library
    assert "dist(pydantic) >= 2.6" in library
    command = run("rpm", "-qp", "--requires", package(rpms, "consumer-framework"))
    assert "\nfedora-messaging\n" in command
    assert "\npython3-consumer-framework = 0" in command


def test_the_command_comes_with_its_units_man_pages_and_completion(rpms):
    files = run("rpm", "-qpl", package(rpms, "consumer-framework")).splitlines()
    units = "/usr/lib/systemd/system"
    for file in (
        "/usr/bin/fm-consumer",
        f"{units}/fm-consumer@.service.d/10-consumer-framework.conf",
        f"{units}/fm-consumers.target",
        f"{units}/fm-consumer-metrics.timer",
        "/usr/share/consumer-framework/monitoring/fm-consumer-rules.yml",
        f"{units}/fm-consumer-retention.timer",
        f"{units}/fm-outbox@.service",
        "/usr/share/man/man1/fm-consumer-outbox.1.gz",
        "/usr/lib/systemd/system-preset/80-consumer-framework.preset",
        "/usr/share/bash-completion/completions/fm-consumer",
        "/usr/share/zsh/site-functions/_fm-consumer",
        "/usr/share/fish/vendor_completions.d/fm-consumer.fish",
        "/usr/share/man/man1/fm-consumer-run.1.gz",
        "/usr/share/doc/consumer-framework/sample.toml",
        "/usr/share/polkit-1/rules.d/60-consumer-framework.rules",
    ):
        assert file in files
    assert any(file.endswith("/sos/report/plugins/fm_consumer.py") for file in files)
    assert f"{units}/fm-consumer@.service" not in files, "that is fedora-messaging's"


def test_the_page_of_cockpit_is_that_of_the_library(rpms):
    listed = run("rpm", "-qplv", package(rpms, "cockpit-fm-consumers"))
    [link] = [line for line in listed.splitlines() if " -> " in line]
    place, target = link.split()[-3], link.split()[-1]
    assert place == "/usr/share/cockpit/fm-consumers"
    library = run("rpm", "-qpl", package(rpms, "python3-consumer-framework")).splitlines()
    page = os.path.normpath(Path(place).parent / target)
    assert {f"{page}/manifest.json", f"{page}/index.html", f"{page}/calls.json"} <= set(library)
    assert not [file for file in library if file.startswith(page) and file.endswith((".py", ".md"))]
    assert "/usr/share/metainfo/org.cockpit_project.fm_consumers.metainfo.xml" in listed


def test_the_description_of_the_page_is_valid_for_software_catalogues():
    if shutil.which("appstreamcli") is None:
        skip_unless_in_ci("appstreamcli not found: packaging/system-packages page")
    [file] = (ROOT / "packaging/metainfo").iterdir()
    run("appstreamcli", "validate", "--no-net", file)


def parsed(*options: str) -> str:
    """Return the spec's packages and their requirements, as rpm reads them with *options*."""
    macros = ("--load", RPM / "stand-ins.macros", "--define", f"__python3 {sys.executable}")
    names = ("--queryformat", "%{NAME} %{RELEASE}\n[requires %{REQUIRES}\n]")
    return run("rpmspec", *macros, *options, "--query", *names, RPM / "consumer-framework.spec")


@pytest.mark.skipif(shutil.which("rpmspec") is None, reason="rpmspec is not installed")
@pytest.mark.parametrize(
    ("release", "library", "suffix"),
    [
        ("9", "python3.12-consumer-framework", ".el9"),
        ("10", "python3-consumer-framework", ".el10"),
        ("", "python3-consumer-framework", ".fc43"),
    ],
)
def test_the_library_is_named_after_the_python_of_the_distribution(release, library, suffix):
    said = parsed(*(("--define", f"rhel {release}") if release else ()))
    names = [line.split() for line in said.splitlines() if not line.startswith("requires")]
    assert {name for name, _ in names} == {
        "consumer-framework",
        library,
        "cockpit-fm-consumers",
        "consumer-framework-rpm-macros",
    }
    assert {number for _, number in names} == {f"1{suffix}"}
    assert f"requires {library}\n" in said, "the command needs it"


@pytest.mark.skipif(shutil.which("rpmspec") is None, reason="rpmspec is not installed")
def test_on_el_9_the_other_python_is_required_for_the_build():
    macros = ("--load", RPM / "stand-ins.macros", "--define", f"__python3 {sys.executable}")
    query = ("--query", "--buildrequires", RPM / "consumer-framework.spec")
    nine = run("rpmspec", *macros, "--define", "rhel 9", *query).splitlines()
    ten = run("rpmspec", *macros, "--define", "rhel 10", *query).splitlines()
    assert {"python3.12-devel", "python3.12-rpm-macros"} <= set(nine)
    assert "python3-devel" in ten
    assert not [line for line in ten if "3.12" in line]


def test_the_sdist_has_every_file_and_no_other(sources):
    # check-manifest wants all files under version control.
    run("git", "init", "--quiet", cwd=sources)
    run("git", "add", "--all", cwd=sources)
    said = run(BIN / "check-manifest", "--no-build-isolation", sources)
    assert said == "lists of files in version control and sdist match\n"


def test_the_sdist_and_the_wheel_are_fit_to_be_published(tmp_path):
    run(BIN / "pyproject-build", "--no-isolation", "--outdir", tmp_path, ROOT)
    [sdist], [wheel] = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert "FAILED" not in run(BIN / "twine", "check", "--strict", sdist, wheel)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"packaging/rpm/consumer-framework.spec", "tests/unit/test_packaging.py"} <= names
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("consumer_framework/**/*.py")}
    assert modules <= packaged
    assert {"consumer_framework/py.typed", "consumer_framework/adapters/store/schema.sql"} <= (
        packaged
    )
    assert "consumer_framework/units/fm-consumer@.service" in packaged
    assert all(name.startswith("consumer_framework/") for name in packaged)
