# SPDX-License-Identifier: GPL-2.0-or-later
"""The fields of a log line about a message, which ``journalctl`` matches, and its priority.

The names are the framework's own, as systemd.journal-fields(7) asks of programs. A field has more
than one value if a line is about several messages.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

from .disposition import rule_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .delivery import Delivery
    from .disposition import Disposition

# syslog(3).
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG = 7


def priority_of(level: int) -> int:
    """Return the priority of one of :mod:`logging`'s levels, or of one between them."""
    return next((number for lowest, number in _PRIORITIES.items() if level >= lowest), _DEBUG)


INSTANCE = "FM_INSTANCE"
MESSAGE_ID = "FM_MESSAGE_ID"
TOPIC = "FM_TOPIC"
QUEUE = "FM_QUEUE"
ATTEMPT = "FM_ATTEMPT"
DISPOSITION = "FM_DISPOSITION"
FINGERPRINT = "FM_FINGERPRINT"
ROUTE = "FM_ROUTE"
# Of a line about an operator's order.
OPERATOR_UID = "FM_OPERATOR_UID"
OPERATOR_PID = "FM_OPERATOR_PID"
OPERATOR_LOGIN = "FM_OPERATOR_LOGIN"

Fields: TypeAlias = "dict[str, str | list[str]]"


def run_number(delivery: Delivery) -> int:
    """Return the number of the next run of the handler on *delivery*: 1 for the first.

    Runs that failed count, and runs in which the process died. Runs that the author, or a broken
    dependency, put off do not count. In a route its own failures count.
    """
    history, route = delivery.history, delivery.route
    failed = history.attempts_of(route) if route else len(history.attempts)
    return failed + history.crashes + 1


def fields(  # noqa: PLR0913, PLR0917 -- each is one field
    message_id: str,
    topic: str,
    queue: str,
    attempt: int = 0,
    disposition: Disposition | None = None,
    fingerprint: str = "",
    route: str = "",
) -> Fields:
    """Make the fields of a line about one message; unknown values have no field.

    Args:
        message_id: The publisher's name for it, "" if there is none.
        topic: Its routing key.
        queue: The queue that it came from.
        attempt: The number of the run that the line is about; 0 if it is about none.
        disposition: Its disposition, once that is decided.
        fingerprint: The cause of its failure.
        route: The route that it is in, "" if it is in none.
    """
    known: Fields = {
        MESSAGE_ID: message_id,
        TOPIC: topic,
        QUEUE: queue,
        ATTEMPT: str(attempt or ""),
        DISPOSITION: rule_for(disposition).words.field if disposition is not None else "",
        FINGERPRINT: fingerprint,
        ROUTE: route,
    }
    return {name: value for name, value in known.items() if value}


def fields_of(
    delivery: Delivery,
    disposition: Disposition | None = None,
    fingerprint: str = "",
    attempt: int | None = None,
) -> Fields:
    """Make the fields of a line about *delivery*.

    Args:
        delivery: With the history that it had before the run that the line is about.
        disposition: Its disposition, once that is decided.
        fingerprint: The cause of its failure.
        attempt: As :func:`fields` takes it; None for the run after those in its history.
    """
    number = run_number(delivery) if attempt is None else attempt
    id_, topic = delivery.message_id, delivery.routing_key
    return fields(id_, topic, delivery.queue, number, disposition, fingerprint, delivery.route)


def fields_of_all(deliveries: Sequence[Delivery]) -> Fields:
    """Make the fields of a line about *deliveries*, such as a batch; no field for no delivery."""
    if len(deliveries) == 1:
        return fields_of(deliveries[0])
    return _merged(map(fields_of, deliveries))


def _merged(several: Iterable[Fields]) -> Fields:
    merged: dict[str, list[str]] = {}
    for each in several:
        for name, value in each.items():
            values = merged.setdefault(name, [])
            if str(value) not in values:
                values.append(str(value))
    return dict(merged)
