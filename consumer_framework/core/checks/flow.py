# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the broker sends as much ahead as slots and holds need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.findings import info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.findings import Finding
    from consumer_framework.core.settings import Framework

_PATH = "qos.prefetch_count"


def flow_findings(count: int | None, framework: Framework) -> Iterator[Finding]:
    """Say what a written ``prefetch_count`` is too small, or too large, for.

    Args:
        count: What the file says; None where it does not.
        framework: The settings in force, those of the consumer's class included.
    """
    if count is None:
        return
    busy, hold_slots = framework.at_once, framework.recovery.hold_slots
    if count == 0:
        what = "the broker sends everything that the queue has, whatever memory that takes"
        yield warning(_PATH, what, "remove this key, and it fits the slots")
    elif count < busy:
        what = f"slots take {busy} messages at once, and the broker sends {count}: some idle"
        yield warning(_PATH, what, f"set it to {busy} or more, or remove this key")
    elif count < busy + hold_slots:
        what = (
            f"{count - busy} of hold_slots = {hold_slots} can be used; "
            "what must wait for another attempt is written to the disk instead"
        )
        yield info(_PATH, what, "remove this key, and it fits the slots")
