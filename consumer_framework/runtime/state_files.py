# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that an instance keeps on disk, and their places.

The state directory has the store, the flight recorder and the consumer's own files. An instance may
also run without one: then its :class:`StateFiles` are in memory, and end with the process.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.adapters.flight import Flight, image
from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.files import DATABASE, described
from consumer_framework.adapters.store.memory import NoStore
from consumer_framework.core.errors import (
    ConfigurationError,
    ExitCode,
    Fault,
    Problem,
    StoreError,
)
from consumer_framework.core.log_fields import fields
from consumer_framework.core.text import about, duration_text, printable
from consumer_framework.publishing import FILE as OUTBOX
from consumer_framework.settings import Ordering, StoreKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.ports import Clock, Notifier
    from consumer_framework.settings import Framework


_log = logging.getLogger(__name__)

# The directories that systemd makes for `StateDirectory=fedora-messaging/NAME` (systemd.exec(5)).
SYSTEM_STATE = Path("/var/lib/fedora-messaging")
# The runtime directory of an instance, likewise.
SYSTEM_RUNTIME = Path("/run/fedora-messaging")
CONTROL = "control"
# In the runtime directory, if the host has the group of operators: its members may connect to the
# socket in it, by the mode and the group of the directory. The unit makes it.
OPERATORS = "operators"
# Likewise of a relay: `RuntimeDirectory=fm-outbox/NAME`.
SYSTEM_RELAY_RUNTIME = Path("/run/fm-outbox")
# The control socket of a relay without a runtime directory, in its state directory.
RELAY_CONTROL = "relay-control"
_DIED = "the process died"
# In the state directory: the consumer's own files.
CONSUMER_FILES = "files"
# Messages that the flight recorder has room for at least, so that a reload may bring more slots.
FLIGHT_ROOM = 1024
# Seconds between two attempts to open the files; shorter than the pauses of `expire`.
RETRY = 0.25
# Seconds that the service manager is asked for at each attempt.
_LEASE = 15.0


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The store and the flight recorder of an instance, open.

    Attributes:
        directory: The state directory; None in memory.
        places: The number of messages that the flight recorder has room for.
    """

    directory: Path | None
    store: Store
    flight: Flight
    places: int

    def close(self) -> None:
        """Close both."""
        self.flight.close()
        self.store.close()


def state_directory(instance: str, given: Path | None) -> Path:
    """Return the state directory of *instance*.

    The first of these: the *given* one; ``$STATE_DIRECTORY``, as systemd sets it; for root
    ``/var/lib/fedora-messaging/NAME``; for other users ``$XDG_STATE_HOME/fedora-messaging/NAME``,
    which is below ``~/.local/state`` where that is not set (XDG Base Directory Specification).
    """
    if given is not None:
        return given
    if from_systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(from_systemd.partition(":")[0])
    return users_directory(instance)


def users_directory(instance: str) -> Path:
    """Return the state directory of *instance* if this user runs it and names none."""
    if os.geteuid() == 0:
        return SYSTEM_STATE / instance
    # A user whom no list of users has, and without $HOME, has no home.
    own = os.path.expanduser("~").replace("~", "/")  # noqa: PTH111 -- Path.home() raises
    home = os.environ.get("XDG_STATE_HOME") or Path(own) / ".local/state"
    return Path(home) / "fedora-messaging" / instance


def is_directory_given(given: Path | None) -> bool:
    """Tell whether the command line or the unit names the state directory."""
    return given is not None or bool(os.environ.get("STATE_DIRECTORY"))


def control_socket(directory: Path) -> Path:
    """Return the control socket of the instance whose state is in *directory*.

    It is in ``$RUNTIME_DIRECTORY``, as systemd sets it, or else in the state directory.
    """
    return (runtime_directory() or directory) / CONTROL


def operators_socket(control: Path) -> Path | None:
    """Return the socket for members of the group of operators; None if the unit made no place.

    Args:
        control: The control socket of the same process.
    """
    directory = control.parent / OPERATORS
    return directory / CONTROL if directory.is_dir() else None


def relay_socket(directory: Path) -> Path:
    """Return the control socket of the relay that was started with the state *directory*."""
    runtime = runtime_directory()
    return directory / RELAY_CONTROL if runtime is None else runtime / CONTROL


def relay_sockets(directory: Path, name: str) -> list[Path]:
    """Return the sockets on which the relay *name* may listen, the likeliest first."""
    runtime = SYSTEM_RELAY_RUNTIME / name
    own = directory / RELAY_CONTROL
    if directory != users_directory(name):
        return [own]
    return [runtime / CONTROL, runtime / OPERATORS / CONTROL, own]


def is_of_relay(socket: Path) -> bool:
    """Tell whether *socket* is one of :func:`relay_sockets`, and not that of an instance."""
    return socket.name == RELAY_CONTROL or SYSTEM_RELAY_RUNTIME in socket.parents


def runtime_directory() -> Path | None:
    """Return ``$RUNTIME_DIRECTORY`` as systemd sets it, None without it."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(runtime) if runtime else None


def has_files(directory: Path) -> bool:
    """Tell whether a consumer has files in *directory*; False if it cannot be read."""
    try:
        return any(directory.iterdir())
    except OSError:
        return False


def open_state_files(
    directory: Path, instance: str, framework: Framework, *, is_given: bool = True
) -> StateFiles:
    """Open the store and the flight recorder; make the directory if it is missing.

    Args:
        directory: The state directory.
        instance: The instance's name.
        framework: Has the limits of the store, and tells whether there is one.
        is_given: True if the command line or the unit names this directory. If not, and the
            directory cannot be made, the instance runs without one.

    Raises:
        ConfigurationError: They can be opened only after an administrator changed something.
        StoreError: They may be opened later: another process has them, or the disk is full.
    """
    limits, places = store_limits(framework), max(framework.at_once, FLIGHT_ROOM)
    if framework.store is StoreKind.MEMORY:
        _log.info("%s", _WITHOUT)
        _warn_of_rows(directory)
        return _in_memory(places)
    try:
        with described(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = Store.open(directory, instance=instance, limits=limits)
        # One more is in flight while it is decoded for its ordering key.
        flight = _open_flight(directory, store, places + 1)
    except StoreError as error:
        if not is_given and _can_never_be_made(directory, error):
            return _without_directory(error, framework, places)
        if not error.lasting:
            raise
        # It names the file and the cure itself.
        raise ConfigurationError(Problem("", str(error))) from error
    return StateFiles(directory, store, flight, places)


def wait_for_state_files(
    open_them: Callable[[], StateFiles],
    patience: float,
    notifier: Notifier,
    clock: Clock,
    sleep: Callable[[float], None] = time.sleep,
) -> StateFiles:
    """Open the files, and try again while another process has them or the disk is full.

    Args:
        open_them: See :func:`open_state_files`.
        patience: Seconds to wait at most.
        notifier: Told the reason of the wait.
        clock: Measures the wait.
        sleep: Waits for so many seconds.

    Raises:
        ConfigurationError: They can be opened only after an administrator changed something.
        Fault: They could not be opened in that time; another start may succeed.
    """
    end = clock.monotonic() + patience
    logged = ""
    while True:
        try:
            return open_them()
        except StoreError as error:
            reason = str(error)
        left = end - clock.monotonic()
        if left <= 0:
            why = f"not started within {duration_text(patience)} (start_timeout): {reason}"
            raise Fault(ExitCode.TEMPORARY, why)
        if reason != logged:
            _log.warning("waiting for the state directory: %s", reason)
            logged = reason
        notifier.extend(_LEASE)
        notifier.status(f"Starting: {reason}; gives up in {about(left)}")
        sleep(min(RETRY, left))


# The consequences of running without a state directory.
_WITHOUT = (
    "without a store: messages that must wait are held in memory or go back to their queue; so do "
    "those that fail at every attempt, for ever, and there is no quarantine; bytes that are no "
    "valid message are rejected, and lost where their queue has no dead-letter exchange; a message "
    "that kills the process is not known the next time"
)


def _in_memory(places: int) -> StateFiles:
    return StateFiles(None, NoStore(), Flight(image(places + 1)), places)


def _can_never_be_made(directory: Path, error: StoreError) -> bool:
    # Only a directory that never had a store: there, no messages wait.
    is_read_only = getattr(error.__cause__, "errno", None) == errno.EROFS
    return (error.lasting or is_read_only) and not os.path.exists(directory / DATABASE)  # noqa: PTH110


def _without_directory(error: StoreError, framework: Framework, places: int) -> StateFiles:
    if framework.ordering is not Ordering.NONE:
        what = f'{error}; ordering = "{framework.ordering.value}" cannot do without it'
        raise ConfigurationError(Problem("", what)) from error
    _log.warning("%s", error)
    cure = 'set store = "memory" in [consumer_config.framework] where that is what you want'
    _log.warning("this instance runs %s; %s", _WITHOUT, cure)
    return _in_memory(places)


def _warn_of_rows(directory: Path) -> None:
    """Warn of messages in a former store, which no instance runs."""
    with suppress(StoreError), closing(Store.read(directory)) as store:
        stats = store.stats()
        rows = stats.deferred + stats.quarantined + stats.replaying
        if rows:
            cure = 'start once with store = "disk", or replay them'
            _log.warning("%d messages in %s are not run: %s", rows, directory / DATABASE, cure)


def store_limits(framework: Framework) -> Limits:
    """Return the limits of the store."""
    return Limits(framework.quarantine_max_age, framework.quarantine_max_bytes)


def _open_flight(directory: Path, store: Store, places: int) -> Flight:
    try:
        flight, former = Flight.open(directory, places)
    except BaseException:
        store.close()
        raise
    for crashed in former.in_flight:
        _log.warning(
            "%s while message %s of %s was handled: crash %d of it",
            "the process was restarted for handler_timeout" if crashed.hung else _DIED,
            printable(crashed.message_id),
            crashed.queue,
            crashed.crashes,
            extra=fields(crashed.message_id, "", crashed.queue),
        )
    return flight


@dataclass(frozen=True, slots=True)
class StoredCounts:
    """The number of messages in a store.

    Attributes:
        deferred: Messages that run again by themselves when they are due.
        quarantined: Messages that wait for an operator; those in a replay are among them.
        next_due: When the first deferred one is due, in seconds since the epoch; None for never.
        last_due: When the last one is due.
        unsent: Messages that handlers published, and that are not sent; see :func:`count_unsent`.
    """

    deferred: int = 0
    quarantined: int = 0
    next_due: float | None = None
    last_due: float | None = None
    unsent: int = 0


NOTHING_STORED = StoredCounts()


def count_stored(directory: Path) -> StoredCounts:
    """Count the messages in the store of a state directory; none without a store.

    Raises:
        StoreError: It cannot be read, or not by this user.
    """
    file = directory / DATABASE
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING_STORED
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"{file}: cannot be read: {reason}; use sudo") from error
    with closing(Store.read(directory)) as store:
        stats = store.stats()
        return StoredCounts(
            deferred=stats.deferred,
            quarantined=stats.quarantined + stats.replaying,
            next_due=stats.next_due,
            last_due=store.last_due(),
        )


def count_unsent(directory: Path) -> int:
    """Count the messages to send in the outbox of a state directory; 0 without an outbox there.

    Raises:
        StoreError: It cannot be read, or not by this user.
    """
    file = directory / OUTBOX
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            query = "SELECT count(*) FROM fm_outbox WHERE state = 'waiting'"
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.Error as error:
        if str(error).startswith("no such table"):
            return 0
        raise StoreError(f"{file}: cannot be read: {error}") from error
