# SPDX-License-Identifier: GPL-2.0-or-later
"""Build RPMs for the container, and use rpm in it. Knows nothing of pytest."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .container import Container

REPO = Path(__file__).parents[2]
RPM = REPO / "packaging/rpm"
FEDORA = Path(__file__).parent / "fedora"
CONSUMER = Path(__file__).parent / "packaged"
# The instance, the module and the package of the consumer.
NAME = "packaged"
FRAMEWORK = ("consumer-framework", "python3-consumer-framework")
DEPENDENCIES = "/usr/lib/fedora"


def why_not() -> str | None:
    """Return the reason why this machine cannot build RPMs, or None if it can."""
    missing = [tool for tool in ("rpmbuild", "rpm") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not found: packaging/system-packages rpm" if missing else None


@dataclass(frozen=True)
class Packages:
    """Directories with an older and a newer RPM of the framework and of a consumer.

    `fedora` has one package, which stands in for those of Fedora.
    """

    fedora: Path
    framework: tuple[Path, Path]
    consumer: tuple[Path, Path]

    @staticmethod
    def for_hosts(directory: Path) -> list[str]:
        """Return the packages of a directory for a host without Cockpit that builds no packages."""
        names = ("rpm-macros", "cockpit-fm-consumers")
        return [path for path in _binary(directory) if not any(name in path for name in names)]

    def files(self, version: int) -> list[str]:
        """Return the packages of the framework and of the consumer in version 0 or 1."""
        return [
            *self.for_hosts(self.framework[version]),
            *self.for_hosts(self.consumer[version]),
        ]


def build(directory: Path, venv: Path) -> Packages:
    """Build all packages in *directory*, for the Python of *venv*, in about 20 seconds."""
    python = next((venv / "lib").glob("python3.*")).name.removeprefix("python")
    target = ("--define", f"target_python {python}")
    packages = Packages(
        directory / "fedora",
        (directory / "framework-1", directory / "framework-2"),
        (directory / "consumer-1", directory / "consumer-2"),
    )
    _build_fedora(packages.fedora, venv, python)
    for release, output in enumerate(packages.framework, start=1):
        _rpmbuild(output, "--without", "tests", "--define", f"baserelease {release}", *target)
    for release, output in enumerate(packages.consumer, start=1):
        spec = _consumer_sources(directory / f"sources-{release}", f"{release}.0")
        _rpmbuild(output, *target, spec=spec)
    return packages


def _build_fedora(output: Path, venv: Path, python: str) -> None:
    provided = {f"python(abi) = {python}"}
    for one in distributions(path=[str(venv / f"lib/python{python}/site-packages")]):
        name = one.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        if name != "consumer-framework":
            provided.add(f"python{python}dist({name}) = {one.version}")
    sources = output / "sources"
    shutil.copytree(FEDORA, sources)
    spec = sources / "fedora.spec"
    provides = "\n".join(f"Provides: {one}" for one in sorted(provided))
    spec.write_text(spec.read_text().replace("@PROVIDES@", provides))
    _rpmbuild(output, spec=spec)


def _consumer_sources(sources: Path, version: str) -> Path:
    """Write the files of a consumer's author: an sdist and, from our template, a spec."""
    project = f"{NAME}-{version}"
    tree = sources / project
    tree.mkdir(parents=True)
    for template in CONSUMER.iterdir():
        (tree / template.stem).write_text(template.read_text().replace("@VERSION@", version))
    with tarfile.open(sources / f"{project}.tar.gz", "w:gz") as archive:
        archive.add(tree, project)
    words = {
        **dict.fromkeys(("PROJECT", "SDIST", "MODULE", "NAME"), NAME),
        "VERSION": version,
        "SUMMARY": "A consumer of the tests",
        "LICENSE": "GPL-2.0-or-later",
        "URL": "https://example.com/",
        "DATE": "Mon Jan 05 2026",
        "PACKAGER": "Jane Doe <jane@example.com>",
    }
    text = (RPM / "consumer.spec.in").read_text()
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    spec = sources / f"{NAME}.spec"
    spec.write_text(text)
    return spec


def _rpmbuild(output: Path, *options: str, spec: Path | None = None) -> None:
    chosen = ("--spec", str(spec)) if spec else ()
    command = (str(RPM / "build"), "--python", sys.executable, *chosen, str(output), *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def _binary(directory: Path) -> list[str]:
    return [str(path) for path in sorted(directory.glob("*.noarch.rpm"))]


def install_fedora(container: Container, packages: Packages, venv: Path) -> None:
    """Install the stub and the Python dependencies, so that rpm sees a Fedora host.

    The dependencies come from *venv*, without the framework itself, which the RPM brings.
    """
    site = next((venv / "lib").glob("python3.*/site-packages"))
    fedora = f"/usr/lib/{site.parent.name}/site-packages"
    container.run("mkdir", "-p", DEPENDENCIES, fedora)
    wanted = [path for path in site.iterdir() if not path.name.startswith("consumer_framework")]
    container.run("ln", "-s", *map(str, wanted), DEPENDENCIES)
    # Debian's Python does not search the directories of Fedora's.
    container.write(
        "/usr/lib/python3/dist-packages/fedora.pth",
        f'import sys; sys.path[1:1] = ["{fedora}", "{DEPENDENCIES}"]\n',
    )
    container.run("ln", "-s", f"{venv}/bin/fedora-messaging", "/usr/bin/fedora-messaging")
    container.run("rpm", "--install", *_binary(packages.fedora))
