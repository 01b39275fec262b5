# SPDX-License-Identifier: GPL-2.0-or-later
"""The command behind `make bench-recovery`: `python -m benchmarks.recovery`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.testing.broker import Broker
from consumer_framework.testing.broker.proxy import Proxy

from .catalogue import BIN, ROOT, Task, configuration
from .ledger import HEADERS, RESTART_DELAY, Ledger, Queue, Sent, Service, account, look
from .measure import leave_nothing_behind
from .report import table

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = ROOT / "benchmarks" / "recovery.md"
SECONDS = 20.0
"""Seconds that each scenario lasts."""
CALLBACK = "benchmarks.peers.faulty:callback"
SETTINGS = 'recovery = { immediate = 1, delays = ["2s"] }'
"""Shorter delays than the default, so that a scenario includes the last attempt."""


@dataclass(frozen=True)
class Stage:
    """The parts that a disturbance may act upon."""

    service: Service
    proxy: Proxy


@dataclass(frozen=True)
class Scenario:
    """Messages, and a disturbance while they are handled.

    Attributes:
        title: Its heading.
        messages: The messages that are published before the start.
        disturb: Disturbs, and returns at the end of the scenario.
    """

    title: str
    messages: list[Sent]
    disturb: Callable[[Stage, float], None]


def quietly(stage: Stage, seconds: float) -> None:
    """Leave everything alone."""
    stage.service.run_for(seconds)


def cutting(stage: Stage, seconds: float) -> None:
    """Cut every connection three times."""
    for _ in range(3):
        stage.service.run_for(seconds / 5)
        stage.proxy.cut()
    stage.service.run_for(seconds * 2 / 5)


def killing(stage: Stage, seconds: float) -> None:
    """Kill the process five times, each time at another age."""
    end = time.monotonic() + seconds
    for number in range(5):
        stage.service.run_for(1.2 + 0.17 * number)
        stage.service.kill()
    stage.service.run_for(end - time.monotonic())


def mixture(
    count: int, every: int, good: dict[str, Any], bad: dict[str, Any] | bytes, **properties: Any
) -> list[Sent]:
    """Return *count* messages; each whose number *every* divides is *bad*."""
    return [
        Sent(str(n), bad, properties, poison=True)
        if n % every == every // 2
        else Sent(str(n), good, {}, poison=False)
        for n in range(count)
    ]


FINE = {"do": "nothing"}
NEVER = 10**9
INVALID_HEADERS = {**HEADERS, "fedora_messaging_severity": "high"}

SCENARIOS = {
    "nack": Scenario(
        "5 % of the messages always fail: `raise Nack`",
        mixture(1000, 20, FINE, {"do": "nack"}),
        quietly,
    ),
    "exception": Scenario(
        "1 % of the messages always fail: `raise ValueError`",
        mixture(1000, 100, FINE, {"do": "raise"}),
        quietly,
    ),
    "undecodable": Scenario(
        "1 % of the messages cannot be decoded: `content_encoding` is `gzip`",
        mixture(1000, 100, FINE, FINE, content_encoding="gzip"),
        quietly,
    ),
    "invalid": Scenario(
        "1 % of the messages do not fit the schema of the headers",
        mixture(1000, 100, FINE, FINE, headers=INVALID_HEADERS),
        quietly,
    ),
    "cut": Scenario(
        "The connection is cut three times, with a handler running",
        mixture(60, NEVER, {"do": "wait", "seconds": 0.2}, FINE),
        cutting,
    ),
    "kill": Scenario(
        "The process is killed (SIGKILL) five times, with a handler running",
        mixture(400, NEVER, {"do": "wait", "seconds": 0.02}, FINE),
        killing,
    ),
    "die": Scenario(
        "1 % of the messages kill the process, as one does that takes all the memory",
        mixture(300, 100, FINE, {"do": "die"}),
        quietly,
    ),
}


def ours(task: Task) -> list[str]:
    """Return the command of fm-consumer."""
    conf = configuration(task, CALLBACK, framework=SETTINGS, key=task.queue)
    return [str(BIN / "fm-consumer"), "run", "--conf", str(conf)]


def upstream(task: Task) -> list[str]:
    """Return the command of fedora-messaging."""
    conf = configuration(task, CALLBACK, key=task.queue)
    return [str(BIN / "fedora-messaging"), "--conf", str(conf), "consume"]


CONSUMERS = {"fm-consumer run": ours, "fedora-messaging consume": upstream}


def play(
    broker: Broker, scenario: Scenario, command: Callable[[Task], list[str]], seconds: float
) -> Ledger:
    """Run one consumer through one scenario."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        Proxy("127.0.0.1", broker.port) as proxy,
    ):
        queue = Queue(broker.url, "bench.recovery")
        queue.publish(scenario.messages)
        task = Task(proxy.url_for(broker.url), queue.name, 0, Path(directory))
        service = Service(command(task), task)
        try:
            begin = time.monotonic()
            scenario.disturb(Stage(service, proxy), seconds)
            alive = look(service, queue, scenario.messages, time.monotonic() - begin)
        finally:
            service.stop()
        return account(service, queue, scenario.messages, alive)


HEAD = [
    "consumer",
    "published",
    "handled",
    "again",
    "quarantined",
    "deferred",
    "dropped",
    "queued",
    "lost",
    "poison runs/s",
    "starts",
    "AMQP consumers",
    "consumes at the end",
]
INTRODUCTION = f"""# The cost of faults

Written by `make bench-recovery`.

One callback runs on one broker, under `fm-consumer run` and under `fedora-messaging consume`,
for {SECONDS:.0f} seconds in each scenario.
A process that ends is started again after {RESTART_DELAY:.0f} s (fedora-messaging's own unit
waits 60 s).
`fm-consumer` has `{SETTINGS}`, so that {SECONDS:.0f} seconds
include the last attempt; everything else has its default.

- *again*: successes of the handler beyond each message's first.
- *queued*: still in the queue; a message whose acknowledgement never arrived may be both handled
  and queued.
- *dropped*: rejected without requeue. Here a dead-letter queue catches them, to be counted.
  Fedora's queues have none, so that there they are gone.
- *poison runs/s*: runs of the handler per second for messages that can never succeed.
- *starts*: starts of the process.
- *AMQP consumers*: consumers of the one process on the queue at the end.
- *consumes at the end*: "yes" if 20 more messages, published at the end, were handled within 5 s.
"""


def row(name: str, ledger: Ledger) -> list[str]:
    """Return a line of a table."""
    counts = (
        ledger.published,
        ledger.handled,
        ledger.again,
        ledger.quarantined,
        ledger.deferred,
        ledger.dropped,
        ledger.queued,
        ledger.lost,
    )
    ending = [f"{ledger.poison_runs:.1f}", str(ledger.starts), str(ledger.consumers)]
    ending.append("yes" if ledger.consuming else "no")
    return [name, *map(str, counts), *ending]


def markdown(ledgers: dict[str, dict[str, Ledger]]) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for name, found in ledgers.items():
        parts.append(f"## {SCENARIOS[name].title}\n")
        parts.append(table(HEAD, [row(consumer, ledger) for consumer, ledger in found.items()]))
        parts.append("")
    return "\n".join(parts)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Play this one; may be given several times. Default: all.",
)
@click.option("--seconds", type=float, default=SECONDS, show_default=True, help="For each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
@click.option("--write", is_flag=True, help="Write benchmarks/recovery.md.")
def main(names: tuple[str, ...], seconds: float, as_json: bool, write: bool) -> None:  # noqa: FBT001
    """Count the fate of messages under faults, next to fedora-messaging consume.

    Takes some five minutes. Progress goes to standard error.
    """
    leave_nothing_behind()
    ledgers: dict[str, dict[str, Ledger]] = {}
    with Broker() as broker:
        for name in names or SCENARIOS:
            ledgers[name] = {}
            for consumer, command in CONSUMERS.items():
                ledger = play(broker, SCENARIOS[name], command, seconds)
                ledgers[name][consumer] = ledger
                print(f"{name}, {consumer}: {ledger}", file=sys.stderr, flush=True)
    if as_json:
        plain = {n: {c: ledger.as_dict() for c, ledger in f.items()} for n, f in ledgers.items()}
        print(json.dumps(plain, indent=1))
    else:
        print(markdown(ledgers))
    if write:
        PAGE.write_text(markdown(ledgers), encoding="utf-8")


if __name__ == "__main__":
    main()
