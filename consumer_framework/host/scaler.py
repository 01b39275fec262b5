# SPDX-License-Identifier: GPL-2.0-or-later
"""Carries out what :mod:`.scaling` planned, and finds out what there is before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from consumer_framework.adapters.systemctl import TARGET, TEMPLATE, Unit, unit_name
from consumer_framework.core.errors import JournalError

from . import stores
from .kept import NOTHING, kept_in
from .scaling import Action, Found, ScalingError, would_never_run
from .workers import files_in, worker_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from .kept import Kept
    from .scaling import Step


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
        strict: A worker whose journal cannot be read is an error, not one without a message.

    Raises:
        ScalingError: A journal cannot be read.
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


def _kept(instance: str, *, strict: bool) -> Kept:
    try:
        return kept_in(stores.SYSTEM_STATE / instance)
    except JournalError as error:
        if not strict:
            return NOTHING
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
