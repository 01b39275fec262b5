# SPDX-License-Identifier: GPL-2.0-or-later
"""Extends the lease and the claims of a relay while its batch is on its way.

A messenger may take longer than the lease: a broker confirms slowly, or the messenger tries one
endpoint after another. The thread here gives up after :data:`PATIENCE` leases, because a messenger
that hangs must not keep other relays from sending.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from .store import OutboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from consumer_framework.core.ports import Clock

    from .store import OutboxStore

_log = logging.getLogger(__name__)

# A batch, or an attempt to connect, that takes so many leases is stuck.
PATIENCE = 10
# The lease is extended this often within its length.
_EXTENSIONS = 6


class Moment(NamedTuple):
    """A moment by two clocks: one stands still while the machine is suspended, one can be set."""

    monotonic: float
    time: float

    @classmethod
    def now(cls, clock: Clock) -> Moment:
        """Return the present moment."""
        return cls(clock.monotonic(), clock.time())

    def age(self, clock: Clock) -> float:
        """Return the seconds that passed since, by the clock that counted more of them."""
        return max(clock.monotonic() - self.monotonic, clock.time() - self.time)


class Extender:
    """Extends the lease and the claim of the batch on its way, in a thread of its own.

    Args:
        store: The outbox's table.
        owner: The owner of the lease; None for a relay without one.
        lease: Seconds.
        clock: That of the relay.
    """

    def __init__(self, store: OutboxStore, owner: str | None, lease: float, clock: Clock) -> None:
        self._store = store
        self._owner = owner
        self._lease = lease
        self._clock = clock
        # Held while a claim is extended, so that its batch is not settled meanwhile.
        self._extending = threading.Lock()
        self._work: tuple[str, Sequence[int]] | None = None
        self._began = self._extended = Moment(0.0, 0.0)
        self._is_lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_late(self) -> bool:
        """True if another relay has the lease or claim, or may have it before long."""
        return self._is_lost or self._extended.age(self._clock) > self._lease / 2

    def start(self) -> None:
        """Begin the thread."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="outbox-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    @contextlib.contextmanager
    def extending(self, since: Moment, token: str = "", rows: Sequence[int] = ()) -> Iterator[None]:
        """Extend the lease, and the claim of *rows* with *token*, while the block runs.

        Args:
            since: The moment before the claim. The process may have been stopped after it, or the
                machine suspended.
            token: As it was given to the claim.
            rows: The ids of the claimed rows.
        """
        self._began = self._extended = since
        self._is_lost = False
        self._work = (token, rows)
        try:
            yield
        finally:
            with self._extending:
                self._work = None

    def _run(self) -> None:
        while not self._stop.wait(self._lease / _EXTENSIONS):
            with self._extending:
                self._extend()

    def _extend(self) -> None:
        now = Moment.now(self._clock)
        if (
            self._work is None
            or self._extended.age(self._clock) < self._lease / _EXTENSIONS
            or self._began.age(self._clock) > self._lease * PATIENCE
        ):
            return
        token, rows = self._work
        try:
            is_kept = self._store.extend(self._owner, self._lease, self._clock.time(), token, rows)
        except OutboxError as error:
            _log.debug("The lease could not be extended: %s", error)
            return
        if is_kept:
            self._extended = now
        else:
            self._is_lost = True
