# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a request: the rule that the middleware of all frameworks share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from consumer_framework.publishing.message import NotSentError, Outgoing, with_headers

if TYPE_CHECKING:
    from consumer_framework.publishing.collecting import Pending

_log = logging.getLogger(__name__)

# Takes a message. Returns further headers of it.
Enrich: TypeAlias = Callable[[Outgoing], Mapping[str, Any] | None]

# The first status that is no success (RFC 9110, section 15).
_FIRST_FAILURE = 400


def is_success(status: int) -> bool:
    """Return true if a response with *status* tells the client that its request succeeded."""
    return status < _FIRST_FAILURE


def commit(pending: Pending, enrich: Enrich, timeout: float) -> None:
    """Store the messages of a request that succeeded, in one transaction.

    A message with ``on_failure = "wait"`` that is not sent in *timeout* seconds is a warning: it is
    stored, and the request did succeed.

    Raises:
        OutboxError: None of them was stored.
        PublishError: *enrich* returned a header that cannot be sent. None was stored.
    """
    pending.close()
    pending.messages = [
        (with_headers(message, enrich(message)), on_failure)
        for message, on_failure in pending.messages
    ]
    try:
        pending.commit(timeout)
    except NotSentError as error:
        _log.warning("the response does not wait any longer: %s", error)
