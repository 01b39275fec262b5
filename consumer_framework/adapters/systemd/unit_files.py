# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit files: the shipped texts, and the files in the directories of systemd.unit(5).

An installed file begins with a mark: a line with a checksum of all that follows. The mark tells an
installed file from one that somebody edited afterwards, and from one that somebody else put there.
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
# Where packages put units, in the order in which systemd looks.
_PACKAGES = (
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
    Path("/lib/systemd/system"),
)
_MARK = "# Written by 'fm-consumer units install' (checksum {}); 'systemctl edit' changes it.\n"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{16})"))
# Whole words: not the beginning of a longer path.
_COMMAND = re.compile(rf"(?<![\w./-]){re.escape(SHIPPED_COMMAND)}(?![\w./-])")


class UnitFileError(FrameworkError):
    """A unit file cannot be read or changed.

    Args:
        message: One line with the file and the system's reason.
    """

    exit_code = 1


class Found(StrEnum):
    """Tells whose file is in the place of a unit file."""

    NOTHING = "nothing"
    """There is no file."""
    SAME = "same"
    """The file has the very text."""
    OLDER = "older"
    """Another text that was installed, or copied, and not touched since."""
    EDITED = "edited"
    """A text that was installed, and edited."""
    FOREIGN = "foreign"
    """Somebody else's file."""


def with_command(shipped: str, command: str) -> str:
    """Return the text *shipped* with *command* in the place of :data:`SHIPPED_COMMAND`."""
    return _COMMAND.sub(lambda _: command, shipped)


def marked(text: str) -> str:
    """Return *text* as it is installed."""
    return _MARK.format(_checksum(text)) + text


def unmarked(installed: str) -> str:
    """Return the text *installed* without its mark, if it has one."""
    return _MARKED.sub("", installed, count=1) if _MARKED.match(installed) else installed


def found(installed: str | None, text: str, shipped: str) -> Found:
    """Tell whose file is in the place of a unit file.

    Args:
        installed: The text that is there; None for no file.
        text: The text that should be there, without its mark.
        shipped: The same text as it is shipped, which people copied by hand.
    """
    if installed is None:
        return Found.NOTHING
    if installed == marked(text):
        return Found.SAME
    if mark := _MARKED.match(installed):
        is_untouched = mark[1] == _checksum(unmarked(installed))
        return Found.OLDER if is_untouched else Found.EDITED
    return Found.OLDER if installed in (text, shipped) else Found.FOREIGN


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    """Return *path* of the system whose root directory is *root*."""
    return root / path.relative_to("/")


def packaged(root: Path, name: str) -> Path | None:
    """Return the file of the unit *name* that a package owns; None for none."""
    places = (below(root, directory) / name for directory in _PACKAGES)
    return next((place for place in places if place.exists()), None)


def read(path: Path) -> str | None:
    """Return the text of a file; None if there is no file, and the target's name for a link.

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
    """Return True if this user may change files in *directory*, which need not exist yet."""
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    # A file in its place is another error, which says so.
    return not existing.is_dir() or os.access(existing, os.W_OK | os.X_OK)


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all, with the directories above it.

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
    """Remove a file, and its directory of drop-ins if that is empty then.

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
