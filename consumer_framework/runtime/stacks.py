# SPDX-License-Identifier: GPL-2.0-or-later
"""The functions that the threads, the tasks and the runs of the handler are in.

Only names of functions and files are told, and no values: those may be secrets.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

from consumer_framework.adapters.executor import threads_of_runs
from consumer_framework.core.attempt import is_own
from consumer_framework.core.log_fields import run_number

from .control.schema import MessageInFlight, Stack, StackFrame, StacksReport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from consumer_framework.adapters.executor import Executor, Run

# Functions of one stack; deeper ones are of a recursion.
_DEEPEST = 200


def stacks_of_process(loop: asyncio.AbstractEventLoop | None = None) -> StacksReport:
    """Return the stacks of all threads, and of the tasks of *loop*."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = [
        Stack(names.get(number) or f"thread {number}", _frames(frame))
        for number, frame in sys._current_frames().items()  # noqa: SLF001 -- its only name
    ]
    tasks = [_of_task(task) for task in asyncio.all_tasks(loop)] if loop is not None else []
    return StacksReport(_sorted(threads), _sorted(tasks))


def messages_in_flight(executor: Executor, now: float) -> tuple[MessageInFlight, ...]:
    """Return the messages that the handler has, the longest first.

    Args:
        executor: Runs the handler.
        now: Seconds of the event loop's clock.
    """
    threads, frames = threads_of_runs(), sys._current_frames()  # noqa: SLF001 -- its only name
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for run in executor.runs:
        thread = threads.get(run)
        place = _place(frames.get(thread or 0)) or _place_in_task(run)
        found += [
            MessageInFlight(
                delivery.message_id,
                delivery.routing_key,
                delivery.queue,
                delivery.route,
                delivery.row,
                run_number(delivery),
                round(max(now - run.started_at, 0.0), 3),
                names.get(thread, ""),
                place,
            )
            for delivery in run.deliveries
        ]
    return tuple(found)


def _sorted(stacks: list[Stack]) -> tuple[Stack, ...]:
    return tuple(sorted(stacks, key=lambda stack: stack.name))


def _of_task(task: asyncio.Task[object]) -> Stack:
    coroutine = task.get_coro()
    name = f"{task.get_name()} {getattr(coroutine, '__qualname__', '')}".rstrip()
    return Stack(name, tuple(map(_of_frame, task.get_stack(limit=_DEEPEST))))


def _frames(frame: FrameType | None) -> tuple[StackFrame, ...]:
    found = [_of_frame(each) for each, _ in zip(_outwards(frame), range(_DEEPEST), strict=False)]
    return tuple(reversed(found))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _of_frame(frame: FrameType) -> StackFrame:
    code = frame.f_code
    return StackFrame(code.co_qualname, code.co_filename, frame.f_lineno)


def _place(frame: FrameType | None) -> str:
    """Return the innermost function of the author's in *frame* and its callers; "" for none."""
    for each in _outwards(frame):
        code = each.f_code
        if is_own(code.co_filename, str(each.f_globals.get("__name__", ""))):
            return f"{code.co_qualname} ({code.co_filename}, line {each.f_lineno})"
    return ""


def _place_in_task(run: Run) -> str:
    """Return the same for a run that is a task: its coroutines wait for each other."""
    waiting = getattr(run.task, "get_coro", lambda: None)()
    place = ""
    for _ in range(_DEEPEST):
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is None:
            break
        code = frame.f_code
        if is_own(code.co_filename, str(frame.f_globals.get("__name__", ""))):
            place = f"{code.co_qualname} ({code.co_filename}, line {frame.f_lineno})"
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return place
