# SPDX-License-Identifier: GPL-2.0-or-later
"""Chaos: two instances work while processes are killed, the network fails and the broker restarts.

A publisher sends messages all the time, so that a kill hits a working handler. The ledger at the
end lists in plain English the disturbances and the fate of the messages.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions

from .instance import FM_CONSUMER, HEADERS, queue_table
from .killer import POINTS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from consumer_framework.testing.broker import Broker
    from consumer_framework.testing.broker.proxy import Proxy

    from .instance import Instance

KILLER = Path(__file__).with_name("killer.py")
KEYS = 8
# Messages that wait in each queue, so that the handlers always have work.
BACKLOG = 60
# The exit code of a start while another process has the state directory (EX_TEMPFAIL).
LATER = 75

FRAMEWORK = """
[consumer_config.framework]
slots = 4
{ordering}
[consumer_config.framework.recovery]
immediate = 0
delays = ["1s"]
hold_slots = 2
crash_attempts = 1000
breaker = {{ consecutive = 5, probe = ["1s"] }}
"""
BY_KEY = 'ordering = "key"\nordering_key = "body:key"'

# The number of a message decides its fate. Every twentieth is poison: for good, or until the file
# `mended` exists. Others are dropped, retried once or deferred once (neither while the file `calm`
# exists), or handled at once.
HANDLER = r"""
from consumer_framework import Defer, DependencyFault, Drop, Retry
from consumer_framework.author.heartbeat import deliveries

PID = os.getpid()
MARKS = os.environ["NOTES"]

def seen_before(message):
    # Over kills as well, or a second death would make the retry the last one.
    with open(MARKS + ".seen", "a+") as seen:
        seen.seek(0)
        if f"{message.id}\n" in seen.readlines():
            return True
        seen.write(f"{message.id}\n")
        return False

def outcome(message):
    kind = message.body["n"] % 20
    if os.path.exists(MARKS + ".outage"):
        raise DependencyFault("the database is gone")
    if kind == 3 and (message.body["for_good"] or not os.path.exists(MARKS + ".mended")):
        raise ValueError("poison")
    if kind == 5:
        raise Drop("unwanted")
    if kind in (7, 8) and not os.path.exists(MARKS + ".calm") and not seen_before(message):
        if kind == 7:
            raise Retry("once more")
        raise Defer(time.time() + 1)

def handler(message):
    row = deliveries()[0].row
    note("began", message, pid=PID)
    time.sleep(0.002 * (1 + message.body["n"] % 5))
    try:
        outcome(message)
    except Drop:
        note("dropped", message, pid=PID)
        raise
    except BaseException:
        note("failed", message, pid=PID)
        raise
    note("handled", message, pid=PID, row=row)
"""


@dataclass
class Worker:
    """An instance, its queue, and the messages published to it.

    Attributes:
        published: Ordering key by id, of each message whose publication was confirmed.
        unsure: Ids of messages that were published and never confirmed.
        found: By process id, the rows of the store that the process found there.
    """

    name: str
    queue: str
    instance: Instance
    plan: Path
    is_ordered: bool
    published: dict[str, str] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    next_number: int = 0
    killed: list[tuple[int, str]] = field(default_factory=list)
    found: dict[int, set[int]] = field(default_factory=dict)

    def start(self) -> None:
        """Start its process again."""
        found = {row.id for row in self.instance.store()}
        self.instance.start()
        self.found[self.process.pid] = found

    @property
    def process(self) -> subprocess.Popen[bytes]:
        process = self.instance._process
        assert process is not None
        return process

    def mark(self, name: str) -> Path:
        return self.instance.configuration.with_name(f"notes.{name}")

    def next_message(self) -> dict[str, Any]:
        n = self.next_number
        self.next_number += 1
        for_good = not self.is_ordered and n % 40 == 3
        return {"n": n, "key": f"key {n % KEYS}", "for_good": for_good}

    def replay(self) -> subprocess.Popen[bytes]:
        """Replay all quarantined messages, as an operator does."""
        directory = self.instance.configuration.parent
        command = [str(FM_CONSUMER), "quarantine", "replay", "--all"]
        command += ["--conf", str(self.instance.configuration)]
        environment = {
            **os.environ,
            "NOTES": str(directory / "notes"),
            "PYTHONPATH": str(directory),
            "STATE_DIRECTORY": str(self.instance.state),
            "RUNTIME_DIRECTORY": str(directory),
        }
        with (directory / "replay.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


class Publisher:
    """Keeps some messages waiting in each queue, through restarts of the broker."""

    def __init__(self, url: str, workers: Iterable[Worker]) -> None:
        self._url = url
        self._workers = list(workers)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            with (
                suppress(pika.exceptions.AMQPError),
                pika.BlockingConnection(pika.URLParameters(self._url)) as connection,
            ):
                channel = connection.channel()
                channel.confirm_delivery()
                while not self._over.wait(0.05):
                    for worker in self._workers:
                        self._fill(channel, worker)
            self._over.wait(0.2)

    def _fill(self, channel: Any, worker: Worker) -> None:
        waiting = channel.queue_declare(worker.queue, passive=True).method.message_count
        for _ in range(BACKLOG - waiting):
            body = worker.next_message()
            name = f"{worker.name}-{body['n']}"
            worker.unsure.add(name)
            channel.basic_publish(
                "amq.topic",
                worker.queue,
                json.dumps(body).encode(),
                pika.BasicProperties(
                    message_id=name,
                    content_type="application/json",
                    content_encoding="utf-8",
                    delivery_mode=2,
                    headers=HEADERS,
                ),
                mandatory=True,
            )
            worker.unsure.discard(name)
            worker.published[name] = body["key"]


class Chaos:
    """Disturbs the workers, one step after the other.

    Args:
        proxy: The proxy between the workers and *broker*.
        luck: Chooses the next step.
    """

    def __init__(
        self, broker: Broker, proxy: Proxy, workers: list[Worker], luck: random.Random
    ) -> None:
        self._broker = broker
        self._proxy = proxy
        self._workers = workers
        self._luck = luck
        self._replays: list[subprocess.Popen[bytes]] = []
        self.done: Counter[str] = Counter()

    def run(self, seconds: float, kills: int) -> None:
        """Disturb for so many seconds, and until so many processes were killed."""
        begun = time.monotonic()
        restart_after = seconds / 3
        while (elapsed := time.monotonic() - begun) < seconds or self._kills < kills:
            if elapsed > restart_after:
                restart_after += max(seconds / 3, 90)
                self._restart_broker()
            worker = self._luck.choice(self._workers)
            self._luck.choice(
                [
                    self._wait,
                    self._wait,
                    self._cut,
                    self._half_open,
                    self._outage,
                    self._reload,
                    self._replay,
                ]
            )(worker)
            self._kill(worker)
        self._end_replays()

    @property
    def _kills(self) -> int:
        return sum(len(worker.killed) for worker in self._workers)

    def settle(self, seconds: float) -> None:
        """Wait until no message is on its way and every mended message was replayed.

        Raises:
            AssertionError: The wait took too long.
        """
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.plan.unlink(missing_ok=True)
            worker.mark("mended").touch()
            worker.mark("calm").touch()
            worker.mark("outage").unlink(missing_ok=True)
        left = list(self._workers)
        while left := [worker for worker in left if not self._is_settled(worker)]:
            assert time.monotonic() < deadline, self._why_not()
            time.sleep(0.5)

    def _is_settled(self, worker: Worker) -> bool:
        self._revive(worker)
        states = Counter(row.state for row in worker.instance.store())
        if self._broker.depth(worker.queue)[0] or states["deferred"]:
            return False
        ends = {n["id"] for n in worker.instance.notes() if n["event"] in ("handled", "dropped")}
        rows = {row.message_id for row in worker.instance.store()}
        if worker.published.keys() - ends - rows:
            return False
        if any(not is_for_good(worker, row) for row in rows):
            if worker.instance.told("READY=1"):
                worker.replay().wait()
            return False
        return True

    def _why_not(self) -> str:
        lines = []
        for worker in self._workers:
            states = Counter(row.state for row in worker.instance.store())
            lines.append(
                f"{worker.name}: {self._broker.depth(worker.queue)[0]} on the queue, "
                f"{dict(states)} in the store; {worker.instance.notifications[-3:]}; "
                f"its log:\n{worker.instance.log[-3000:]}"
            )
        return "not settled\n" + "\n".join(lines)

    def _wait(self, _worker: Worker) -> None:
        time.sleep(self._luck.uniform(0.0, 0.8))

    def _cut(self, _worker: Worker) -> None:
        self.done["the network was cut"] += 1
        self._proxy.cut(reset=self._luck.random() < 0.5)
        time.sleep(self._luck.uniform(0.0, 1.0))

    def _half_open(self, _worker: Worker) -> None:
        self.done["the network went dead and was cut then"] += 1
        self._proxy.stall()
        time.sleep(self._luck.uniform(0.2, 1.0))
        self._proxy.cut()
        self._proxy.resume()
        time.sleep(self._luck.uniform(0.0, 1.5))

    def _restart_broker(self) -> None:
        self.done["the broker was restarted"] += 1
        # RabbitMQ 3 writes new declarations to the disk with a delay.
        self._broker.ctl("eval", "mnesia:sync_log().")
        self._broker.restart()

    def _outage(self, worker: Worker) -> None:
        self.done["a dependency was gone"] += 1
        worker.mark("outage").touch()
        time.sleep(self._luck.uniform(0.2, 1.0))
        if self._luck.random() < 0.3:
            self._reload(worker)
        worker.mark("outage").unlink()
        time.sleep(self._luck.uniform(0.0, 1.5))

    def _reload(self, worker: Worker) -> None:
        if not worker.instance.told("READY=1") or worker.process.poll() is not None:
            return
        self.done["the configuration was reloaded"] += 1
        file = worker.instance.configuration
        text = file.read_text()
        slots = self._luck.randint(1, 6)
        file.write_text(
            "".join(
                f"slots = {slots}\n" if line.startswith("slots = ") else line
                for line in text.splitlines(keepends=True)
            )
        )
        worker.instance.send(signal.SIGHUP)
        time.sleep(self._luck.uniform(0.0, 1.0))

    def _replay(self, worker: Worker) -> None:
        self._end_replays()
        if self._luck.random() < 0.5:
            worker.mark("mended").touch()
        else:
            worker.mark("mended").unlink(missing_ok=True)
        self.done["a replay of all began"] += 1
        self._replays.append(worker.replay())
        time.sleep(self._luck.uniform(0.5, 2.0))
        if self._luck.random() < 0.3:
            self.done["a replay got Ctrl-C"] += 1
            self._replays[-1].send_signal(signal.SIGINT)

    def _end_replays(self) -> None:
        for replay in self._replays:
            replay.wait(120)
        self._replays.clear()

    def _kill(self, worker: Worker) -> None:
        """Kill it, or wait until it dies at the planned boundary; start it again."""
        if worker.plan.exists() or worker.process.poll() is not None:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(1.5)
        how = "at a random moment"
        if worker.process.poll() is None:
            worker.instance.send(signal.SIGKILL)
            worker.process.wait()
        if not worker.plan.exists() and (name := worker.mark("point")).exists():
            how = name.read_text()
        if self._revive(worker, how):
            time.sleep(self._luck.uniform(0.2, 0.6))

    def _revive(self, worker: Worker, how: str = "at a random moment") -> bool:
        """Start *worker* again if it is dead; return True if it was.

        Raises:
            AssertionError: It ended by itself with an unexpected exit code.
        """
        code = worker.process.poll()
        if code is None:
            return False
        if code == LATER:
            self.done["a start found its state directory in use and was tried again"] += 1
        else:
            assert code == -signal.SIGKILL, f"exit code {code}\n{worker.instance.log[-3000:]}"
            worker.killed.append((worker.process.pid, how))
        worker.plan.unlink(missing_ok=True)
        worker.mark("point").unlink(missing_ok=True)
        if self._luck.random() < 0.5:
            point = self._luck.choice(list(POINTS))
            worker.mark("point").write_text(point)
            worker.plan.write_text(f"{point}\n{self._luck.randint(1, 12)}")
        worker.start()
        if self._luck.random() < 0.8:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and worker.process.poll() is None:
                if worker.instance.told("READY=1"):
                    break
                time.sleep(0.02)
        return True


def is_for_good(worker: Worker, name: str) -> bool:
    """Return True if the message is poison for good."""
    return not worker.is_ordered and int(name.rpartition("-")[2]) % 40 == 3


@dataclass
class Ledger:
    """The fate of the messages of one worker.

    Attributes:
        kills: Kills by the moment of the kill.
        in_handler: Kills that hit a running handler.
        wrong: Each breach of the promise, as a sentence.
        again_from_store: Times that a process ran a message from its store, and then once more.
    """

    worker: Worker
    queued: set[str]
    wrong: list[str] = field(default_factory=list)
    again_from_store: int = 0

    def __post_init__(self) -> None:
        instance = self.worker.instance
        notes = instance.notes()
        by_event: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for note in notes:
            by_event[note["event"]].append(note)
        rows = instance.store()
        self.handled = Counter(note["id"] for note in by_event["handled"])
        self.dropped = {note["id"] for note in by_event["dropped"]}
        self.quarantined = {row.message_id for row in rows if row.state == "quarantined"}
        self.deferred = {row.message_id for row in rows if row.state == "deferred"}
        self.runs = Counter(note["id"] for note in by_event["began"])
        self.kills = Counter(how for _, how in self.worker.killed)
        self.in_handler = self._kills_in_handlers(notes)
        self._check_places()
        self._check_processes(notes)
        self._check_attempts()
        if self.worker.is_ordered:
            self._check_order(notes)

    def _kills_in_handlers(self, notes: list[dict[str, Any]]) -> int:
        running: Counter[int] = Counter()
        for note in notes:
            running[note["pid"]] += 1 if note["event"] == "began" else -1
        return sum(running[pid] > 0 for pid, _ in self.worker.killed)

    def _check_places(self) -> None:
        published = set(self.worker.published)
        places = {
            "handled": set(self.handled),
            "dropped": self.dropped,
            "quarantined": self.quarantined,
            "deferred": self.deferred,
            "on the queue": self.queued,
        }
        known = set().union(*places.values())
        if lost := published - known:
            self.wrong.append(f"{len(lost)} messages are lost: {sorted(lost)[:10]}")
        if strange := known - published - self.worker.unsure:
            self.wrong.append(f"messages from nowhere: {sorted(strange)[:10]}")
        names = list(places)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                if both := places[one] & places[other]:
                    self.wrong.append(f"both {one} and {other}: {sorted(both)[:10]}")

    def _check_processes(self, notes: list[dict[str, Any]]) -> None:
        """Check that no process handles a message twice, except one that it found in the store.

        A former process committed that message and died before the broker heard of it: after the
        message failed, or because it stands behind another one of its key. If the message has run
        from the store before the broker delivers it again, no row is left that shows it.
        """
        rows: dict[tuple[int, str], int] = {}
        for note in notes:
            if note["event"] != "handled":
                continue
            pid, name = note["pid"], note["id"]
            if (pid, name) not in rows:
                rows[pid, name] = note["row"]
            elif rows[pid, name] in self.worker.found.get(pid, ()):
                self.again_from_store += 1
            else:
                self.wrong.append(f"process {pid} handled {name} twice")

    def _check_attempts(self) -> None:
        disturbed = len(self.worker.killed)
        if often := [name for name, runs in self.runs.items() if runs > 50 + disturbed]:
            self.wrong.append(f"run too often: {often[:10]}")

    def _check_order(self, notes: list[dict[str, Any]]) -> None:
        """Check each key: no overlap, and first successes in the order of publication."""
        running: dict[tuple[int, str], str] = {}
        last: dict[str, int] = {}
        done: set[str] = set()
        for note in notes:
            n, key = note["body"]["n"], note["body"]["key"]
            place = note["pid"], key
            if note["event"] == "began":
                if other := running.get(place):
                    self.wrong.append(f"{note['id']} began while {other} of its key was running")
                running[place] = note["id"]
                continue
            running.pop(place, None)
            if note["event"] in ("handled", "dropped") and note["id"] not in done:
                done.add(note["id"])
                if n < last.get(key, -1):
                    self.wrong.append(f"{note['id']} was handled after {last[key]} of its key")
                last[key] = max(n, last.get(key, -1))

    def __str__(self) -> str:
        worker = self.worker
        repeated = sum(count > 1 for count in self.handled.values())
        order = "in the order of their keys" if worker.is_ordered else "in no order"
        killed = "; ".join(f"{count} {how}" for how, count in self.kills.most_common())
        return (
            f"The instance {worker.name!r} takes messages {order}. "
            f"{len(worker.published)} messages were published to it and confirmed"
            f" ({len(worker.unsure)} more were published and not confirmed).\n"
            f"  Its process was killed {sum(self.kills.values())} times;"
            f" {self.in_handler} kills hit a running handler. ({killed}.)\n"
            f"  {len(self.handled)} messages were handled, {repeated} of them more than once,"
            f" {self.again_from_store} of these from the store and then from the queue;"
            f" {len(self.dropped)} were dropped by order; {len(self.quarantined)} are quarantined;"
            f" {len(self.deferred)} are deferred; {len(self.queued)} are still on the queue.\n"
            f"  No message ran more than {max(self.runs.values(), default=0)} times.\n"
            + "".join(f"  WRONG: {sentence}\n" for sentence in self.wrong)
        )


def make_worker(
    start: Callable[..., Any], url: str, queue: str, directory: Path, *, is_ordered: bool
) -> Worker:
    """Start an instance that a plan kills; ``killer.py`` describes the plan file."""
    name = "by key" if is_ordered else "unordered"
    plan = directory / f"plan of {name}"
    instance = start(
        url,
        queue_table(queue),
        HANDLER,
        extra=FRAMEWORK.format(ordering=BY_KEY if is_ordered else ""),
        prefix=[sys.executable, str(KILLER), str(plan)],
    ).ready()
    return Worker(name, queue, instance, plan, is_ordered)
