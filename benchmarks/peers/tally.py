# SPDX-License-Identifier: GPL-2.0-or-later
"""What every handler of the benchmarks calls: counts, and in the end writes the figures.

The harness says by environment variables what it expects:

- BENCH_RESULT: the file that the figures go to, when they are complete.
- BENCH_COUNT: how many messages there are.
- BENCH_SKIP: how many of them are handled before the clock starts.
- BENCH_LATENCY: "1" if the time from the stamp in the header to the handler is wanted.
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
    """Counts the messages that a process handled. May be called by any thread."""

    def __init__(self) -> None:
        self._result = Path(os.environ["BENCH_RESULT"])
        self._last = int(os.environ["BENCH_COUNT"])
        self._start = int(os.environ.get("BENCH_SKIP", "0")) + 1
        self._measures_latency = os.environ.get("BENCH_LATENCY") == "1"
        # next() of it is atomic under the GIL.
        self._counter = itertools.count(1)
        self._first_at = self._began_at = self._began_cpu = 0.0
        self._latencies: list[int] = []

    def handled(self, headers: Mapping[str, Any] | None = None) -> None:
        """Count one message, with its *headers* where latency is measured."""
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
        """Count several messages that came at once; for the reader that does not handle them."""
        for _ in range(count):
            self.handled()

    def _write(self, handled: int) -> None:
        """Write the figures; once more if there is a message too many, which the harness sees."""
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
