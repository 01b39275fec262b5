# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes how many workers an instance has on this host.

NAME is the first worker. The others are instances of their own, NAME_2 and so on, whose files are
symbolic links to NAME.toml. :func:`find_workers` looks for them, :func:`plan` decides on
the steps without looking at anything else, and :class:`StepRunner` carries them out. Steps concern
only these links, and units without any file; files of others are never touched. After an
interruption a new plan goes on where the former one ended.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from consumer_framework.adapters.systemd.systemctl import TARGET, Unit, unit_name
from consumer_framework.core.errors import ConfigurationError, FrameworkError, Problem, StoreError
from consumer_framework.core.text import moment, plural
from consumer_framework.runtime import state_files
from consumer_framework.runtime.state_files import (
    NOTHING_STORED,
    SYSTEM_STATE,
    count_stored,
    count_unsent,
)
from consumer_framework.settings import INSTANCE_NAME
from consumer_framework.settings.model import is_single_active
from consumer_framework.settings.workers import files_in, number_of, worker_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from consumer_framework.runtime.state_files import StoredCounts
    from consumer_framework.settings import Settings
    from consumer_framework.settings.workers import Files


class ScalingError(FrameworkError):
    """The number of workers cannot be changed.

    Args:
        problems: Lines, each of which names an obstacle and its cure.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))


# The configuration.


def refuse_unshareable(settings: Settings, source: str) -> None:
    """Refuse a configuration that workers cannot share.

    Raises:
        ConfigurationError: With every problem there is, each with its TOML path.
    """
    problems = list(_unshareable(settings))
    if problems:
        raise ConfigurationError(*problems, source=source)


def _unshareable(settings: Settings) -> Iterator[Problem]:
    for name, queue in settings.queues.items():
        if not name:
            what = "the broker names a queue for each worker, so each would get every message"
            yield Problem('queues.""', what, "give the queue a name, and exclusive = false")
        elif queue.exclusive:
            what = "the queue belongs to one connection, so a second worker is refused"
            yield Problem(f'queues."{name}".exclusive', what, "set it to false")


def standby_queues(settings: Settings) -> list[str]:
    """Return the queues that give their messages to one worker at a time, in the file's order."""
    return [name for name, queue in settings.queues.items() if is_single_active(queue)]


# Workers that are there.


class Services(Protocol):
    """The service manager; :class:`.Systemctl` is the real one."""

    def show(self, names: Sequence[str]) -> dict[str, Unit]:
        """Return units by their names; patterns match loaded ones."""
        ...

    def enable(self, instance: str) -> None:
        """Have *instance* started at boot."""
        ...

    def disable(self, instance: str) -> None:
        """Have *instance* no longer started at boot."""
        ...

    def start(self, instance: str) -> None:
        """Start *instance*, and wait until it is ready."""
        ...

    def stop(self, instance: str) -> None:
        """Stop *instance*, and wait until it has ended."""
        ...

    def reset_failed(self, instance: str) -> None:
        """Forget that *instance* failed."""
        ...


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of one instance, as they are on this host.

    Attributes:
        name: The instance that is scaled.
        files: The configuration files of all instances.
        units: Units by their names; a unit that is missing is neither enabled nor running.
        stored: The messages in the stores of surplus workers, by instance.
    """

    name: str
    files: Files
    units: Mapping[str, Unit] = field(default_factory=dict)
    stored: Mapping[str, StoredCounts] = field(default_factory=dict)

    def unit(self, instance: str) -> Unit:
        """Return the unit of *instance*."""
        name = unit_name(instance)
        return self.units.get(name, Unit(name))

    def is_foreign(self, instance: str) -> bool:
        """Return True if the file of *instance* is no link to the file of the name."""
        return instance in self.files and self.files[instance] != self.name

    def surplus(self, count: int) -> list[str]:
        """Return the workers beyond *count*, the highest number first."""
        found = {*self.files, *(unit.instance for unit in self.units.values())}
        numbers = {number_of(self.name, instance) or 1: instance for instance in found}
        ours = (numbers[n] for n in sorted(numbers, reverse=True) if n > count)
        return [instance for instance in ours if not self.is_foreign(instance)]


def find_workers(
    directory: Path, services: Services, name: str, count: int, *, strict: bool
) -> Workers:
    """Look at the files, units and stores of the workers of *name*.

    Args:
        directory: The directory of the configuration files.
        services: The service manager.
        name: The instance.
        count: The number of workers that there shall be.
        strict: A store that cannot be read is an error; otherwise it counts as empty.

    Raises:
        ScalingError: A store cannot be read.
        ConfigurationError: The directory cannot be read.
        SystemctlError: The service manager does not answer.
    """
    found = Workers(name, files_in(directory))
    instances = [*(worker_name(name, n) for n in range(1, count + 1)), *found.surplus(count)]
    names = [*map(unit_name, instances), unit_name(f"{name}_*"), TARGET]
    found = replace(found, units=services.show(names))
    stored = {instance: _stored(instance, strict=strict) for instance in found.surplus(count)}
    return replace(found, stored=stored)


def _stored(instance: str, *, strict: bool) -> StoredCounts:
    try:
        directory = state_files.SYSTEM_STATE / instance
        return replace(count_stored(directory), unsent=count_unsent(directory))
    except StoreError as error:
        if not strict:
            return NOTHING_STORED
        raise ScalingError(
            f"{instance} stays, for nobody can tell what it keeps: {error}; --leave-deferred "
            "removes it all the same"
        ) from error


# The plan.


class ScaleAction(StrEnum):
    """The action of a step."""

    LINK = "link"
    ENABLE = "enable"
    START = "start"
    STOP = "stop"
    CHECK = "check"
    DISABLE = "disable"
    UNLINK = "unlink"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class ScaleStep:
    """One step of a plan.

    Attributes:
        action: The action.
        instance: The instance that it concerns.
        text: The text of a warning.
    """

    action: ScaleAction
    instance: str
    text: str = ""


def plan(found: Workers, count: int, *, leave_deferred: bool = False) -> list[ScaleStep]:
    """Plan the steps after which there are *count* workers, all enabled and running.

    Args:
        found: The workers that are there now.
        count: The number of workers; 1 is the instance alone.
        leave_deferred: Remove a worker even if messages of its store would never run then.

    Returns:
        The steps in their order; only warnings if all is right already.

    Raises:
        ScalingError: Something is in the way; nothing must be done then.
    """
    wanted = [worker_name(found.name, number) for number in range(1, count + 1)]
    surplus = found.surplus(count)
    problems = [*_obstacles(found, wanted)]
    if not leave_deferred:
        problems += _left_behind(found, surplus)
    if problems:
        raise ScalingError(*problems)
    steps = [step for instance in wanted for step in _grow(found, instance)]
    for instance in surplus:
        steps += _shrink(found, instance, leave_deferred=leave_deferred)
    return [*steps, *_warnings(found, surplus)]


def _obstacles(found: Workers, wanted: list[str]) -> Iterator[str]:
    base = found.files.get(found.name)
    if base is not None and number_of(base, found.name):
        yield f"{found.name} is a worker of {base}: scale that, with 'fm-consumer scale {base} N'"
    if found.unit(found.name).load == "not-found":
        yield (f"systemd knows no {unit_name('')}: install it with 'fm-consumer units install'")
    if not INSTANCE_NAME.fullmatch(wanted[-1]):
        yield (
            f"{wanted[-1]!r} is too long for an instance (28 characters, for its user fm-NAME): "
            "give the instance a shorter name"
        )
    for instance in wanted[1:]:
        if found.is_foreign(instance):
            yield (
                f"{instance}.toml is in the way, and stays as it is: it is no link to "
                f"{found.name}.toml; give that instance another name, or remove the file"
            )


def _left_behind(found: Workers, surplus: list[str]) -> Iterator[str]:
    for instance in surplus:
        if reason := _reason_to_stay(instance, found.stored.get(instance, NOTHING_STORED)):
            yield reason


def _reason_to_stay(instance: str, stored: StoredCounts) -> str:
    if stored.deferred:
        return _would_never_run(instance, stored)
    if stored.unsent:
        return (
            f"{instance} stays, for {plural(stored.unsent, 'message')} that its handler published "
            "would never be sent: scale down once it has sent them ('fm-consumer outbox status "
            f"{instance}' tells), or give --leave-deferred, which leaves them in "
            f"{SYSTEM_STATE / instance} until {instance} is back"
        )
    return ""


def _would_never_run(instance: str, stored: StoredCounts) -> str:
    return (
        f"{instance} stays, for it has {plural(stored.deferred, 'deferred message')}, due until "
        f"{moment(stored.last_due or 0.0)}, and nobody else would run them: scale down after that "
        f"time ('fm-consumer quarantine list {instance} --state deferred' shows them), or give "
        f"--leave-deferred, which leaves them in {SYSTEM_STATE / instance} until {instance} is back"
    )


def _grow(found: Workers, instance: str) -> Iterator[ScaleStep]:
    unit = found.unit(instance)
    if instance not in found.files:
        yield ScaleStep(ScaleAction.LINK, instance)
    if not unit.is_enabled:
        yield ScaleStep(ScaleAction.ENABLE, instance)
    if not unit.is_running:
        yield ScaleStep(ScaleAction.START, instance)


def _shrink(found: Workers, instance: str, *, leave_deferred: bool) -> Iterator[ScaleStep]:
    unit = found.unit(instance)
    if unit.active != "inactive":
        yield ScaleStep(ScaleAction.STOP, instance)
        if not leave_deferred:
            # It may have deferred or published messages while it stopped.
            yield ScaleStep(ScaleAction.CHECK, instance)
    if unit.file_state == "enabled":
        yield ScaleStep(ScaleAction.DISABLE, instance)
    # Last, so that an interrupted removal is found again.
    if instance in found.files:
        yield ScaleStep(ScaleAction.UNLINK, instance)


def _warnings(found: Workers, surplus: list[str]) -> Iterator[ScaleStep]:
    for instance in surplus:
        stored, place = found.stored.get(instance, NOTHING_STORED), SYSTEM_STATE / instance
        if stored.quarantined:
            what = f"left in {place}: {plural(stored.quarantined, 'quarantined message')}"
            cure = f"see 'fm-consumer quarantine list {instance}'"
            yield ScaleStep(ScaleAction.WARN, instance, f"{what}; {cure}")
        if stored.deferred:
            what = f"left in {place}: {plural(stored.deferred, 'deferred message')}"
            yield ScaleStep(ScaleAction.WARN, instance, f"{what}, to run when {instance} is back")
        if stored.unsent:
            what = f"left in {place}: {plural(stored.unsent, 'published message')}"
            yield ScaleStep(ScaleAction.WARN, instance, f"{what}, to send when {instance} is back")
    target = found.units.get(TARGET)
    if target is not None and not target.is_enabled:
        text = f"{TARGET} is not enabled, so none of them starts at boot: systemctl enable {TARGET}"
        yield ScaleStep(ScaleAction.WARN, found.name, text)


# The plan carried out.


@dataclass(frozen=True, slots=True)
class StepRunner:
    """Carries out steps.

    Attributes:
        name: The instance that is scaled.
        directory: The directory of the configuration files.
        services: The service manager.
        tell: Called with each step before it is carried out.
        warn: Called with a line that the operator should see.
    """

    name: str
    directory: Path
    services: Services
    tell: Callable[[ScaleStep], None]
    warn: Callable[[str], None]

    def run(self, steps: Sequence[ScaleStep]) -> None:
        """Carry out *steps*, one after the other.

        Raises:
            ScalingError: A step failed; those before it are done, and a new plan goes on there.
            SystemctlError: Likewise.
        """
        actions: dict[ScaleAction, Callable[[str], None]] = {
            ScaleAction.LINK: self._link,
            ScaleAction.ENABLE: self.services.enable,
            ScaleAction.START: self.services.start,
            ScaleAction.STOP: self._stop,
            ScaleAction.CHECK: self._check,
            ScaleAction.DISABLE: self.services.disable,
            ScaleAction.UNLINK: self._unlink,
        }
        self._must_be_permitted(steps)
        for step in steps:
            self.tell(step)
            if step.action is not ScaleAction.WARN:
                actions[step.action](step.instance)

    def _must_be_permitted(self, steps: Iterable[ScaleStep]) -> None:
        # Before anything is done, not half-way.
        changes = any(step.action in (ScaleAction.LINK, ScaleAction.UNLINK) for step in steps)
        if changes and not os.access(self.directory, os.W_OK):
            raise ScalingError(f"{self.directory}: may not be changed by this user; use sudo")

    def _file(self, instance: str) -> Path:
        return self.directory / f"{instance}.toml"

    def _link(self, instance: str) -> None:
        link = self._file(instance)
        try:
            # Relative: it stays right in a copy of the directory, and needs no label of its own.
            link.symlink_to(f"{self.name}.toml")
        except OSError as error:
            raise ScalingError(f"{link}: cannot be made: {_reason(error)}") from error

    def _unlink(self, instance: str) -> None:
        link = self._file(instance)
        if files_in(self.directory).get(instance) != self.name:
            raise ScalingError(f"{link}: is no link to {self.name}.toml any more, and stays")
        try:
            link.unlink()
        except OSError as error:
            raise ScalingError(f"{link}: cannot be removed: {_reason(error)}") from error

    def _stop(self, instance: str) -> None:
        self.services.stop(instance)
        unit = self.services.show([unit_name(instance)]).get(unit_name(instance))
        if unit is not None and unit.active == "failed":
            if unit.result == "timeout":
                self.warn(
                    f"{instance} did not finish within the TimeoutStopSec= of its unit, and was "
                    "killed; the broker delivers what it had in its handler again"
                )
            self.services.reset_failed(instance)

    def _check(self, instance: str) -> None:
        stored = _stored(instance, strict=True)
        if reason := _reason_to_stay(instance, stored):
            self.services.start(instance)
            raise ScalingError(f"{reason}; it is started again")


def _reason(error: OSError) -> str:
    cure = "; use sudo" if isinstance(error, PermissionError) else ""
    return f"{(error.strerror or str(error)).lower()}{cure}"
