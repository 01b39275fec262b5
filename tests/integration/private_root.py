# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that see more files in the directories of the system than the machine has.

It takes root: a mount namespace has overlays, and nothing outside of it changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Seconds that a program of a test may take.
PATIENCE = 120
_ENTER = ("nsenter", "--target")

# $1 has the files, $2 the directories that are replaced; the others are the directories. Changes go
# to memory, because an overlay cannot lie on another one.
_SETUP = """
set -eu
files=$1
replaced=$2
shift 2
mkdir "$files.layers"
mount -t tmpfs layers "$files.layers"
for directory in "$@"; do
    layer=$files.layers$directory
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay overlay \
        -o "lowerdir=$directory,upperdir=$layer/upper,workdir=$layer/work" "$directory"
done
for directory in $replaced; do
    mkdir -p "$directory" "$files.own$directory"
    mount --bind "$files.own$directory" "$directory"
done
cp -r "$files/." /
echo ready
exec cat
"""


def missing() -> str | None:
    """Return the reason why this machine can have no private root, or None."""
    if os.geteuid() != 0:
        return "it takes root"
    if not shutil.which("unshare") or not shutil.which("nsenter"):
        return "unshare is not installed: apt-get install util-linux"
    return None


def skip_unless_in_ci(reason: str | None) -> None:
    """Skip the test for *reason*, if there is one; with CI=true it fails."""
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


class PrivateRoot:
    """A mount namespace in which some directories have more files.

    Args:
        place: An empty directory.
        directories: The directories that may have more files; changes there are lost.
        replaced: Directories below them that are others: `path` has their files.
    """

    def __init__(self, place: Path, *directories: str, replaced: Sequence[str] = ()) -> None:
        self._files = place / "files"
        self._replaced = replaced
        self._directories = directories
        self._holder: subprocess.Popen[str] | None = None

    def write(self, path: str, content: str | Path, mode: int = 0o644) -> None:
        """Add a file, or a directory with its files, before the namespace is made."""
        target = self._files / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content, encoding="utf-8")
            target.chmod(mode)
        elif content.is_dir():
            shutil.copytree(content, target)
        else:
            shutil.copy(content, target)

    def path(self, path: str) -> Path:
        """Return the place of a file that is below a directory that is replaced."""
        return self._files.with_name("files.own") / path.lstrip("/")

    def __enter__(self) -> Self:
        self._files.mkdir(exist_ok=True)
        command = ["unshare", "--mount", "--propagation=private", "sh", "-c", _SETUP, "sh"]
        self._holder = subprocess.Popen(
            [*command, str(self._files), " ".join(self._replaced), *self._directories],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout
        if self._holder.stdout.readline() != "ready\n":
            self.__exit__()
            skip_unless_in_ci("this machine refuses an overlay in a mount namespace")
        return self

    def __exit__(self, *_: object) -> None:
        # Its `cat` ends with its input.
        assert self._holder is not None
        self._holder.communicate(timeout=PATIENCE)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words before a command that is to see the files."""
        assert self._holder is not None
        return (*_ENTER, str(self._holder.pid), "--mount", "--")

    def run(
        self, *command: object, environment: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            [*self.prefix, *map(str, command)],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            **more,
        )

    def start(
        self, *command: object, environment: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a program."""
        return subprocess.Popen(
            [*self.prefix, *map(str, command)], env={**os.environ, **(environment or {})}, **more
        )
