# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the cost of the flight recorder for a message: took off and landed.

    python benchmarks/flight.py [--json] [--runs N] [--messages N]

The file is in the directory that --directory names, or else in a temporary one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from uuid import UUID

from consumer_framework.adapters.flight import Flight
from consumer_framework.testing import make_delivery

BODY = bytes(range(250)) * 4
WITH_ID = make_delivery(message_id=str(UUID(int=2**127)), body=BODY)
CASES = {
    "with a message id": WITH_ID,
    "without an id, body of 1 kB": make_delivery(message_id=None, body=BODY),
}


def measure(recorder: Flight, case: str, messages: int) -> float:
    """Return the mean microseconds per message of one run."""
    delivery = CASES[case]
    start = time.perf_counter()
    for _ in range(messages):
        recorder.landed(recorder.took_off(delivery))
    return (time.perf_counter() - start) / messages * 1e6


def benchmark(directory: Path, runs: int, messages: int) -> dict[str, list[float]]:
    """Return the microseconds per message of each run, by case; the cases take turns."""
    recorder, _ = Flight.open(directory, 4)
    measured: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(runs):
        for case, values in measured.items():
            values.append(measure(recorder, case, messages))
    recorder.close()
    return measured


def main() -> None:
    """Print the results as a table, or as JSON."""
    parser = argparse.ArgumentParser(
        description="Measure the cost of the flight recorder for a message."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--messages", type=int, default=200_000, help="in each run")
    parser.add_argument("--directory", help="where to make a temporary directory for the file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        measured = benchmark(Path(directory), options.runs, options.messages)
    results = {
        case: {
            "median_us": round(statistics.median(values), 2),
            "runs_us": [round(value, 2) for value in values],
        }
        for case, values in measured.items()
    }
    if options.json:
        print(json.dumps({"messages_per_run": options.messages, "results": results}, indent=2))
        return
    print(
        f"µs per message, took off and landed; {options.runs} runs of {options.messages} messages"
    )
    for case, result in results.items():
        print(f"{case:<30} median {result['median_us']:.2f}   runs {result['runs_us']}")


if __name__ == "__main__":
    main()
