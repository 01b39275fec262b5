# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the instance's sockets from processes that a handler forks.

A forked process, as ``multiprocessing`` starts it by default before Python 3.14, has every socket
of its parent. Where it outlives a parent that is killed, the broker would see a consumer that is
alive, and would deliver messages to it, until heartbeats have been missing for minutes.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any


def keep_sockets(reactor: Any) -> None:
    """Have every process that is forked from now on let go of the sockets of *reactor*.

    Only forks of Python's own are seen (:func:`os.register_at_fork`); nothing is inherited by
    programs that are started (``subprocess``).
    """
    os.register_at_fork(after_in_child=lambda: let_go(reactor))


def let_go(reactor: Any) -> None:
    """Put ``/dev/null`` in the place of each socket of *reactor*: their numbers stay in use."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for one in {*reactor.getReaders(), *reactor.getWriters()}:
        # One that is closed has the number -1.
        with contextlib.suppress(OSError):
            os.dup2(null, one.fileno(), inheritable=False)
    os.close(null)
