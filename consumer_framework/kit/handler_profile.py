# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures where a handler spends its time, by the deterministic profiler of Python."""

from __future__ import annotations

import cProfile
import functools
import pstats
import threading
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer_framework.author.handler import is_coroutine_callable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from consumer_framework.author.handler import Handler
    from consumer_framework.runtime.assembly.plan import Plan


@dataclass(frozen=True, slots=True)
class Measured:
    """One function of a profile.

    Attributes:
        name: The function, with the end of its file's path and its line.
        calls: How often it was called.
        own: Seconds in the function itself.
        total: Seconds in it, and in all that it called.
    """

    name: str
    calls: int
    own: float
    total: float


class HandlerProfile:
    """Profiles the calls of a handler, and nothing around them.

    Plain handlers run one at a time meanwhile, whatever ``slots`` says: the profiler of a process
    cannot tell its threads apart. Coroutines are measured while they run, not while they wait.
    """

    def __init__(self) -> None:
        self._profile = cProfile.Profile()
        self._lock = threading.Lock()

    def applied_to(self, plan: Plan) -> Plan:
        """Return *plan* with a handler that is measured."""
        return replace(plan, factory=lambda: self._measured(plan.factory()))

    def save(self, file: Path) -> None:
        """Write the profile for :mod:`pstats` and its viewers.

        Raises:
            OSError: The file cannot be written.
        """
        self._profile.dump_stats(file)

    def top(self, count: int) -> list[Measured]:
        """Return the *count* functions with the most seconds in all, the first the slowest."""
        self._profile.create_stats()
        # Without a call there are no statistics, and pstats refuses them.
        if not self._profile.getstats():
            return []
        stats: Any = pstats.Stats(self._profile)
        found = [
            Measured(_name(*key), calls, own, total)
            for key, (_, calls, own, total, _callers) in stats.stats.items()
            if key[0] not in {__file__, cProfile.__file__} and "_lsprof" not in key[2]
        ]
        return sorted(found, key=lambda each: each.total, reverse=True)[:count]

    def _measured(self, handler: Handler) -> Handler:
        batch = handler.call_batch
        return replace(
            handler,
            call=self._wrapped(handler.call),
            call_batch=None if batch is None else self._wrapped(batch),
        )

    def _wrapped(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if is_coroutine_callable(call):

            @functools.wraps(call, assigned=(), updated=())
            async def steps(argument: Any) -> Any:
                return await self._steps(call(argument))

            return steps

        @functools.wraps(call, assigned=(), updated=())
        def measured(argument: Any) -> Any:
            with self._lock, self._profile:
                return call(argument)

        return measured

    @types.coroutine
    def _steps(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Drive *coroutine*, and measure each of its steps."""
        step: Callable[[], Any] = functools.partial(coroutine.send, None)
        while True:
            try:
                with self._lock, self._profile:
                    awaited = step()
            except StopIteration as stop:
                return stop.value
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 -- thrown into the coroutine
                step = functools.partial(coroutine.throw, error)
            else:
                step = functools.partial(coroutine.send, sent)


def _name(file: str, line: int, function: str) -> str:
    if file == "~":
        return function
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {function}"
