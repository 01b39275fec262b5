# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``fm-consumer`` and kill it once, at a chosen boundary of the delivery path.

Usage: ``killer.py PLAN ARGUMENT...``. The file PLAN has two lines, a point and a number N. When the
process reaches the point for the Nth time, it removes the file and gets SIGKILL. Without the file
nothing happens. The product knows nothing of this: the script wraps the methods at the boundaries.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_ADAPTERS = "consumer_framework.adapters"
FLIGHT = (f"{_ADAPTERS}.flight", "Flight")
EXECUTOR = (f"{_ADAPTERS}.executor", "Executor")
CHANNELS = (f"{_ADAPTERS}.amqp.channels", "Channels")
STORE = (f"{_ADAPTERS}.store", "Store")

# Name of the point: class, method, and the moment of the kill relative to the call.
POINTS = {
    "before the handler": (FLIGHT, "took_off", "before"),
    "in flight, before the handler": (FLIGHT, "took_off", "after"),
    "before the handler's outcome": (EXECUTOR, "run", "before"),
    "after the handler, in flight": (FLIGHT, "landed", "before"),
    "landed": (FLIGHT, "landed", "after"),
    "before the acknowledgement": (CHANNELS, "ack", "before"),
    "after the acknowledgement": (CHANNELS, "ack", "after"),
    "before the commit of a quarantine": (STORE, "quarantine", "before"),
    "during the commit of a quarantine": (STORE, "quarantine", "during"),
    "after the commit of a quarantine": (STORE, "quarantine", "after"),
    "before the commit of a deferral": (STORE, "defer", "before"),
    "during the commit of a deferral": (STORE, "defer", "during"),
    "after the commit of a deferral": (STORE, "defer", "after"),
    "before a deferred message is forgotten": (STORE, "remove", "before"),
    "after a deferred message is forgotten": (STORE, "remove", "after"),
}


def arm(plan: Path) -> None:
    """Wrap the method at the point that *plan* names."""
    point, number = plan.read_text().splitlines()
    (module, kind), name, when = POINTS[point]
    owner = getattr(importlib.import_module(module), kind)
    left = int(number)

    def die() -> None:
        plan.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0 and when == "during":
            # A commit takes about as long.
            threading.Timer(random.uniform(0.0, 0.005), die).start()  # noqa: S311 -- for tests
        elif left == 0:
            die()

    setattr(owner, name, wrapping(getattr(owner, name), reached, is_before=when != "after"))


def wrapping(original: Any, reached: Callable[[], None], *, is_before: bool) -> Any:
    """Return *original*, with a call of *reached* before or after it."""

    def wrapped(*args: Any, **options: Any) -> Any:
        if is_before:
            reached()
        result = original(*args, **options)
        if not is_before:
            reached()
        return result

    async def wrapped_coroutine(*args: Any, **options: Any) -> Any:
        if is_before:
            reached()
        result = await original(*args, **options)
        if not is_before:
            reached()
        return result

    return wrapped_coroutine if inspect.iscoroutinefunction(original) else wrapped


def main() -> None:
    plan, *arguments = sys.argv[1:]
    sys.argv = ["fm-consumer", *arguments]
    from consumer_framework.cli import main as fm_consumer  # noqa: PLC0415
    from consumer_framework.runtime import reactor  # noqa: PLC0415

    install = reactor.install

    def install_and_arm() -> None:
        # The wrapped modules import the reactor, which must be installed by then.
        install()
        if Path(plan).exists():
            arm(Path(plan))

    reactor.install = install_and_arm
    fm_consumer()


if __name__ == "__main__":
    main()
