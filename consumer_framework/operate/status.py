# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out which instances there are, and how each of them is.

Three sources, none of which must be there: systemd, the instance itself by its control socket,
and its store.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from consumer_framework.adapters.store.files import DATABASE, is_locked_elsewhere
from consumer_framework.adapters.systemd.systemctl import (
    TEMPLATE,
    SystemctlError,
    Unit,
    unit_name,
)
from consumer_framework.core.errors import StoreError
from consumer_framework.runtime import state_files
from consumer_framework.runtime.control.client import ControlError, connected
from consumer_framework.runtime.control.schema import Status
from consumer_framework.runtime.state_files import NOTHING_STORED, StoredCounts, count_stored
from consumer_framework.settings import instance_name_problem

from .workers import files_in, group_of, in_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from consumer_framework.runtime.control.schema import StatusReport

    from .workers import Files

# Instances that are asked at a time: one that hangs must not keep the others waiting.
_ASKED_AT_ONCE = 16


class Manager(Protocol):
    """What is asked of the service manager."""

    def show(self, names: Sequence[str]) -> dict[str, Unit]:
        """Return units by their names; patterns stand for loaded ones."""
        ...


@dataclass(frozen=True, slots=True)
class Instance:
    """What is known of one instance.

    Attributes:
        name: Its name.
        is_configured: Whether it has a file.
        unit: What systemd says; None where there is no systemd, or no such unit.
        report: The answer on its control socket; None where it does not answer.
        kept: What its store keeps; None where that cannot be read.
        problem: Why it was not asked, or its store not read; "" where all went well.
        is_silent: A process has its store, and does not answer: its event loop is blocked, or
            it is only starting.
    """

    name: str
    is_configured: bool
    unit: Unit | None = None
    report: StatusReport | None = None
    kept: StoredCounts | None = NOTHING_STORED
    problem: str = ""
    is_silent: bool = False

    @property
    def is_active(self) -> bool:
        """Whether it runs, as a service or by hand."""
        if self._is_up is not None:
            return self._is_up
        return self.report is not None or self.is_silent

    @property
    def _is_up(self) -> bool | None:
        """What systemd says; None where it runs nothing, so that somebody else may."""
        if self.unit is None or self.unit.active == "inactive":
            return None
        return self.unit.is_running

    @property
    def should_run(self) -> bool:
        """Whether somebody wants it to run: it is enabled, or it was started and did not stop."""
        return self.is_active or (
            self.unit is not None and (self.unit.file_state == "enabled" or self._is_up is not None)
        )

    @property
    def is_known(self) -> bool:
        """Whether there is any trace of it."""
        return self.is_configured or self.should_run or self.kept != NOTHING_STORED


@dataclass(frozen=True, slots=True)
class Census:
    """Every instance that was looked for.

    Attributes:
        groups: The workers of each name, in their order.
        problem: Why systemd could not be asked; "" where it could.
    """

    groups: Mapping[str, Sequence[Instance]]
    problem: str = ""

    @property
    def instances(self) -> list[Instance]:
        """All of them."""
        return [instance for group in self.groups.values() for instance in group]


def take(
    names: Sequence[str], directory: Path, services: Manager, state: Path | None = None
) -> Census:
    """Look for instances.

    Args:
        names: Instances, each with its workers; none for all that there are.
        directory: Where the configuration files are.
        services: The service manager.
        state: The state directory of the one instance in *names*; None for the usual places.

    Raises:
        ConfigurationError: The directory of configuration files cannot be read.
    """
    files = files_in(directory)
    units, problem = _units(services, [*names, *files])
    loaded = {unit.instance for unit in units.values() if unit.active != "inactive"}
    there = {*files, *loaded, *_run_by_hand(), *_with_store()} - {""}
    wanted = {name for name in there if not names or {name, group_of(name, files)} & {*names}}
    found = _ask_all(sorted({*names, *wanted}), files, units, state)
    # A directory is left of many that were removed; what counts is whether messages are.
    found = {name: one for name, one in found.items() if name in names or one.is_known}
    groups = in_groups(found, files)
    return Census({name: [found[one] for one in group] for name, group in groups.items()}, problem)


def _units(services: Manager, instances: Iterable[str]) -> tuple[dict[str, Unit], str]:
    names = [unit_name(instance) for instance in dict.fromkeys(instances)]
    try:
        units = services.show([*names, TEMPLATE.format("*")])
    except SystemctlError as error:
        return {}, str(error)
    return {name: unit for name, unit in units.items() if unit.load != "not-found"}, ""


def _run_by_hand() -> list[str]:
    """Instances that this user started without a service; some may be dead."""
    sockets = state_files.users_directory("NAME").parent.glob(f"*/{state_files.CONTROL}")
    return [path.parent.name for path in sockets]


def _with_store() -> list[str]:
    """Instances that have a store, among them those that were scaled down or removed."""
    homes = {state_files.SYSTEM_STATE, state_files.users_directory("NAME").parent}
    names = [path.parent.name for home in homes for path in home.glob(f"*/{DATABASE}")]
    return [name for name in names if not instance_name_problem(name)]


def _ask_all(
    names: Sequence[str], files: Files, units: Mapping[str, Unit], state: Path | None
) -> dict[str, Instance]:
    def ask(name: str) -> Instance:
        return _ask(name, name in files, units.get(unit_name(name)), state)

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))


def _ask(name: str, is_configured: bool, unit: Unit | None, state: Path | None) -> Instance:  # noqa: FBT001 -- as its attribute
    usual = (state_files.SYSTEM_STATE / name, state_files.users_directory(name))
    directories = [state] if state else list(dict.fromkeys(usual))
    problems = []
    for directory in directories:
        try:
            report = _report(directory, name)
        except ControlError as error:
            problems.append(str(error))
        else:
            if report is not None:
                return Instance(name, is_configured, unit, report, _stored(report))
    is_silent = any(map(is_locked_elsewhere, directories))
    try:
        kept = _first_kept(directories)
    except StoreError as error:
        # Both are of the same cause, most often: this user may not look.
        problems = [*problems, str(error)][:1]
        kept = None
    problem = "; ".join(problems)
    return Instance(name, is_configured, unit, None, kept, problem, is_silent=is_silent)


def _report(directory: Path, name: str) -> StatusReport | None:
    with connected(directory, name) as running:
        if running is None:
            return None
        return next(iter([*running.ask(Status())]), None)


def _stored(report: StatusReport) -> StoredCounts:
    return StoredCounts(report.deferred, report.quarantined, report.next_due)


def _first_kept(directories: Sequence[Path]) -> StoredCounts:
    found = (count_stored(directory) for directory in directories)
    return next((kept for kept in found if kept != NOTHING_STORED), NOTHING_STORED)
