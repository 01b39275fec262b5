# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks systemd about units, and has it start and stop them: systemctl(1), busctl(1).

Every call of these programs is made here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import FrameworkError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TARGET = "fm-consumers.target"

# Seconds in which a question is answered, or given up. Starts and stops take their time.
_PATIENCE = 5

# States of systemctl(1), "is-enabled", in which enabling changes nothing.
_ENABLED = ("enabled", "static", "alias", "indirect", "generated")
_RUNNING = ("active", "reloading", "refreshing")
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "Result",
    "StatusText",
    "MainPID",
    "NRestarts",
    "ExecMainStatus",
    "ActiveEnterTimestampMonotonic",
    "ActiveExitTimestampMonotonic",
    "InactiveEnterTimestampMonotonic",
    "InactiveExitTimestampMonotonic",
)
# The timestamp of each state, as "systemctl status" chooses it: a reload begins no new state.
_SINCE = {
    "active": "ActiveEnter",
    "reloading": "ActiveEnter",
    "refreshing": "ActiveEnter",
    "inactive": "InactiveEnter",
    "failed": "InactiveEnter",
    "activating": "InactiveExit",
    "deactivating": "ActiveExit",
}


class SystemctlError(FrameworkError):
    """systemd is not there, or refused.

    Args:
        message: One line with the command and its complaint.
    """

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as systemd knows it; systemctl(1), "show".

    Attributes:
        id: Its name, with the suffix.
        load: ``loaded``, or ``not-found`` if there is no such unit file.
        active: ``active``, ``inactive``, ``failed``, ``activating`` and others.
        sub: The same in the words of the kind of unit.
        file_state: ``enabled``, ``disabled`` and others.
        result: The reason of its failure, or ``success``.
        text: Its own status line (``STATUS=`` of sd_notify(3)).
        pid: Its main process; 0 for none.
        since: The time of its change to this state, in seconds since the epoch; None for never.
        restarts: The number of restarts by systemd since somebody started it.
        exit_status: The exit code of its last process; 0 while it runs.
    """

    id: str
    load: str = "loaded"
    active: str = "inactive"
    sub: str = "dead"
    file_state: str = "disabled"
    result: str = "success"
    text: str = ""
    pid: int = 0
    since: float | None = None
    restarts: int = 0
    exit_status: int = 0

    @property
    def instance(self) -> str:
        """Return the NAME in ``fm-consumer@NAME``; "" for another unit."""
        name, _, rest = self.id.partition("@")
        return rest.removesuffix(".service") if name == "fm-consumer" else ""

    @property
    def is_running(self) -> bool:
        """Return True if it has started and was not told to stop."""
        return self.active in _RUNNING

    @property
    def is_enabled(self) -> bool:
        """Return True if there is nothing to enable."""
        return self.file_state in _ENABLED


def unit_name(instance: str) -> str:
    """Return the name of the unit of *instance*; "" for the template, "*" for all instances."""
    return f"fm-consumer@{instance}.service"


class Systemctl:
    """The system's service manager. Every method raises :class:`SystemctlError`."""

    def show(self, names: Sequence[str]) -> dict[str, Unit]:
        """Return units by their names.

        Args:
            names: Names of units, and patterns such as ``fm-consumer@*.service``, which match
                loaded units.
        """
        said = _systemctl("show", f"--property={','.join(_PROPERTIES)}", "--", *names)
        tables = (_table(paragraph) for paragraph in said.split("\n\n") if paragraph.strip())
        # Timestamps count from the boot. The wall clock is hardly set between these two readings.
        boot = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        units = [_unit(table, boot) for table in tables]
        return {unit.id: unit for unit in units}

    def enable(self, instance: str) -> None:
        """Have *instance* started at boot."""
        _systemctl("enable", "--quiet", unit_name(instance))

    def disable(self, instance: str) -> None:
        """Have *instance* no longer started at boot."""
        _systemctl("disable", "--quiet", unit_name(instance))

    def start(self, instance: str) -> None:
        """Start *instance*, and wait until it is ready."""
        _systemctl("start", unit_name(instance))

    def stop(self, instance: str) -> None:
        """Stop *instance*, and wait until it has ended."""
        _systemctl("stop", unit_name(instance))

    def reset_failed(self, instance: str) -> None:
        """Forget that *instance* failed."""
        _systemctl("reset-failed", unit_name(instance))

    def daemon_reload(self) -> None:
        """Have unit files read again."""
        _systemctl("daemon-reload")


def properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of *unit* as systemctl(1) prints them; none where systemd cannot answer."""
    try:
        return _table(_systemctl("show", f"--property={','.join(names)}", unit, timeout=_PATIENCE))
    except SystemctlError:
        return {}


def bus_properties(unit: str) -> dict[str, Any]:
    """Return all properties of *unit* as JSON values; none where systemd cannot answer.

    See org.freedesktop.systemd1(5). systemd loads the unit for this where it is not loaded.
    """
    # The bus escapes all but letters and digits in these names, and a digit at the beginning.
    label = re.sub(r"^[0-9]|[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):02x}", unit)
    name, path = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
    question = ("org.freedesktop.DBus.Properties", "GetAll", "s", "")
    try:
        said = _run("busctl", "--json=short", "call", name, f"{path}/unit/{label}", *question)
        (answer,) = json.loads(said)["data"]
        return {name: value["data"] for name, value in answer.items()}
    except (SystemctlError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def version() -> int:
    """Return the version of systemd, such as 252; 0 where it is unknown."""
    try:
        found = re.match(r"systemd (\d+)", _systemctl("--version", timeout=_PATIENCE))
    except SystemctlError:
        return 0
    return int(found[1]) if found else 0


def _systemctl(verb: str, *arguments: str, timeout: float | None = None) -> str:
    options = ("--no-pager", "--no-ask-password")
    return _run("systemctl", *options, verb, *arguments, timeout=timeout)


def _run(program: str, *arguments: str, timeout: float | None = _PATIENCE) -> str:
    clean = {"LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_URLIFY": "0"}
    try:
        # An operator's own command in PATH, as every other program that is called by its name.
        done = subprocess.run(  # noqa: S603 -- no shell, and no name but of an instance
            [program, *arguments],
            env={**os.environ, **clean},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
        )
    except FileNotFoundError:
        raise SystemctlError(f"there is no {program} in $PATH: no systemd runs here") from None
    except OSError as error:
        raise SystemctlError(f"{program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise SystemctlError(f"{program} does not answer") from None
    if done.returncode:
        raise SystemctlError(_complaint(program, arguments, done.stderr))
    return done.stdout


def _complaint(program: str, arguments: Sequence[str], said: str) -> str:
    words = [word for word in arguments if not word.startswith("-")]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    what = " ".join([program, *words[:1], *([] if words[:1] == ["show"] else words[1:][-1:])])
    return f"{what}: {' '.join(lines) or 'failed without a word'}"


def _table(paragraph: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in paragraph.strip().splitlines())
    return {key: value for key, _, value in pairs}


def _unit(table: Mapping[str, str], boot: float) -> Unit:
    active = table.get("ActiveState", "")
    changed = int(table.get(f"{_SINCE.get(active, '')}TimestampMonotonic") or 0)
    return Unit(
        id=table.get("Id", ""),
        load=table.get("LoadState", ""),
        active=active,
        sub=table.get("SubState", ""),
        file_state=table.get("UnitFileState", ""),
        result=table.get("Result", ""),
        text=table.get("StatusText", ""),
        pid=int(table.get("MainPID") or 0),
        since=boot + changed / 1e6 if changed else None,
        restarts=int(table.get("NRestarts") or 0),
        exit_status=int(table.get("ExecMainStatus") or 0),
    )
