# SPDX-License-Identifier: GPL-2.0-or-later
"""What an instance keeps in its journal, counted from outside."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer_framework.adapters.journal import Journal
from consumer_framework.adapters.journal.files import DATABASE
from consumer_framework.core.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kept:
    """How many messages wait in a journal.

    Attributes:
        deferred: So many run by themselves when they are due.
        quarantined: So many wait for an operator; those in a replay are among them.
        next_due: When the first deferred one is due, in seconds since the epoch; None for never.
        last_due: When the last one is.
    """

    deferred: int = 0
    quarantined: int = 0
    next_due: float | None = None
    last_due: float | None = None


NOTHING = Kept()


def kept_in(directory: Path) -> Kept:
    """Count what waits in the journal of a state directory; nothing where there is no journal.

    Raises:
        JournalError: It cannot be read, or not by this user.
    """
    file = directory / DATABASE
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise JournalError(f"{file}: cannot be read: {reason}; use sudo") from error
    with closing(Journal.read(directory)) as journal:
        stats = journal.stats()
        return Kept(
            deferred=stats.deferred,
            quarantined=stats.quarantined + stats.replaying,
            next_due=stats.next_due,
            last_due=journal.last_due(),
        )
