# SPDX-License-Identifier: GPL-2.0-or-later
"""Claims rows for a relay: the next ones in a second thread, while the present ones are sent.

So neither the broker nor the database waits for the other. A claim with an ordering key is settled
before the next one is made: the next row of a key may not be claimed before the one before it is
settled.

The relay decides if it looks ahead. It gives the next claim back as soon as it cannot send.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from .extending import Moment
from .store import OutboxError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.core.ports import Clock

    from .store import Claimed, OutboxStore

_log = logging.getLogger(__name__)


class Claim(NamedTuple):
    """Rows that a relay has for a time.

    Attributes:
        token: As it was given to :meth:`.Claims.claim`.
        since: The moment before they were claimed. The process may have been stopped since.
        rows: The rows, in the order to send them.
    """

    token: str
    since: Moment
    rows: Sequence[Claimed]

    @property
    def ids(self) -> list[int]:
        """The ids of the rows."""
        return [one.row for one in self.rows]

    @property
    def has_keys(self) -> bool:
        """True if a row has an ordering key."""
        return any(one.message.ordering_key for one in self.rows)


NOTHING = Claim("", Moment(0.0, 0.0), ())


class Claimer:
    """Claims rows for one relay. The thread of the relay uses it.

    Args:
        store: The outbox's table.
        owner: That of the relay.
        lease: Seconds that a claim lasts for.
        clock: That of the relay.

    Attributes:
        held: The last claim that :meth:`next` returned.
    """

    def __init__(self, store: OutboxStore, owner: str, lease: float, clock: Clock) -> None:
        self._store = store
        self._owner = owner
        self._lease = lease
        self._clock = clock
        self._count = 0
        self._thread: threading.Thread | None = None
        self._ahead = NOTHING
        self.held = NOTHING

    def next(self, limit: int) -> Claim:
        """Return the claim that was made ahead, or make one.

        Args:
            limit: The number of rows at most; a claim made ahead may have half as many more.

        Raises:
            OutboxError: The database did not do it.
        """
        ahead = self._joined()
        is_old = ahead.since.age(self._clock) > self._lease / 4
        # The limit follows the speed, which is never quite the same.
        is_large = len(ahead.rows) > limit + limit // 2
        if not ahead.rows or is_large or is_old:
            self.give_back()
            ahead = self._claim(limit)
        self._ahead, self.held = NOTHING, ahead
        return ahead

    def look_ahead(self, limit: int) -> None:
        """Begin to claim the next rows, unless those of :attr:`held` have ordering keys."""
        if self.held.has_keys:
            return

        def claim() -> None:
            try:
                self._ahead = self._claim(limit)
            except OutboxError as error:
                # The next claim is told of it, if it lasts.
                _log.debug("No rows are claimed ahead: %s", error)

        thread = threading.Thread(target=claim, name="outbox-claim", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            _log.debug("No rows are claimed ahead: %s", error)
        else:
            self._thread = thread

    def give_back(self) -> None:
        """Give back the claim that was made ahead, if there is one.

        Raises:
            OutboxError: The database did not do it.
        """
        ahead = self._joined()
        if ahead.rows:
            self._store.settle(ahead.token, released=ahead.ids)
            self._ahead = NOTHING

    def _joined(self) -> Claim:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._ahead

    def _claim(self, limit: int) -> Claim:
        self._count += 1
        token, since = f"{self._owner}.{self._count}", Moment.now(self._clock)
        rows = self._store.claim(token, limit, self._lease, self._clock.time())
        return Claim(token, since, rows)
