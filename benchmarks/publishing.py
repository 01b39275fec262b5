# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the ways to publish side by side, in turns, and write the part of the report about them.

``python -m benchmarks.publishing --write`` takes some three minutes. `make bench` runs it too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from consumer_framework.testing.broker import Broker

from . import messages, queues, report, runs
from .catalogue import ROOT, Peer, framework
from .measure import BenchError, leave_nothing_behind

TURNS = 5
# Seconds that one run may take on a busy machine.
_TIMEOUT = 120
_QUEUE = "bench.published"


@dataclass(frozen=True)
class Way:
    """One way to publish.

    Attributes:
        name: Its name in :data:`benchmarks.publishers.PUBLISHERS`.
        label: Its name in tables.
        count: Messages of a run, which takes about a second.
        peer: The consumer whose handler publishes, if it is one.
    """

    name: str
    label: str
    count: int
    peer: Peer | None = None


def _handling(name: str, label: str, count: int, callback: str, lines: str = "") -> Way:
    label = f"`fm-consumer run`, {label}"
    peer = Peer(name, label, framework(f"framework:{callback}", lines=lines), ready="notify")
    return Way(name, label, count, peer)


WAYS = (
    Way("api", "`fedora_messaging.api.publish`", 500),
    Way("api-8", "`fedora_messaging.api.publish`, 8 threads", 700),
    Way("pika", "pika BlockingConnection, confirmed", 1500),
    Way("kombu", "kombu, confirmed", 1500),
    Way("aio-pika", "aio-pika, 200 at once", 4000),
    Way("pika-100", "pika, 100 unconfirmed", 6000),
    Way("pika-1000", "pika, 1,000 unconfirmed", 8000),
    Way("relay", "relay: outbox in SQLite to broker, window 100", 6000),
    Way("direct", "`publishing.sender().many()`, window 100", 6000),
    Way("sqlite", "`publish()` into SQLite, one commit each", 2500),
    Way("sqlite-100", "`publish()` into SQLite, 100 in a transaction", 8000),
    Way("claim", "claim and settle alone, 200 rows at a time", 20000),
    Way("handler", "`publish()` in a handler, up to its end", 20000),
    _handling("silent", "a handler that publishes nothing", 15000, "Handler"),
    _handling(
        "silent-direct",
        'the same with `publishing = "direct"`',
        15000,
        "Handler",
        'publishing = "direct"',
    ),
    _handling("publishing", "a handler that publishes a message each time", 5000, "Publishing"),
)


def run(way: Way, url: str, scale: float = 1.0) -> dict[str, float]:
    """Let *way* publish once, into a new queue or outbox, and return its figures.

    Raises:
        BenchError: It did not.
    """
    count = max(int(way.count * scale), 20)
    if way.peer is not None:
        figures = runs.throughput(url, way.peer, runs.Load(count, messages.samples()))
        cpu = figures.cpu_per_1000 * 1000
        return {"throughput": round(figures.throughput, 1), "cpu": round(cpu, 1)}
    command = [sys.executable, "-m", "benchmarks.publishers", way.name, url, str(count)]
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with queues.queue(url, _QUEUE):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    if done.returncode:
        raise BenchError(f"{way.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    measured = json.loads(done.stdout)
    return {
        "throughput": round(count / measured["seconds"], 1),
        "cpu": round(measured["cpu"] / count * 1e6, 1),
    }


def measure(url: str, ways: tuple[Way, ...], turns: int, scale: float = 1.0) -> dict[str, Any]:
    """Let *ways* take turns, and return all their figures."""
    found: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    begin = time.monotonic()
    for turn in range(turns):
        for way in ways:
            figures = run(way, url, scale)
            found[way.name].append(figures)
            text = f"turn {turn + 1} of {turns}, {way.name}: {figures['throughput']:,.0f}/s"
            print(f"{time.monotonic() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)
    return {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "quick": scale < 1,
        "ways": {way.name: {"label": way.label, "runs": found[way.name]} for way in ways},
    }


def named(names: tuple[str, ...]) -> tuple[Way, ...]:
    """Return the ways with *names*; all without any."""
    return tuple(way for way in WAYS if not names or way.name in names)


_MORE = """
\b
Examples:
  python -m benchmarks.publishing --quick
  python -m benchmarks.publishing --way sqlite --way api
  python -m benchmarks.publishing --write
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_MORE)
@click.option("--turns", type=click.IntRange(1), default=TURNS, show_default=True)
@click.option(
    "--way",
    "names",
    multiple=True,
    type=click.Choice([way.name for way in WAYS]),
    help="Measure this way; may be given several times.",
)
@click.option("--quick", is_flag=True, help="One short turn, to try the harness.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
@click.option(
    "--write",
    is_flag=True,
    help="Put the results into benchmarks/results.json and docs/explanation/performance.md.",
)
@click.option("--url", help="Use this broker, with amq.topic for oneself, not a private one.")
def main(  # noqa: PLR0913, PLR0917 -- one for each option
    turns: int,
    names: tuple[str, ...],
    quick: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    write: bool,  # noqa: FBT001
    url: str | None,
) -> None:
    """Compare ways to publish on one private broker. Progress goes to standard error.

    Figures mean something on a machine that does nothing else.
    """
    if write and (names or quick):
        raise click.UsageError("--write is for a whole measurement")
    leave_nothing_behind()
    turns, scale = (1, 0.02) if quick else (turns, 1.0)
    try:
        if url:
            found = measure(url, named(names), turns, scale)
        else:
            with Broker(config=queues.BROKER_CONFIG) as broker:
                found = measure(broker.url, named(names), turns, scale)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    print(json.dumps(found, indent=1) if as_json else report.publishing({"publishing": found}))
    if write:
        report.publish({**report.read(), "publishing": found}, with_plots=False)


if __name__ == "__main__":
    main()
