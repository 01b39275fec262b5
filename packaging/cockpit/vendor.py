# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the files of others in ``vendor/`` against the hashes of ``vendor.json``.

``--fetch`` gets them from npm first. For a newer version of a package, change its version in
``vendor.json`` and run ``vendor.py --fetch --accept``, which writes the new hashes. Read the
difference before you commit it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIST = HERE / "vendor.json"
_TIMEOUT = 60


def main() -> int:
    """Return 0 if every file is there with the hash of the list, and no other file is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--fetch", action="store_true", help="Get the files from npm.")
    parser.add_argument(
        "--accept", action="store_true", help="Write the hashes that the files have."
    )
    options = parser.parse_args()
    packages = json.loads(LIST.read_text())
    if options.fetch:
        for name, package in packages.items():
            _fetch(name, package)
    if options.accept:
        _accept(packages)
    problems = list_problems(packages)
    for problem in problems:
        print(f"vendor.py: {problem}", file=sys.stderr)
    return 1 if problems else 0


def list_problems(packages: dict[str, Any]) -> list[str]:
    """Return a line for each file that is missing, differs from the list, or is not on it."""
    listed = {HERE / path: file["sha256"] for path, file in _files(packages)}
    there = {path for path in (HERE / "vendor").rglob("*") if path.is_file()}
    problems = [
        f"{path.relative_to(HERE)}: not in vendor.json" for path in sorted(there - {*listed})
    ]
    for path, expected in listed.items():
        if path not in there:
            problems.append(f"{path.relative_to(HERE)}: missing; make vendor gets it")
        elif _sha256(path) != expected:
            problems.append(f"{path.relative_to(HERE)}: its SHA-256 differs from vendor.json")
    return problems


def _files(packages: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    return [item for package in packages.values() for item in package["files"].items()]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(name: str, package: dict[str, Any]) -> None:
    """Get the files of a package; a file may name another package that it is of."""
    own = f"{name}@{package['version']}"
    for source in dict.fromkeys(file.get("of", own) for file in package["files"].values()):
        wanted = {
            path: file["from"]
            for path, file in package["files"].items()
            if file.get("of", own) == source
        }
        _unpack(source, wanted)


def _unpack(source: str, wanted: dict[str, str]) -> None:
    name, _, version = source.rpartition("@")
    file = f"{name.rpartition('/')[2]}-{version}.tgz"
    address = f"https://registry.npmjs.org/{name}/-/{file}"
    with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:
        data = io.BytesIO(answer.read())
    with tarfile.open(fileobj=data) as archive:
        for path, member in wanted.items():
            content = archive.extractfile(f"package/{member}")
            if content is None:
                raise SystemExit(f"vendor.py: {source} has no {member}")
            target = HERE / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


def _accept(packages: dict[str, Any]) -> None:
    for path, file in _files(packages):
        file["sha256"] = _sha256(HERE / path)
    LIST.write_text(f"{json.dumps(packages, indent=2)}\n")


if __name__ == "__main__":
    raise SystemExit(main())
