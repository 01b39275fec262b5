# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the lane of a delivery."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from consumer_framework.adapters import codec
from consumer_framework.core.attempt import fingerprint, said
from consumer_framework.core.fields import fields_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.handler import Handler
    from consumer_framework.core.ordering import Source

    from .plan import Plan

    LaneOf = Callable[[Delivery], str]

_log = logging.getLogger(__name__)

# The only lane there is where nothing may overtake anything.
EVERYTHING = "everything"


def lane_of(plan: Plan, handler: Handler) -> LaneOf | None:
    """Return what finds the lane of a delivery, None where no message has one.

    A message that has no key, or whose key cannot be found, has no lane.
    """
    if plan.policy.strict:
        return lambda _delivery: EVERYTHING
    return _Finder(plan.source_of(handler)) if plan.source_of is not None else None


class _Finder:
    """Finds keys, and survives what the author's method and broken messages raise."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._said: set[str] = set()

    def __call__(self, delivery: Delivery) -> str:
        try:
            return self._source(delivery, lambda: codec.decode(delivery))
        except Exception as error:  # noqa: BLE001 -- the author's code, or no message at all
            self._say(delivery, error)
            return ""

    def _say(self, delivery: Delivery, error: Exception) -> None:
        cause = fingerprint(error)
        if cause not in self._said:
            self._said.add(cause)
            about = fields_of(delivery, fingerprint=cause, attempt=0)
            _log.warning("no ordering key, so in no order: %s", said(error), extra=about)
