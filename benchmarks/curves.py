# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure fm-consumer as one quantity grows: backlog, slots, schemas, quarantine."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pika import BasicProperties

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.testing import make_delivery

from . import catalogue, messages, runs
from .catalogue import ROOT, Peer, framework
from .messages import BODY, Sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .measure import Figures

WARM_UP = 500
"""Messages before the clock starts: one-time work of a process is no part of a curve."""
WORK_MS = 10
"""Seconds that the handler of the curve of slots takes."""
PER_SLOT = 200
"""Messages for each slot: about two seconds."""
FAILING = int(os.environ.get("BENCH_FAILING_MESSAGES", "50000"))
"""Messages of each point of the curve of failing messages."""


@dataclass(frozen=True)
class Curve:
    """One quantity that grows.

    Attributes:
        title: The title of its plot.
        axis: The unit of x.
        points: The values of x.
        measure: Measures one point. Takes the broker's URL, samples, x, and the number of messages
            that takes about as long as a run of throughput.
    """

    title: str
    axis: str
    points: list[int]
    measure: Callable[[str, list[Sample], int, int], Figures]


def ours(name: str, callback: str = "framework:Handler", lines: str = "") -> Peer:
    """Return `fm-consumer run` with a class."""
    return Peer(name, name, framework(callback, lines=lines), ready="notify")


def backlog(url: str, samples: list[Sample], x: int, steady: int) -> Figures:
    """Handle messages from a queue that has *x* of them."""
    count = min(x, steady)
    load = runs.Load(count + WARM_UP, samples, WARM_UP, backlog=x - count)
    return runs.throughput(url, ours("backlog"), load)


def slots(url: str, samples: list[Sample], x: int, _steady: int) -> Figures:
    """Handle messages with *x* slots and a handler that waits."""
    load = runs.Load(PER_SLOT * x + 2 * x, samples, skip=2 * x)
    return runs.throughput(url, ours("slots", "framework:Slow", f"slots = {x}"), load)


def schemas(url: str, samples: list[Sample], x: int, steady: int) -> Figures:
    """Handle messages of *x* schemas in turn."""
    load = runs.Load(max(steady, 2 * x) + 2 * x, schema_samples(samples[0], x), skip=2 * x)
    return runs.throughput(url, ours("schemas"), load, lambda task: install_schemas(task, x))


def quarantine(url: str, samples: list[Sample], x: int, steady: int) -> Figures:
    """Handle messages while *x* are quarantined."""
    load = runs.Load(steady + WARM_UP, samples, WARM_UP)
    return runs.throughput(url, ours("quarantine"), load, lambda task: fill_store(task, x))


def failing(url: str, samples: list[Sample], x: int, _steady: int) -> Figures:
    """Handle messages of which *x* % always fail, by the default policy.

    A message counts at its first attempt: the curve shows the rate of the good messages.
    """
    load = runs.Load(FAILING + WARM_UP, samples, WARM_UP, fails=True)
    peer = ours("failing", "framework:Failing")
    return runs.throughput(url, peer, load, lambda _task: {"BENCH_FAILING": str(x)})


def due(url: str, samples: list[Sample], x: int, _steady: int) -> Figures:
    """Handle *x* deferred messages that are due at once."""
    load = runs.Load(x, samples, skip=x // 10, rows=x)
    return runs.throughput(url, ours("due"), load, lambda task: fill_store(task, x, due=True))


CURVES = {
    "failing": Curve(
        "Messages that always fail", "% of the messages", [0, 1, 10, 25, 50, 75, 100], failing
    ),
    "due": Curve("Deferred messages that are due", "rows", [10**3, 10**4, 10**5], due),
    "backlog": Curve(
        "Backlog of the queue", "messages in the queue", [10**n for n in range(3, 7)], backlog
    ),
    "slots": Curve(
        f"Slots, with a handler that waits {WORK_MS} ms", "slots", [1, 2, 4, 8, 16, 32, 64], slots
    ),
    "schemas": Curve("Message schemas in use", "schemas", [1, 10, 50, 100, 500], schemas),
    "quarantine": Curve(
        "Quarantined messages in the store", "rows", [0, 10**3, 10**4, 10**5, 10**6], quarantine
    ),
}


# Schemas


def schema_samples(base: Sample, count: int) -> list[Sample]:
    """Return one message of each generated schema."""
    return [_schema_sample(base, number) for number in range(count)]


def _schema_sample(base: Sample, number: int) -> Sample:
    name = f"bench.schema{number}"
    body = {"agent": "hazel", "number": number, "tags": ["a", "b"], "package": {"name": "pebble"}}
    room = BODY - len(json.dumps({**body, "notes": ""}))
    headers = {**base.headers, "fedora_messaging_schema": name}
    headers["fedora_messaging_schema_package"] = "bench_schemas"
    return Sample(f"org.fedoraproject.test.{name}", headers, {**body, "notes": "x" * room})


_MODULE = '''
"""Generated message schemas."""
from fedora_messaging.message import Message

def body_schema(number):
    return {{
        "id": f"http://fedoraproject.org/message-schema/bench{{number}}",
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {{
            "agent": {{"type": "string"}},
            "number": {{"type": "integer", "minimum": number}},
            "tags": {{"type": "array", "items": {{"type": "string"}}}},
            "package": {{
                "type": "object",
                "properties": {{"name": {{"type": "string"}}}},
                "required": ["name"],
            }},
            "notes": {{"type": "string"}},
        }},
        "required": ["agent", "number", "tags", "package"],
    }}

for number in range({count}):
    globals()[f"Schema{{number}}"] = type(
        f"Schema{{number}}", (Message,), {{"body_schema": body_schema(number)}}
    )
'''


def install_schemas(task: catalogue.Task, count: int) -> dict[str, str]:
    """Make a distribution of *count* schemas, and return the variable that lets Python find it."""
    library = task.directory / "library"
    metadata = library / "bench_schemas-1.dist-info"
    metadata.mkdir(parents=True)
    (library / "bench_schemas.py").write_text(_MODULE.format(count=count))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-schemas\nVersion: 1\n")
    entries = [f"bench.schema{n} = bench_schemas:Schema{n}\n" for n in range(count)]
    (metadata / "entry_points.txt").write_text("[fedora.messages]\n" + "".join(entries))
    return {"PYTHONPATH": f"{ROOT}:{library}"}


# Quarantined messages

_COLUMNS = (
    "queue, state, exchange, routing_key, redelivered, received_at, properties, body, due, reason, "
    "fingerprint, crashes, created, updated"
)
_MULTIPLY = f"""
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO messages (key, message_id, {_COLUMNS})
SELECT randomblob(32), 'row-' || n, {_COLUMNS} FROM numbers, messages WHERE messages.id = 1
"""


def fill_store(task: catalogue.Task, rows: int, *, due: bool = False) -> None:
    """Make a store with *rows* messages: copies of one that the store wrote.

    Args:
        task: The task whose directory gets the store.
        rows: The number of messages.
        due: True for deferred messages that are due; otherwise they are quarantined.
    """
    state = task.directory / "state"
    state.mkdir()
    if rows:
        asyncio.run(_put_one(state, task.queue, messages.samples()[0], due=due))
    if rows > 1:
        with closing(sqlite3.connect(state / "store.sqlite3")) as connection, connection:
            connection.execute(_MULTIPLY, (rows - 1,))


async def _put_one(state: Path, queue: str, sample: Sample, *, due: bool) -> None:
    store = Store.open(state, limits=Limits(max_bytes=2**30, max_age=None))
    properties = BasicProperties(
        message_id="row-1",
        content_type="application/json",
        content_encoding="utf-8",
        headers=sample.headers,
    )
    made = make_delivery(
        queue=queue, routing_key=sample.topic, body=json.dumps(sample.body).encode()
    )
    delivery = made._replace(properties=properties)
    if due:
        await store.defer(delivery, 0.0)
    else:
        await store.quarantine(delivery, "ValueError: the benchmark's")
    store.close()
