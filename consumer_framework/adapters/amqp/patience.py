# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits for answers of the broker, for longer while a large message comes before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import defer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import Client, Clock

# Bytes. Heartbeats are fewer, and a link on which even less arrives is dead.
A_LOT = 1024
# How often the time begins anew: of a broker that sends messages, and never the answer, enough.
MOST_TIMES = 30


def expect(
    answer: defer.Deferred[Any],
    client: Client,
    clock: Clock,
    seconds: float,
    on_progress: Callable[[], None],
) -> None:
    """Cancel *answer* when nothing but heartbeats has come for *seconds*; as ``addTimeout``.

    A connection is one stream: the answer comes after the messages that are under way, and one of
    8 MB takes minutes on a slow link. What arrives of it is a sign of life.

    Args:
        answer: What is waited for; fails with ``defer.TimeoutError``.
        client: The connection that it comes on.
        clock: Twisted's reactor, or a clock of a test's.
        seconds: How long nothing may come.
        on_progress: Called where more time is given.
    """
    is_late = False
    timer: Any = None

    def look(arrived: int, times: int) -> None:
        nonlocal is_late, timer
        if client.arrived - arrived >= A_LOT and times < MOST_TIMES:
            on_progress()
            timer = clock.callLater(seconds, look, client.arrived, times + 1)
        else:
            is_late = True
            answer.cancel()

    def ended(result: Any) -> Any:
        if timer.active():
            timer.cancel()
        if is_late and getattr(result, "check", bool)(defer.CancelledError):
            raise defer.TimeoutError(f"no answer in {seconds:.0f} s")
        return result

    timer = clock.callLater(seconds, look, client.arrived, 0)
    answer.addBoth(ended)
