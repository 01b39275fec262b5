# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the author's code.

Plain functions run in threads and may block. Coroutine functions run on the event loop. Both take
the same path, which is one function, :meth:`.HandlerRuns._run`: tell the flight recorder, decode,
call, await the returned object where it is awaitable, judge it, record the outcome, tell the
flight recorder again. A handler of single messages and one of batches differ in the argument of
the call only.

The body of a run is a coroutine function, also for a plain handler. A thread drives it with
``send``. It waits at one place only, where the handler returned an awaitable; then the thread hands
the coroutine to the event loop, which drives it to its end as a task. A plain handler that returns
None never reaches that place, and its run ends in the thread.

A run goes through these objects::

    Executor.run ──▶ OpenBatch (batch handlers) ──▶ ThreadSlots or TaskSlots ──▶ HandlerRuns
        ▲                                                                            │
        └──────────────── outcome, one for each delivery ◀── Executor._ended ◀───────┘

=============== ==========================================================================
executor        :class:`Executor`, the :class:`.HandlerRunner` of an instance, and batching
slots           the number of runs at once, as threads or as tasks
run             one run, and the runs that have begun
deadlines       ``handler_timeout``
replacement     another handler takes over while messages are handled (a reload)
health_calls    the author's ``health()``, called now and then
=============== ==========================================================================

Two promises hold everything together. An outcome other than a plain success frees its slot only
after the caller has seen it, since the caller may stop or pause the instance. And each slot begins
its runs in the order in which the deliveries came.
"""

from .executor import Executor
from .run import Run, signal_of, threads_of_runs
from .slots import Limits

__all__ = ["Executor", "Limits", "Run", "signal_of", "threads_of_runs"]
