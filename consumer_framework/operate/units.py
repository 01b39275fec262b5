# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs the units of ``units/`` for an ``fm-consumer`` that pip installed, not a package.

Where a package owns ``fm-consumer@.service`` already, as Fedora's fedora-messaging does, the same
text becomes a drop-in over it. A file that somebody edited, or put there, is never lost unless
the operator says so.
"""

from __future__ import annotations

import difflib
import stat
import sys
import sysconfig
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import consumer_framework
from consumer_framework.adapters.systemd import unit_files
from consumer_framework.adapters.systemd.systemctl import TARGET, unit_name
from consumer_framework.adapters.systemd.unit_files import Found, marked, unmarked, with_command
from consumer_framework.core.errors import FrameworkError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from consumer_framework.adapters.systemd.systemctl import Unit

TEMPLATE = unit_name("")
RELAY_TEMPLATE = "fm-outbox@.service"
INSTALLED = (
    TEMPLATE,
    TARGET,
    RELAY_TEMPLATE,
    "fm-consumer-metrics.service",
    "fm-consumer-metrics.timer",
    "fm-consumer-retention.service",
    "fm-consumer-retention.timer",
)
DROP_IN = "fm-consumer@.service.d/10-consumer-framework.conf"
CURE = (
    "so install consumer_framework into a virtual environment elsewhere, made with a Python that "
    "is elsewhere too: /usr/bin/python3 -m venv /opt/fm-consumer"
)
# The directories that the sandbox of the units hides, with the setting that does.
HIDDEN = {
    "/home": "ProtectHome=",
    "/root": "ProtectHome=",
    "/run/user": "ProtectHome=",
    "/tmp": "PrivateTmp=",  # noqa: S108 -- nothing is put there
    "/var/tmp": "PrivateTmp=",  # noqa: S108
}


class UnitsError(FrameworkError):
    """The units cannot be installed, or removed.

    Args:
        problems: Lines, each of which names a file and a cure.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))


# The command that the units run.


def own_command() -> Path:
    """Return the path of this ``fm-consumer``, for ``ExecStart=``."""
    places = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    candidates = [place / "fm-consumer" for place in places]
    return next((path for path in candidates if path.exists()), Path(sys.argv[0]).absolute())


def needed_by(command: Path) -> list[Path]:
    """Return the files that a service must be able to read to run *command*."""
    package = Path(consumer_framework.__file__).parent
    return [command, Path(sys.executable).resolve(), package]


def hidden(paths: Iterable[Path]) -> Iterator[str]:
    """Yield a line for each path that the unit's sandbox hides; :data:`CURE` cures it."""
    for path in dict.fromkeys(paths):
        for directory, setting in HIDDEN.items():
            if path.is_relative_to(directory):
                yield f"{path}: {setting} of the unit hides {directory} from services"


def unreadable(paths: Iterable[Path]) -> Iterator[str]:
    """Yield a line for each path that users other than root cannot read: services run as such."""
    for path in dict.fromkeys(paths):
        closed = (place for place in reversed((path, *path.parents)) if not _is_open(place))
        for place in closed:
            yield f"{path}: {place} is not readable by everyone; chmod o+rX {place}"
            break


def _is_open(place: Path) -> bool:
    try:
        mode = place.stat().st_mode
    except OSError:
        return True
    return bool(mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH))


# The files.


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A file that is, or should be, installed.

    Attributes:
        path: Where it is.
        text: The text that should be there, without its mark; None if no file should be there.
        there: The text that is there; None for no file.
        found: Tells whose text that is.
    """

    path: Path
    text: str | None
    there: str | None
    found: Found

    @property
    def is_right(self) -> bool:
        """Return True if the text that is there is the one that should be there."""
        return self.found is (Found.NOTHING if self.text is None else Found.SAME)

    def difference(self) -> list[str]:
        """Return the lines of a unified diff from the text there to the one that should be."""
        old = unmarked(self.there or "").splitlines()
        new = (self.text or "").splitlines()
        before = str(self.path) if self.there is not None else "/dev/null"
        after = "fm-consumer units show" if self.text is not None else "/dev/null"
        return list(difflib.unified_diff(old, new, before, after, lineterm=""))


def survey(command: str, root: Path, directory: Path) -> list[UnitFile]:
    """Compare the installed files with the shipped ones.

    Args:
        command: The path of the ``fm-consumer`` that the units run.
        root: The root directory of the system.
        directory: Where units are installed, on that system.

    Raises:
        UnitFileError: A file cannot be read.
    """
    place = unit_files.below(root, directory)
    owned = unit_files.packaged(root, TEMPLATE)
    is_drop_in = owned is not None and owned != place / TEMPLATE
    shipped = unit_files.shipped()
    # The other form of the main unit, from before that package came or went, would be in the way.
    names = [(DROP_IN, TEMPLATE, is_drop_in), (TEMPLATE, TEMPLATE, not is_drop_in)]
    names += [(name, name, True) for name in INSTALLED if name != TEMPLATE]
    files = []
    for name, source, is_wanted in names:
        text = with_command(shipped[source], command)
        there = unit_files.read(place / name)
        found = unit_files.found(there, text, shipped[source])
        files.append(UnitFile(place / name, text if is_wanted else None, there, found))
    return files


# Changes: first a plan, which a dry run prints, then the plan carried out.


class UnitFileAction(StrEnum):
    """A change of one file."""

    WRITE = "write"
    KEEP = "keep"
    REMOVE = "remove"


Plan: TypeAlias = list[tuple[UnitFileAction, UnitFile]]


def plan_install(files: Iterable[UnitFile], *, force: bool) -> Plan:
    """Plan the changes that make every file right.

    Raises:
        UnitsError: Somebody edited a file, or put it there, and not *force*.
    """
    files = [file for file in files if file.text is not None or file.there]
    edited = (
        "was edited ('fm-consumer units diff' shows where); keep the change with 'systemctl edit', "
        "then give --force, which loses it here"
    )
    foreign = "was not written by this command; move it away, or give --force"
    _refuse(files, {Found.EDITED: edited, Found.FOREIGN: foreign}, force=force)
    return [(_action(file), file) for file in files]


def _action(file: UnitFile) -> UnitFileAction:
    if file.is_right:
        return UnitFileAction.KEEP
    return UnitFileAction.REMOVE if file.text is None else UnitFileAction.WRITE


def plan_uninstall(files: Iterable[UnitFile], *, force: bool) -> Plan:
    """Plan the removal of every installed file; files of others stay.

    Raises:
        UnitsError: Somebody edited one, and not *force*.
    """
    files = [file for file in files if file.found is not Found.NOTHING]
    edited = "was edited; save the change elsewhere, then give --force, which loses it here"
    _refuse(files, {Found.EDITED: edited}, force=force)
    return [
        (UnitFileAction.KEEP if f.found is Found.FOREIGN else UnitFileAction.REMOVE, f)
        for f in files
    ]


def _refuse(files: Iterable[UnitFile], reasons: dict[Found, str], *, force: bool) -> None:
    problems = [f"{f.path}: {reasons[f.found]}" for f in files if f.found in reasons]
    if problems and not force:
        raise UnitsError(*problems)


def refuse_running(units: Iterable[Unit]) -> None:
    """Refuse to take the unit away from instances that need it.

    Raises:
        UnitsError: One of *units* runs, or will soon.
    """
    ended = ("inactive", "failed")
    names = sorted(unit.id.removesuffix(".service") for unit in units if unit.active not in ended)
    if names:
        cure = f"systemctl disable --now {' '.join(names)}"
        raise UnitsError(f"{', '.join(names)} still runs: first {cure}, or give --force")


def carry_out(plan: Plan) -> bool:
    """Carry out *plan*; return True if a file was changed.

    Raises:
        UnitsError: This user may not; nothing was done.
        UnitFileError: One change cannot be made; those before it are.
    """
    changes = [file for action, file in plan if action is not UnitFileAction.KEEP]
    for directory in dict.fromkeys(file.path.parent for file in changes):
        if not unit_files.may_change(directory):
            raise UnitsError(f"{directory}: may not be changed by this user; use sudo")
    for action, file in plan:
        if action is UnitFileAction.REMOVE:
            unit_files.remove(file.path)
        elif action is UnitFileAction.WRITE:
            assert file.text is not None  # noqa: S101 -- as plan_install decides
            unit_files.write(file.path, marked(file.text))
    return bool(changes)
