# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends the process once the instance is stopped.

Python waits for the threads and the child processes of the author's code, and runs the functions
registered with ``atexit``. :class:`ProcessExit` bounds that time, and tells people about the wait.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from consumer_framework.core.text import about

from .deadline import LEASE, RENEWAL

if TYPE_CHECKING:
    from consumer_framework.core.ports import Notifier

_log = logging.getLogger(__name__)

# Seconds that threads and child processes of the author's code may take at the most.
PATIENCE = 60.0
# Seconds for the functions of atexit, and for the rest of Python's own end.
GRACE = 10.0
# Seconds between two checks.
_LOOK = 0.1


class ProcessExit:
    """The end of the process.

    Args:
        exit_code: The exit code, whatever happens meanwhile.
        seconds: The time for threads and child processes.
        notifier: Extends the stop meanwhile.
    """

    def __init__(self, exit_code: int, seconds: float, notifier: Notifier) -> None:
        self._exit_code = exit_code
        self._seconds = seconds
        self._notifier = notifier

    def begin(self) -> None:
        """Watch Python's own end from a thread, and end the process if it takes too long."""
        # Python waits for threads that are no daemons.
        threading.Thread(target=self._watch, name="process-exit", daemon=True).start()

    def now(self) -> NoReturn:
        """End the process at once, after a flush of log and output."""
        if remaining := remains():
            _log.warning("the process ends although these run: %s", remaining)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            # A signal may have come in the middle of a write.
            with suppress(Exception):
                stream.flush()
        os._exit(self._exit_code)

    def _watch(self) -> None:
        end = time.monotonic() + self._seconds
        said, asked_at = "", float("-inf")
        while (left := end - time.monotonic()) > -GRACE:
            remaining = remains()
            if remaining and left <= 0:
                break
            if remaining and time.monotonic() - asked_at >= RENEWAL:
                asked_at = time.monotonic()
                self._notifier.extend(LEASE)
                self._notifier.status(f"Stopped: waiting for {remaining}")
            if remaining not in {"", said}:
                said = remaining
                how = f"{about(left)} at the most; a second signal ends it"
                _log.info("waiting for %s, %s", remaining, how)
            time.sleep(_LOOK)
        self.now()


def remains() -> str:
    """Return the names of the threads and child processes that Python waits for."""
    names = [f"thread {thread.name}" for thread in threading.enumerate() if _counts(thread)]
    # Only where the author's code has used it: importing it takes time.
    module = sys.modules.get("multiprocessing")
    children = module.active_children() if module is not None else ()
    names += [f"process {child.name} ({child.pid})" for child in children if not child.daemon]
    return ", ".join(names)


def _counts(thread: threading.Thread) -> bool:
    return not thread.daemon and thread is not threading.main_thread()
