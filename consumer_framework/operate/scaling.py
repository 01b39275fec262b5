# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans how many workers an instance has. Pure: it looks at nothing and changes nothing.

NAME is the first worker; the others are instances of their own, NAME_2 and so on, whose files are
symbolic links to NAME.toml. Only those, and units without any file, are ever planned for.

Carries out what :mod:`.scaling` planned, and finds out what there is before.

Whether more than one worker of a configuration makes sense.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from consumer_framework.adapters.systemd.systemctl import TARGET, TEMPLATE, Unit, unit_name
from consumer_framework.core.errors import ConfigurationError, FrameworkError, Problem, StoreError
from consumer_framework.core.text import moment, plural
from consumer_framework.runtime import state_files
from consumer_framework.runtime.state_files import NOTHING_STORED, SYSTEM_STATE, count_stored
from consumer_framework.settings import INSTANCE_NAME
from consumer_framework.settings.model import is_single_active

from .workers import files_in, number_of, worker_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from consumer_framework.runtime.state_files import StoredCounts
    from consumer_framework.settings import Settings

    from .workers import Files


class ScalingError(FrameworkError):
    """The workers cannot be made so many.

    Args:
        problems: Lines, each of which says what is in the way and what to do.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))


class Action(StrEnum):
    """What a step does with an instance."""

    LINK = "link"
    ENABLE = "enable"
    START = "start"
    STOP = "stop"
    CHECK = "check"
    DISABLE = "disable"
    UNLINK = "unlink"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    Attributes:
        action: What.
        instance: With which instance.
        text: What a warning says.
    """

    action: Action
    instance: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What there is.

    Attributes:
        name: The instance that is scaled.
        files: The configuration files of all instances.
        units: Units by their names; one that is not there is neither enabled nor running.
        kept: What workers keep in their stores, by instance; nothing where one is not there.
    """

    name: str
    files: Files
    units: Mapping[str, Unit] = field(default_factory=dict)
    kept: Mapping[str, StoredCounts] = field(default_factory=dict)

    def unit(self, instance: str) -> Unit:
        """The unit of *instance*."""
        name = unit_name(instance)
        return self.units.get(name, Unit(name))

    def is_foreign(self, instance: str) -> bool:
        """Whether its file is somebody's, and not a link to the file of the name."""
        return instance in self.files and self.files[instance] != self.name

    def surplus(self, count: int) -> list[str]:
        """The workers beyond *count*, the highest number first."""
        found = {*self.files, *(unit.instance for unit in self.units.values())}
        numbers = {number_of(self.name, instance) or 1: instance for instance in found}
        ours = (numbers[n] for n in sorted(numbers, reverse=True) if n > count)
        return [instance for instance in ours if not self.is_foreign(instance)]


def plan(found: Found, count: int, *, leave_deferred: bool = False) -> list[Step]:
    """Say what is to be done so that there are *count* workers, all enabled and running.

    Args:
        found: What there is now.
        count: How many workers; 1 is the instance alone.
        leave_deferred: Remove a worker also where messages of its store would never run.

    Returns:
        The steps in their order; none but warnings where all is as it should be.

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


def _obstacles(found: Found, wanted: list[str]) -> Iterator[str]:
    base = found.files.get(found.name)
    if base is not None and number_of(base, found.name):
        yield f"{found.name} is a worker of {base}: scale that, with 'fm-consumer scale {base} N'"
    if found.unit(found.name).load == "not-found":
        yield (
            f"systemd knows no {TEMPLATE.format('')}: install it with 'fm-consumer units install'"
        )
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


def _left_behind(found: Found, surplus: list[str]) -> Iterator[str]:
    for instance in surplus:
        kept = found.kept.get(instance, NOTHING_STORED)
        if kept.deferred:
            yield would_never_run(instance, kept)


def would_never_run(instance: str, kept: StoredCounts) -> str:
    """Say why a worker cannot go, and what to do."""
    return (
        f"{instance} stays, for it has {plural(kept.deferred, 'deferred message')}, due until "
        f"{moment(kept.last_due or 0.0)}, and nobody else would run them: scale down after that "
        f"time ('fm-consumer quarantine list {instance} --state deferred' shows them), or give "
        f"--leave-deferred, which leaves them in {SYSTEM_STATE / instance} until {instance} is back"
    )


def _grow(found: Found, instance: str) -> Iterator[Step]:
    unit = found.unit(instance)
    if instance not in found.files:
        yield Step(Action.LINK, instance)
    if not unit.is_enabled:
        yield Step(Action.ENABLE, instance)
    if not unit.is_running:
        yield Step(Action.START, instance)


def _shrink(found: Found, instance: str, *, leave_deferred: bool) -> Iterator[Step]:
    unit = found.unit(instance)
    if unit.active != "inactive":
        yield Step(Action.STOP, instance)
        if not leave_deferred:
            # It may have deferred some while it stopped.
            yield Step(Action.CHECK, instance)
    if unit.file_state == "enabled":
        yield Step(Action.DISABLE, instance)
    # Last: what was interrupted before is found again.
    if instance in found.files:
        yield Step(Action.UNLINK, instance)


def _warnings(found: Found, surplus: list[str]) -> Iterator[Step]:
    for instance in surplus:
        kept, place = found.kept.get(instance, NOTHING_STORED), SYSTEM_STATE / instance
        if kept.quarantined:
            what = f"left in {place}: {plural(kept.quarantined, 'quarantined message')}"
            cure = f"see 'fm-consumer quarantine list {instance}'"
            yield Step(Action.WARN, instance, f"{what}; {cure}")
        if kept.deferred:
            what = f"left in {place}: {plural(kept.deferred, 'deferred message')}"
            yield Step(Action.WARN, instance, f"{what}, to run when {instance} is back")
    target = found.units.get(TARGET)
    if target is not None and not target.is_enabled:
        text = f"{TARGET} is not enabled, so none of them starts at boot: systemctl enable {TARGET}"
        yield Step(Action.WARN, found.name, text)


class Services(Protocol):
    """What is asked of the service manager; :class:`.Systemctl` is the real one."""

    def show(self, names: Sequence[str]) -> dict[str, Unit]:
        """Return units by their names; patterns stand for loaded ones."""
        ...

    def enable(self, instance: str) -> None:
        """Let *instance* start at boot."""
        ...

    def disable(self, instance: str) -> None:
        """Let *instance* start no more at boot."""
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


def find(directory: Path, services: Services, name: str, count: int, *, strict: bool) -> Found:
    """Find out what there is of *name*.

    Args:
        directory: Where the configuration files are.
        services: The service manager.
        name: The instance.
        count: How many workers there shall be.
        strict: A worker whose store cannot be read is an error, not one without a message.

    Raises:
        ScalingError: A store cannot be read.
        ConfigurationError: The directory cannot be read.
        SystemctlError: The service manager does not answer.
    """
    files = files_in(directory)
    wanted = [worker_name(name, number) for number in range(1, count + 1)]
    surplus = Found(name, files).surplus(count)
    names = [unit_name(instance) for instance in (*wanted, *surplus)]
    units = services.show([*names, TEMPLATE.format(f"{name}_*"), TARGET])
    found = Found(name, files, units)
    kept = {instance: _kept(instance, strict=strict) for instance in found.surplus(count)}
    return Found(name, files, units, kept)


def _kept(instance: str, *, strict: bool) -> StoredCounts:
    try:
        return count_stored(state_files.SYSTEM_STATE / instance)
    except StoreError as error:
        if not strict:
            return NOTHING_STORED
        raise ScalingError(
            f"{instance} stays, for nobody can tell what it keeps: {error}; --leave-deferred "
            "removes it all the same"
        ) from error


@dataclass(frozen=True, slots=True)
class Scaler:
    """Carries out steps.

    Attributes:
        name: The instance that is scaled.
        directory: Where the configuration files are.
        services: The service manager.
        tell: Called with each step before it is carried out.
        warn: Called with a line that the operator should see.
    """

    name: str
    directory: Path
    services: Services
    tell: Callable[[Step], None]
    warn: Callable[[str], None]

    def carry_out(self, steps: Sequence[Step]) -> None:
        """Carry out *steps*, one after the other.

        Raises:
            ScalingError: One cannot be done; those before it are, and a new plan goes on there.
            SystemctlError: Likewise.
        """
        actions: dict[Action, Callable[[str], None]] = {
            Action.LINK: self._link,
            Action.ENABLE: self.services.enable,
            Action.START: self.services.start,
            Action.STOP: self._stop,
            Action.CHECK: self._check,
            Action.DISABLE: self.services.disable,
            Action.UNLINK: self._unlink,
        }
        self._must_be_permitted(steps)
        for step in steps:
            self.tell(step)
            if step.action is not Action.WARN:
                actions[step.action](step.instance)

    def _must_be_permitted(self, steps: Iterable[Step]) -> None:
        """Fail before anything is done, not half-way."""
        changes = any(step.action in (Action.LINK, Action.UNLINK) for step in steps)
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
        kept = _kept(instance, strict=True)
        if kept.deferred:
            self.services.start(instance)
            raise ScalingError(f"{would_never_run(instance, kept)}; it is started again")


def _reason(error: OSError) -> str:
    cure = "; use sudo" if isinstance(error, PermissionError) else ""
    return f"{(error.strerror or str(error)).lower()}{cure}"


def check(settings: Settings, source: str) -> None:
    """Refuse what workers cannot share.

    Raises:
        ConfigurationError: With every problem there is, each with its TOML path.
    """
    problems = list(_problems(settings))
    if problems:
        raise ConfigurationError(*problems, source=source)


def _problems(settings: Settings) -> Iterator[Problem]:
    for name, queue in settings.queues.items():
        if not name:
            what = "the broker names a queue for each worker, so each would get every message"
            yield Problem('queues.""', what, "give the queue a name, and exclusive = false")
        elif queue.exclusive:
            what = "the queue belongs to one connection, so a second worker is refused"
            yield Problem(f'queues."{name}".exclusive', what, "set it to false")
    if settings.monitoring is not None:
        what = f"only one worker can listen on port {settings.monitoring.port}"
        yield Problem("monitoring.port", what, "remove [monitoring]")


def standby_queues(settings: Settings) -> list[str]:
    """The queues that give their messages to one worker at a time, in the order of the file."""
    return [name for name, queue in settings.queues.items() if is_single_active(queue)]
