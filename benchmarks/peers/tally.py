# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the handled messages of a process, and write the figures at the end.

Every handler of the benchmarks calls it. The harness sets these environment variables:

- BENCH_RESULT: the file for the complete figures.
- BENCH_COUNT: the number of messages.
- BENCH_SKIP: the number of messages before the clock starts.
- BENCH_LATENCY: "1" to measure the time from the stamp in the header to the handler.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STAMP = "bench_stamp"


class Tally:
    """Counts the messages that a process handled. Any thread may call it."""

    def __init__(self) -> None:
        self._result = Path(os.environ["BENCH_RESULT"])
        self._last = int(os.environ["BENCH_COUNT"])
        self._start = int(os.environ.get("BENCH_SKIP", "0")) + 1
        self._measures_latency = os.environ.get("BENCH_LATENCY") == "1"
        # Its next() is atomic under the GIL.
        self._counter = itertools.count(1)
        self._first_at = self._began_at = self._began_cpu = 0.0
        self._latencies: list[int] = []

    def handled(self, headers: Mapping[str, Any] | None = None) -> None:
        """Count one message; latency needs its *headers*."""
        number = next(self._counter)
        if self._measures_latency and headers:
            self._latencies.append(time.monotonic_ns() - headers[STAMP])
        if number == 1:
            self._first_at = time.monotonic()
        if number == self._start:
            self._began_at, self._began_cpu = time.monotonic(), time.process_time()
        if number >= self._last:
            self._write(number)

    def arrived(self, count: int) -> None:
        """Count several messages that came at once, for a reader without a handler."""
        for _ in range(count):
            self.handled()

    def _write(self, handled: int) -> None:
        """Write the figures; a message too many writes them again, so that the harness notices."""
        figures = {
            "handled": handled,
            "first_at": self._first_at,
            "seconds": time.monotonic() - self._began_at,
            "cpu_seconds": time.process_time() - self._began_cpu,
            "counted": self._last - self._start,
            "latencies_ns": self._latencies,
        }
        unfinished = self._result.with_suffix(".part")
        unfinished.write_text(json.dumps(figures))
        unfinished.rename(self._result)


TALLY = Tally()
