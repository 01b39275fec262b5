# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows which instances a host has, and the state of each.

There are three sources, and each may be missing: systemd, the instance's own control socket, and
the instance's store.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer_framework.adapters.store.files import DATABASE, is_locked_elsewhere
from consumer_framework.adapters.systemd.systemctl import (
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
from consumer_framework.settings.workers import files_in, group_of, in_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from consumer_framework.adapters.systemd.systemctl import Systemctl
    from consumer_framework.runtime.control.schema import StatusReport

# Instances that are asked at a time, so that one that hangs does not delay the others.
_ASKED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """The status of one instance.

    Attributes:
        name: Its name.
        is_configured: True if it has a configuration file.
        unit: Its unit; None without systemd, or without such a unit.
        report: Its answer on the control socket; None if it does not answer.
        stored: The messages in its store; None if the store cannot be read.
        problem: The reason why it, or its store, was not asked; "" for none.
        is_silent: A process has its store and does not answer: its event loop is blocked, or the
            process is only starting.
    """

    name: str
    is_configured: bool
    unit: Unit | None = None
    report: StatusReport | None = None
    stored: StoredCounts | None = NOTHING_STORED
    problem: str = ""
    is_silent: bool = False

    @property
    def is_active(self) -> bool:
        """Return True if it runs, as a service or by hand."""
        if self._is_up is not None:
            return self._is_up
        return self.report is not None or self.is_silent

    @property
    def _is_up(self) -> bool | None:
        """Return the answer of systemd; None if systemd runs nothing, so that somebody else may."""
        if self.unit is None or self.unit.active == "inactive":
            return None
        return self.unit.is_running

    @property
    def should_run(self) -> bool:
        """Return True if it is enabled, or was started and did not stop."""
        return self.is_active or (
            self.unit is not None and (self.unit.file_state == "enabled" or self._is_up is not None)
        )

    @property
    def is_known(self) -> bool:
        """Return True if there is any trace of it."""
        return self.is_configured or self.should_run or self.stored != NOTHING_STORED


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The status of every instance that was looked for.

    Attributes:
        groups: The workers of each name, in their order.
        problem: The reason why systemd could not be asked; "" for none.
    """

    groups: Mapping[str, Sequence[InstanceStatus]]
    problem: str = ""

    @property
    def instances(self) -> list[InstanceStatus]:
        """Return the instances of all groups."""
        return [instance for group in self.groups.values() for instance in group]


def instances_on_host(
    names: Sequence[str],
    directory: Path,
    services: Systemctl,
    state: Path | None = None,
    timeout: float | None = None,
) -> HostStatus:
    """Look for instances.

    Args:
        names: Instances, each with its workers; none for all that there are.
        directory: The directory of the configuration files.
        services: The service manager.
        state: The state directory of the one instance in *names*; None for the usual places.
        timeout: Seconds for the answer of an instance; None for that of an order.

    Raises:
        ConfigurationError: The directory of configuration files cannot be read.
    """
    files = files_in(directory)
    units, problem = _units(services, [*names, *files])
    loaded = {unit.instance for unit in units.values() if unit.active != "inactive"}
    there = {*files, *loaded, *_run_by_hand(), *_with_store()} - {""}
    wanted = {name for name in there if not names or {name, group_of(name, files)} & {*names}}
    found = _ask_all(
        sorted({*names, *wanted}),
        lambda name: _ask(name, name in files, units.get(unit_name(name)), state, timeout),
    )
    # State directories of removed instances stay behind; they count only if they have messages.
    found = {name: one for name, one in found.items() if name in names or one.is_known}
    groups = in_groups(found, files)
    shown = {name: [found[one] for one in group] for name, group in groups.items()}
    return HostStatus(shown, problem)


def _units(services: Systemctl, instances: Iterable[str]) -> tuple[dict[str, Unit], str]:
    names = [unit_name(instance) for instance in dict.fromkeys(instances)]
    try:
        units = services.show([*names, unit_name("*")])
    except SystemctlError as error:
        return {}, str(error)
    return {name: unit for name, unit in units.items() if unit.load != "not-found"}, ""


def _run_by_hand() -> list[str]:
    """Return instances that this user started without a service; some may be dead."""
    sockets = state_files.users_directory("NAME").parent.glob(f"*/{state_files.CONTROL}")
    return [path.parent.name for path in sockets]


def _with_store() -> list[str]:
    """Return instances that have a store, also those that were scaled down or removed."""
    homes = {state_files.SYSTEM_STATE, state_files.users_directory("NAME").parent}
    names = [path.parent.name for home in homes for path in home.glob(f"*/{DATABASE}")]
    return [name for name in names if not instance_name_problem(name)]


def _ask_all(
    names: Sequence[str], ask: Callable[[str], InstanceStatus]
) -> dict[str, InstanceStatus]:
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))


def _ask(
    name: str,
    is_configured: bool,  # noqa: FBT001 -- as its attribute
    unit: Unit | None,
    state: Path | None,
    timeout: float | None,
) -> InstanceStatus:
    directories = directories_of(name, state)
    problems = []
    for directory in directories:
        try:
            report = _report(directory, name, timeout)
        except ControlError as error:
            problems.append(str(error))
        else:
            if report is not None:
                return InstanceStatus(name, is_configured, unit, report, _reported(report))
    is_silent = any(map(is_locked_elsewhere, directories))
    try:
        stored = _first_stored(directories)
    except StoreError as error:
        # Most often both problems have one cause: this user has no permission.
        problems = [*problems, str(error)][:1]
        stored = None
    problem = "; ".join(problems)
    return InstanceStatus(name, is_configured, unit, None, stored, problem, is_silent=is_silent)


def directories_of(name: str, state: Path | None = None) -> list[Path]:
    """Return the state directories that the instance *name* may have; *state* alone if given."""
    usual = (state_files.SYSTEM_STATE / name, state_files.users_directory(name))
    return [state] if state else list(dict.fromkeys(usual))


def _report(directory: Path, name: str, timeout: float | None) -> StatusReport | None:
    with connected(directory, name, timeout) as running:
        if running is None:
            return None
        return next(iter([*running.ask(Status())]), None)


def _reported(report: StatusReport) -> StoredCounts:
    return StoredCounts(report.deferred, report.quarantined, report.next_due)


def _first_stored(directories: Sequence[Path]) -> StoredCounts:
    found = (count_stored(directory) for directory in directories)
    return next((stored for stored in found if stored != NOTHING_STORED), NOTHING_STORED)
