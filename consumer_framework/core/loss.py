# SPDX-License-Identifier: GPL-2.0-or-later
"""The forecast of the next loss: of messages, or of the connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss that will come if nothing changes.

    Attributes:
        subject: The loss in words, such as ``queue "builds" reaches 1.0 GiB and drops its oldest
            messages``.
        seconds: The time until then; 0 if it has begun.
        cure: The remedy, in words for an operator.
    """

    subject: str
    seconds: float
    cure: str = ""
