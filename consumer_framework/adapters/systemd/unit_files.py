# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit files: those that this package ships, and those in the directories of systemd.unit(5).

The text of a unit file, as it is shipped and as it is installed.

What is installed begins with a mark: a line with a checksum of all that follows. So a file can be
told from one that somebody edited, and from one that somebody else put there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from enum import StrEnum
from pathlib import Path

from consumer_framework.core.errors import FrameworkError

# The command in the shipped text; an RPM installs it there.
SHIPPED_COMMAND = "/usr/bin/fm-consumer"

_MARK = "# Written by 'fm-consumer units install' (checksum {}); 'systemctl edit' changes it.\n"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{16})"))
# Whole words: not the beginning of a longer path.
_COMMAND = re.compile(rf"(?<![\w./-]){re.escape(SHIPPED_COMMAND)}(?![\w./-])")


class Found(StrEnum):
    """What is in the place of a file."""

    NOTHING = "nothing"
    """No file."""
    SAME = "same"
    """The very text."""
    OLDER = "older"
    """Another text that was installed, or copied, and not touched since."""
    EDITED = "edited"
    """One that was installed, and edited."""
    FOREIGN = "foreign"
    """Somebody else's."""


def with_command(shipped: str, command: str) -> str:
    """Return a shipped text with the path of the ``fm-consumer`` that it shall run."""
    return _COMMAND.sub(lambda _: command, shipped)


def marked(text: str) -> str:
    """Return *text* as it is installed."""
    return _MARK.format(_checksum(text)) + text


def unmarked(installed: str) -> str:
    """Return what is installed without its mark; as it is where it has none."""
    return _MARKED.sub("", installed, count=1) if _MARKED.match(installed) else installed


def found(installed: str | None, text: str, shipped: str) -> Found:
    """Tell what is in the place of a file.

    Args:
        installed: What is there; None for nothing.
        text: What should be there, without its mark.
        shipped: The same as it is shipped, which people copied by hand.
    """
    if installed is None:
        return Found.NOTHING
    if installed == marked(text):
        return Found.SAME
    mark = _MARKED.match(installed)
    if mark:
        is_untouched = mark[1] == _checksum(unmarked(installed))
        return Found.OLDER if is_untouched else Found.EDITED
    return Found.OLDER if installed in (text, shipped) else Found.FOREIGN


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


ADMINISTRATORS = Path("/etc/systemd/system")
# Where packages put units, in the order in which systemd looks.
_PACKAGES = (
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
    Path("/lib/systemd/system"),
)


class UnitFileError(FrameworkError):
    """A unit file cannot be read or changed.

    Args:
        message: One line with the file and the system's reason.
    """

    exit_code = 1


def shipped() -> dict[str, str]:
    """Return the texts of all unit files, drop-ins and scripts by their names.

    A name is a path such as ``fm-consumer@.service`` or ``examples/...``.
    """
    package = Path(__file__).parents[2]
    # In a wheel they are in the package; in a checkout, and so in an editable one, beside it.
    directory = next(d for d in (package / "units", package.parent / "units") if d.is_dir())
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): p.read_text(encoding="utf-8") for p in files}


def below(root: Path, path: Path) -> Path:
    """Where *path* of a system is whose root directory is *root*."""
    return root / path.relative_to("/")


def packaged(root: Path, name: str) -> Path | None:
    """Find a unit that a package owns; None for none."""
    places = (below(root, directory) / name for directory in _PACKAGES)
    return next((place for place in places if place.exists()), None)


def read(path: Path) -> str | None:
    """Return what is in a file; None where there is none, and where it leads to is for a link.

    Raises:
        UnitFileError: It cannot be read.
    """
    try:
        if path.is_symlink():
            return f"a link to {path.readlink()}\n"
        return path.read_bytes().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _failure(path, "read", error) from error


def may_change(directory: Path) -> bool:
    """Whether this user may make, replace and remove files in a directory, made where missing."""
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    # What is no directory is another error, which says so.
    return not existing.is_dir() or os.access(existing, os.W_OK | os.X_OK)


def write(path: Path, text: str) -> None:
    """Write a file, with the directories above it, all of it or nothing.

    Raises:
        UnitFileError: The disk does not take it, or this user may not.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                # Whatever the umask: systemctl of any user reads it.
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _failure(path, "written", error) from error


def remove(path: Path) -> None:
    """Remove a file, and its directory of drop-ins where that is empty then.

    Raises:
        UnitFileError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _failure(path, "removed", error) from error
    if path.parent.name.endswith(".d"):
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _failure(path: Path, verb: str, error: OSError) -> UnitFileError:
    cure = "; use sudo" if isinstance(error, PermissionError) else ""
    reason = (error.strerror or str(error)).lower()
    return UnitFileError(f"{path}: cannot be {verb}: {reason}{cure}")
