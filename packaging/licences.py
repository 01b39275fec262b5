#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the licence of every package that consumer_framework needs at run time.

packaging/licences.py [PROJECT]

PROJECT is an installed Python distribution; the default is consumer-framework. The script follows
its requirements, and theirs, in this environment. It reads a licence from the package's metadata:
the SPDX expression, or the older field and classifiers, which `SPOKEN` translates. If a licence is
missing from `ALLOWED`, the script names the package and exits with 1.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

# SPDX identifiers of licences that may be combined with GPL-2.0-or-later. Apache-2.0 needs the
# "or later": the whole is then under version 3.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "GPL-2.0-or-later",
    "GPL-3.0-or-later",
    "ISC",
    "LGPL-2.1-or-later",
    "LGPL-3.0-or-later",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
    "Unlicense",
    "ZPL-2.1",
}
# The names in packages without an SPDX expression.
SPOKEN = {
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "gplv2+": "GPL-2.0-or-later",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}


@dataclass(frozen=True)
class Licence:
    """The licence in the metadata of *package*, and its SPDX identifiers that are not allowed.

    A package without a licence has an empty `said`, and is refused.
    """

    package: str
    said: str
    refused: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        """True if the package may be required."""
        return bool(self.said) and not self.refused


def closure(project: str) -> Iterator[Distribution]:
    """Yield the requirements of *project* at run time in this environment, and theirs.

    Raises:
        PackageNotFoundError: A requirement is not installed.
    """
    waiting = [(canonicalize_name(project), frozenset[str]())]
    done: set[tuple[str, frozenset[str]]] = set()
    yielded = {canonicalize_name(project)}
    while waiting:
        name, extras = one = waiting.pop()
        if one in done:
            continue
        done.add(one)
        found = distribution(name)
        if name not in yielded:
            yielded.add(name)
            yield found
        for text in found.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (extras or {""})):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


def spoken(metadata: Distribution) -> str:
    """Return the licence in a package's metadata, as an SPDX expression where possible."""
    fields = metadata.metadata
    if "License-Expression" in fields:
        return fields["License-Expression"]
    # If this field is the whole text and not a name, the classifiers have the name.
    text = "".join(fields.get_all("License") or ()).strip()
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in fields.get_all("Classifier") or ()
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    names = [text] if text and "\n" not in text else classifiers
    return " AND ".join(SPOKEN.get(name.lower(), name) for name in names)


def judge(package: str, said: str) -> Licence:
    """Compare an SPDX expression with `ALLOWED`; one side of an OR is enough."""
    refused: list[str] = []
    for conjunct in re.split(r"\s+AND\s+", said.replace("(", "").replace(")", "")):
        choices = [choice.partition(" WITH ")[0] for choice in re.split(r"\s+OR\s+", conjunct)]
        if not any(choice.strip() in ALLOWED for choice in choices):
            refused.append(conjunct)
    return Licence(package, said, tuple(refused))


def main(project: str) -> int:
    """Print a line for each package, and name the refused packages on standard error."""
    try:
        licences = sorted(
            (judge(one.metadata["Name"], spoken(one)) for one in closure(project)),
            key=lambda licence: licence.package.lower(),
        )
    except PackageNotFoundError as missing:
        print(f"licences: {missing} is not installed; `make venv` installs it", file=sys.stderr)
        return 1
    for licence in licences:
        print(f"{licence.package:28} {licence.said or 'unknown'}")
    bad = [licence for licence in licences if not licence.allowed]
    for licence in bad:
        print(
            f"licences: {licence.package}: {licence.said or 'it names no licence'}: not in ALLOWED "
            "of packaging/licences.py; replace the package, or add the licence if it may be "
            "combined with GPL-2.0-or-later",
            file=sys.stderr,
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["consumer-framework"])))
