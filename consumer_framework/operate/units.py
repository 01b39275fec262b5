# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs the units of ``units/`` for an ``fm-consumer`` that no package brought: pip's.

Where a package owns ``fm-consumer@.service`` already, as Fedora's fedora-messaging does, the same
text becomes a drop-in over it.

Where this very ``fm-consumer`` is, and whether the unit could run it.
"""

from __future__ import annotations

import difflib
import stat
import sys
import sysconfig
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import consumer_framework
from consumer_framework.adapters.systemd import unit_files
from consumer_framework.adapters.systemd.unit_files import (
    Found,
    found,
    marked,
    unmarked,
    with_command,
)
from consumer_framework.core.errors import FrameworkError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from consumer_framework.adapters.systemd.systemctl import Unit

_HIDDEN = {
    "/home": "ProtectHome=",
    "/root": "ProtectHome=",
    "/run/user": "ProtectHome=",
    "/tmp": "PrivateTmp=",  # noqa: S108 -- nothing is put there
    "/var/tmp": "PrivateTmp=",  # noqa: S108
}
CURE = (
    "so install consumer_framework into a virtual environment elsewhere, made with a Python that "
    "is elsewhere too: /usr/bin/python3 -m venv /opt/fm-consumer"
)


def own_command() -> Path:
    """Return the path of this ``fm-consumer``, for ``ExecStart=``."""
    places = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    candidates = [place / "fm-consumer" for place in places]
    return next((path for path in candidates if path.exists()), Path(sys.argv[0]).absolute())


def needed_by(command: Path) -> list[Path]:
    """Return what a service must be able to read, to run *command*: Python and this package too."""
    package = Path(consumer_framework.__file__).parent
    return [command, Path(sys.executable).resolve(), package]


def hidden(paths: Iterable[Path]) -> Iterator[str]:
    """Say of each path that the unit's sandbox hides what hides it; :data:`CURE` cures it."""
    for path in dict.fromkeys(paths):
        for directory, setting in _HIDDEN.items():
            if path.is_relative_to(directory):
                yield f"{path}: {setting} of the unit hides {directory} from services"


def unreadable(paths: Iterable[Path]) -> Iterator[str]:
    """Say of each path what keeps users other than root from it: services run as such."""
    for path in dict.fromkeys(paths):
        for place in reversed((path, *path.parents)):
            if not _is_open(place):
                yield f"{path}: {place} is not readable by everyone; chmod o+rX {place}"
                break


def _is_open(place: Path) -> bool:
    try:
        mode = place.stat().st_mode
    except OSError:
        return True
    needed = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
    return bool(mode & needed)


_ENDED = ("inactive", "failed")
TEMPLATE = "fm-consumer@.service"
INSTALLED = (
    TEMPLATE,
    "fm-consumers.target",
    "fm-consumer-retention.service",
    "fm-consumer-retention.timer",
)
DROP_IN = "fm-consumer@.service.d/10-consumer-framework.conf"


class UnitsError(FrameworkError):
    """The units cannot be installed, or removed.

    Args:
        problems: Lines, each of which names a file and says what to do.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))


class Action(StrEnum):
    """What is done with a file."""

    WRITE = "write"
    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A file that is, or should be, installed.

    Attributes:
        path: Where.
        text: What should be there, without its mark; None for what should not be there.
        there: What is there, None for nothing.
        found: What that is.
    """

    path: Path
    text: str | None
    there: str | None
    found: Found

    @property
    def is_somebodys(self) -> bool:
        """Whether it would be a loss to replace or remove it."""
        return self.found in (Found.EDITED, Found.FOREIGN)

    @property
    def is_right(self) -> bool:
        """Whether what is there is what should be there."""
        return self.found is (Found.NOTHING if self.text is None else Found.SAME)

    def difference(self) -> list[str]:
        """Return the lines of a unified diff from what is there to what should be there."""
        old = unmarked(self.there or "").splitlines()
        new = (self.text or "").splitlines()
        before = str(self.path) if self.there is not None else "/dev/null"
        after = "fm-consumer units show" if self.text is not None else "/dev/null"
        return list(difflib.unified_diff(old, new, before, after, lineterm=""))


@dataclass(frozen=True, slots=True)
class Step:
    """What is done with one file."""

    action: Action
    file: UnitFile


def survey(command: str, root: Path, directory: Path) -> list[UnitFile]:
    """Look at what is installed.

    Args:
        command: The path of the ``fm-consumer`` that the units run.
        root: The root directory of the system.
        directory: Where units are installed, on that system.

    Raises:
        UnitFileError: A file cannot be read.
    """
    shipped = unit_files.shipped()
    place = unit_files.below(root, directory)
    owned = unit_files.packaged(root, TEMPLATE)
    is_drop_in = owned is not None and owned != place / TEMPLATE
    files = []
    for name in INSTALLED:
        text = with_command(shipped[name], command)
        if name == TEMPLATE:
            # The other of the two, from before that package came or went, would be in the way.
            files.append(_file(place / DROP_IN, text, shipped[name], wanted=is_drop_in))
            files.append(_file(place / name, text, shipped[name], wanted=not is_drop_in))
        else:
            files.append(_file(place / name, text, shipped[name], wanted=True))
    return files


def _file(path: Path, text: str, shipped: str, *, wanted: bool) -> UnitFile:
    there = unit_files.read(path)
    return UnitFile(path, text if wanted else None, there, found(there, text, shipped))


def plan_install(files: Iterable[UnitFile], *, force: bool) -> list[Step]:
    """Say what is to be done so that every file is as it should be.

    Raises:
        UnitsError: Somebody edited a file, or put it there, and not *force*.
    """
    files = list(files)
    wrong = [file for file in files if file.is_somebodys]
    if wrong and not force:
        raise UnitsError(*(_in_the_way(file) for file in wrong))
    return [Step(_action(file), file) for file in files if file.text is not None or file.there]


def _action(file: UnitFile) -> Action:
    if file.is_right:
        return Action.KEEP
    return Action.REMOVE if file.text is None else Action.WRITE


def _in_the_way(file: UnitFile) -> str:
    if file.found is Found.EDITED:
        cure = "keep the change with 'systemctl edit', then give --force, which loses it here"
        return f"{file.path}: was edited ('fm-consumer units diff' shows where); {cure}"
    return f"{file.path}: was not written by this command; move it away, or give --force"


def plan_uninstall(files: Iterable[UnitFile], *, force: bool) -> list[Step]:
    """Say what is to be done so that no file that was installed is there; others stay.

    Raises:
        UnitsError: Somebody edited one, and not *force*.
    """
    there = [file for file in files if file.found is not Found.NOTHING]
    edited = [file for file in there if file.found is Found.EDITED]
    if edited and not force:
        what = "was edited; save the change elsewhere, then give --force, which loses it here"
        raise UnitsError(*(f"{file.path}: {what}" for file in edited))
    return [Step(_removal(file), file) for file in there]


def refuse_running(units: Iterable[Unit]) -> None:
    """Refuse to take the unit away from under instances.

    Raises:
        UnitsError: One of *units* runs, or will soon.
    """
    names = sorted(unit.id.removesuffix(".service") for unit in units if unit.active not in _ENDED)
    if names:
        cure = f"systemctl disable --now {' '.join(names)}"
        raise UnitsError(f"{', '.join(names)} still runs: first {cure}, or give --force")


def _removal(file: UnitFile) -> Action:
    return Action.KEEP if file.found is Found.FOREIGN else Action.REMOVE


def carry_out(steps: Iterable[Step]) -> bool:
    """Carry out *steps*; returns whether anything was changed.

    Raises:
        UnitsError: This user may not; nothing was done.
        UnitFileError: One cannot be done; those before it are.
    """
    changes = [step for step in steps if step.action is not Action.KEEP]
    for directory in dict.fromkeys(step.file.path.parent for step in changes):
        if not unit_files.may_change(directory):
            raise UnitsError(f"{directory}: may not be changed by this user; use sudo")
    for step in changes:
        if step.action is Action.REMOVE:
            unit_files.remove(step.file.path)
        else:
            assert step.file.text is not None  # noqa: S101 -- only what is wanted is written
            unit_files.write(step.file.path, marked(step.file.text))
    return bool(changes)
