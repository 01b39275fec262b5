# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs ``fm-consumer`` so that it is killed, once, at a chosen boundary of the delivery path.

Usage: ``killer.py POINT NUMBER MARKER ARGUMENT...``: SIGKILL at the NUMBERth time that POINT is
reached, unless the file MARKER exists already. The product knows nothing of it: the methods
at the boundaries are wrapped here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
from pathlib import Path

_ADAPTERS = "consumer_framework.adapters"
FLIGHT = (f"{_ADAPTERS}.flight", "Flight")
EXECUTOR = (f"{_ADAPTERS}.executor", "Executor")
CHANNELS = (f"{_ADAPTERS}.amqp.channels", "Channels")
JOURNAL = (f"{_ADAPTERS}.journal", "Journal")

# Name: class, method, and whether it is killed before or after the call.
POINTS = {
    "before the handler": (FLIGHT, "took_off", "before"),
    "in flight, before the handler": (FLIGHT, "took_off", "after"),
    "before the handler's outcome": (EXECUTOR, "run", "before"),
    "after the handler, in flight": (FLIGHT, "landed", "before"),
    "landed": (FLIGHT, "landed", "after"),
    "before the acknowledgement": (CHANNELS, "ack", "before"),
    "after the acknowledgement": (CHANNELS, "ack", "after"),
    "before the commit of a quarantine": (JOURNAL, "quarantine", "before"),
    "after the commit of a quarantine": (JOURNAL, "quarantine", "after"),
    "before the commit of a deferral": (JOURNAL, "defer", "before"),
    "after the commit of a deferral": (JOURNAL, "defer", "after"),
    "before a deferred message is forgotten": (JOURNAL, "remove", "before"),
    "after a deferred message is forgotten": (JOURNAL, "remove", "after"),
}


def arm(point: str, number: int, marker: Path) -> None:
    """Wrap the method at *point*."""
    (module, kind), name, when = POINTS[point]
    owner = getattr(importlib.import_module(module), kind)
    original = getattr(owner, name)
    left = number

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(*args, **options):
        if when == "before":
            reached()
        result = original(*args, **options)
        if when == "after":
            reached()
        return result

    async def wrapped_coroutine(*args, **options):
        if when == "before":
            reached()
        result = await original(*args, **options)
        if when == "after":
            reached()
        return result

    is_coroutine = inspect.iscoroutinefunction(original)
    setattr(owner, name, wrapped_coroutine if is_coroutine else wrapped)


def main() -> None:
    point, number, marker, *arguments = sys.argv[1:]
    sys.argv = ["fm-consumer", *arguments]
    from consumer_framework.cli import main as fm_consumer  # noqa: PLC0415
    from consumer_framework.host import reactor  # noqa: PLC0415

    install = reactor.install

    def install_and_arm() -> None:
        # What is wrapped imports the reactor, which must be installed by then.
        install()
        arm(point, int(number), Path(marker))

    reactor.install = install_and_arm
    fm_consumer()


if __name__ == "__main__":
    main()
