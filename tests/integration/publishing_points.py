# SPDX-License-Identifier: GPL-2.0-or-later
"""The boundaries on the way of a published message at which a process can be made to die.

The product knows nothing of this: :func:`arm` wraps the methods at the boundaries.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import threading

from .killer import wrapping

_CLAIMS = ("consumer_framework.publishing.claims", "Claims")
_OUTBOX = ("consumer_framework.publishing.outbox", "Outbox")
_DIALECT = ("sqlalchemy.engine.default", "DefaultDialect")
_STORE = ("consumer_framework.publishing.store", "OutboxStore")
_FAILOVER = ("consumer_framework.publishing.messengers.failover", "Failover")

# Name of the point: class, method, and the moment of the death relative to the call.
OF_WEB = {
    "before the insert": (_OUTBOX, "publish", "before"),
    "before the commit": (_DIALECT, "do_commit", "before"),
    "during the commit": (_DIALECT, "do_commit", "during"),
    "after the commit": (_DIALECT, "do_commit", "after"),
}
OF_SCRIPT = {
    "before the insert": (_STORE, "put", "before"),
    "during the commit": (_STORE, "put", "during"),
    "after the commit": (_STORE, "put", "after"),
}
OF_RELAY = {
    "before the claim": (_CLAIMS, "claim", "before"),
    "during the claim": (_CLAIMS, "claim", "during"),
    "after the claim": (_FAILOVER, "send_many", "before"),
    "amid the batch": (_FAILOVER, "send_many", "during"),
    "after the confirmations": (_FAILOVER, "send_many", "after"),
    "during the settlement": (_CLAIMS, "settle", "during"),
    "after the settlement": (_CLAIMS, "settle", "after"),
}
POINTS = {"web": OF_WEB, "script": OF_SCRIPT, "relay": OF_RELAY}


def arm(role: str, point: str, number: int, signal_: int = signal.SIGKILL) -> None:
    """Let this process get a signal when it reaches *point* for the *number*-th time."""
    (module, kind), name, when = POINTS[role][point]
    owner = getattr(importlib.import_module(module), kind)
    left, lock = number, threading.Lock()

    def die() -> None:
        os.kill(os.getpid(), signal_)

    def reached() -> None:
        nonlocal left
        with lock:
            left -= 1
            is_now = left == 0
        if is_now and when == "during":
            # A call takes about as long.
            threading.Timer(random.uniform(0.0, 0.01), die).start()  # noqa: S311 -- for tests
        elif is_now:
            die()

    setattr(owner, name, wrapping(getattr(owner, name), reached, is_before=when != "after"))
