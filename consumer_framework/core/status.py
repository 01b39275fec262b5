# SPDX-License-Identifier: GPL-2.0-or-later
"""The line that ``systemctl status`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .stats import Snapshot

_SHOWN_QUEUES = 3


def status_line(  # noqa: PLR0913 -- each is one thing that the line says
    state: State,
    broker: str,
    queues: Sequence[str],
    counts: Snapshot,
    trouble: str = "",
    *,
    running: int = 0,
) -> str:
    """Say in one line what an instance does.

    Args:
        state: Where it is in its life.
        broker: ``HOST:PORT``.
        queues: The names of the queues that it consumes from.
        counts: What it has done since it started.
        trouble: Why it does not consume, or why it stopped; "" for no reason.
        running: How many messages are in the handler.
    """
    lines = {
        State.BUILDING: "Starting: setting up the handler",
        State.CONNECTING: f"Connecting to the broker at {broker}",
        State.SUBSCRIBING: f"Connected to the broker at {broker}, subscribing",
        State.CONSUMING: f"Consuming from {_names(queues)}; {counts_text(counts)}",
        State.PAUSED: "Paused",
        State.FAILING: f"Failing: waiting for {running} running; {counts_text(counts)}",
        State.DRAINING: f"Stopping: waiting for {running} running; {counts_text(counts)}",
        State.STOPPED: f"Stopped; {counts_text(counts)}",
    }
    if trouble and state is State.CONNECTING:
        return f"Waiting for the broker at {broker}: {trouble}"
    if trouble and state in (State.SUBSCRIBING, State.STOPPED):
        return trouble
    if trouble and state is State.PAUSED:
        return f"Paused: {trouble}; {counts_text(counts)}"
    return lines[state]


def counts_text(counts: Snapshot) -> str:
    """Say what was done; what never happened is left out, except successes."""
    numbers = {
        "handled": counts.acked,
        "held": counts.held,
        "deferred": counts.deferred,
        "quarantined": counts.quarantined,
        "requeued": counts.requeued,
        "rejected": counts.rejected,
        "undecodable": counts.undecodable,
        "failed": counts.failed,
    }
    shown = [f"{n} {what}" for what, n in numbers.items() if n or what == "handled"]
    return ", ".join(shown)


def _names(queues: Sequence[str]) -> str:
    shown = ", ".join(queues[:_SHOWN_QUEUES])
    more = len(queues) - _SHOWN_QUEUES
    return f"{shown} and {more} more" if more > 0 else shown
