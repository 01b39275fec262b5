# SPDX-License-Identifier: GPL-2.0-or-later
"""Chaos for publishing: producers and relays are killed, while broker, database and disk fail.

A seed gives the plan of the disturbances; the ledger at the end lists them, and the fate of the
messages, in plain English.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pika
import sqlalchemy as sa

from consumer_framework.publishing.store import OutboxStore

from .instance import until
from .publishing_consumer import Consumer
from .publishing_points import POINTS
from .publishing_programs import (
    LEASE,
    WEB_KEYS,
    Orders,
    committed,
    keys,
    make_tables,
    plain_engine,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from consumer_framework.testing.broker import Broker

    from .outbox import Disk
    from .outside_services import MariaDB, PostgreSQL

# Each process numbers its messages from a multiple of it.
NUMBERS = 1_000_000
# The most seconds of work before a kill. A relay waits for the lease of the one before.
LONGEST = {"web": 1.5, "script": 1.0, "relay": 3.0 * LEASE, "consumer": 2.0}


# Processes that are forked from one that has imported everything start at once.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "tests.integration.publishing_programs",
        "consumer_framework.runtime.outbox",
        "consumer_framework.publishing.messengers.amqp",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.mysql.pymysql",
        "psycopg",
        "pymysql",
    ]
)


class Program:
    """A process of :mod:`.publishing_programs` that is killed, and started again.

    Attributes:
        kills: Kills so far, by the moment.
        pids: The processes that were killed.
    """

    process: Any

    def __init__(self, role: str, name: str, orders: Orders, directory: Path) -> None:
        self.role, self.name = role, name
        self._log = directory / f"{name}.log"
        self._orders = replace(orders, begun=str(directory / f"{name}.begun"), log=str(self._log))
        self._starts = 0
        self.kills: Counter[str] = Counter()
        self.pids: set[int] = set()
        self.start(orders.point)

    @property
    def begun(self) -> Path:
        return Path(self._orders.begun)

    @property
    def log(self) -> str:
        return self._log.read_text()[-3000:] if self._log.exists() else ""

    def start(self, point: tuple[str, int, int] | None = None) -> None:
        """Start it; it dies at *point*, if that is not None."""
        self._point = point
        self._starts += 1
        self.begun.unlink(missing_ok=True)
        orders = replace(self._orders, first=self._starts * NUMBERS, point=point)
        self.process = _FORKS.Process(target=run, args=(self.role, orders), daemon=True)
        self.process.start()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def reload(self) -> bool:
        """Send SIGHUP, unless it would end the process because it is not ready for it."""
        with suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines())
            if (int(fields["SigCgt"], 16) | int(fields["SigBlk"], 16)) >> (signal.SIGHUP - 1) & 1:
                self.send(signal.SIGHUP)
                return True
        return False

    def kill(self, work: float, point: tuple[str, int, int] | None = None) -> None:
        """Kill it after *work* seconds of work, and start it again with *point*.

        Raises:
            AssertionError: It ended by itself.
        """
        until(lambda: self.begun.exists() or not self.process.is_alive(), f"{self.name} works")
        planned, how = self._point, "at a random moment"
        self.process.join(work + 1 if planned else work)
        if not self.process.is_alive():
            assert planned, f"{self.name} ended by itself\n{self.log}"
            assert self.process.exitcode == -signal.SIGKILL, self.log
            how = planned[0]
        self.end()
        self.kills[how] += 1
        self.pids.add(self.process.pid)
        self.start(point)

    def finish(self) -> None:
        """Stop the work of a producer."""
        self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


class Clients:
    """Threads that send requests to the web application, whose port is in the file *begun*.

    Attributes:
        answers: The number of answers by status; 0 for a connection that failed.
        told: The ids of the messages that the application told to be committed.
    """

    def __init__(self, begun: Path, number: int = 2) -> None:
        self._begun = begun
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        self.answers: Counter[int] = Counter()
        self.told: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.005):
            try:
                status, ids = self._ask()
            except (OSError, ValueError, http.client.HTTPException):
                status, ids = 0, []
                self._over.wait(0.1)
            self.answers[status] += 1
            self.told += ids

    def _ask(self) -> tuple[int, list[str]]:
        port = int(self._begun.read_text())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("POST", "/")
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class Step:
    """A kill of the plan.

    Attributes:
        work: Seconds of work before the kill.
        point: The moment at which the next process of the program dies.
        stop: Seconds for which the process is stopped before it is killed; 0 for none.
        is_reloaded: True if a relay reads its configuration again before it is killed.
    """

    work: float
    point: tuple[str, int, int] | None
    stop: float
    is_reloaded: bool

    def __str__(self) -> str:
        stopped = f", stopped for {self.stop:.1f} s" if self.stop else ""
        then = f", then {self.point[0]} ({self.point[1]})" if self.point else ""
        return f"{self.work:.2f} s{stopped}{then}"


def plan(seed: int, name: str) -> Iterator[Step]:
    """Yield the kills of the program *name* that *seed* stands for, without an end."""
    luck = random.Random(f"{seed} {name}")  # noqa: S311 -- reproducible
    role = name.partition(" ")[0]
    points = list(POINTS.get(role, ()))
    while True:
        point = None
        if points and luck.random() < 0.5:
            point = luck.choice(points), luck.randint(1, 6), signal.SIGKILL.value
        is_stopped, is_reloaded = (role == "relay" and luck.random() < 0.2 for _ in range(2))
        work = luck.uniform(0.05, LONGEST[role])
        yield Step(work, point, 2.0 * LEASE * is_stopped, is_reloaded)


@dataclass
class Chaos:
    """Carries out the plan of each program at once, for some seconds.

    Attributes:
        disk: The disk of the database; None if no small one can be mounted.
        server: The database's server; None for SQLite.
        done: The disturbances, with their numbers.
        outages: The beginning and the end of each time without a broker or a database.
        steps: The steps of each program's plan so far.
    """

    programs: Mapping[str, Program | Consumer]
    broker: Broker
    disk: Disk | None = None
    server: PostgreSQL | MariaDB | None = None
    done: Counter[str] = field(default_factory=Counter)
    outages: list[tuple[float, float]] = field(default_factory=list)
    steps: dict[str, list[Step]] = field(default_factory=lambda: defaultdict(list))
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self, seed: int, seconds: float, full: float, restarts: int) -> None:
        """Disturb for *seconds* and more; the disk is full for *full* of them."""
        events = [self._restart_broker] * restarts + [self._restart_database] * restarts
        events += [lambda: self._full_disk(full)]
        random.Random(seed).shuffle(events)  # noqa: S311 -- reproducible
        with ThreadPoolExecutor() as pool:
            kills = [pool.submit(self._kill, seed, name) for name in self.programs]
            try:
                for event in events:
                    self._over.wait(seconds / (len(events) + 1))
                    event()
                self._over.wait(seconds / (len(events) + 1))
            finally:
                self._over.set()
            for one in kills:
                one.result()

    def _kill(self, seed: int, name: str) -> None:
        program = self.programs[name]
        for step in plan(seed, name):
            if self._over.is_set():
                return
            self.steps[name].append(step)
            try:
                self._carry_out(step, program)
            except BaseException:
                self._over.set()
                raise

    def _carry_out(self, step: Step, program: Program | Consumer) -> None:
        if isinstance(program, Program) and (step.stop or step.is_reloaded):
            time.sleep(step.work)
            if step.is_reloaded and program.reload():
                self.done["a relay read its configuration again"] += 1
            if step.stop:
                self.done["a relay was stopped for longer than its lease, and went on"] += 1
                program.send(signal.SIGSTOP)
                time.sleep(step.stop)
                program.send(signal.SIGCONT)
        program.kill(step.work, step.point)

    def _restart_broker(self) -> None:
        self.done["the broker was restarted"] += 1
        since = time.monotonic()
        self.broker.restart()
        self.outages.append((since, time.monotonic() + 5))

    def _restart_database(self) -> None:
        if self.server is None:
            return
        self.done["the database was restarted"] += 1
        since = time.monotonic()
        self.server.stop()
        time.sleep(1)
        self.server.start()
        self.outages.append((since, time.monotonic() + 5))

    def _full_disk(self, seconds: float) -> None:
        if self.disk is None:
            return
        self.done[f"the disk was full for {seconds:.0f} s"] += 1
        since = time.monotonic()
        while time.monotonic() - since < seconds:
            # Again and again: a database frees some room by itself.
            self.disk.fill()
            time.sleep(0.2)
        self.disk.free()
        if self.server is not None and not self.server.is_running:
            self.done["the database died of it, and was started again"] += 1
            self.server.start()
        self.outages.append((since, time.monotonic() + 5))


@dataclass
class Truth:
    """The messages that must, may and must not arrive, by the producers' own records."""

    must: set[str]
    may: set[str]
    undone: int
    numbers: dict[str, int]  # the last number of each key of the web application

    @classmethod
    def read(cls, url: str, notes: Path, told: Sequence[str]) -> Truth:
        engine = plain_engine(url)
        with engine.connect() as connection:
            ids = set(connection.scalars(sa.select(committed.c.id)))
            numbers = {row.name: row.n for row in connection.execute(sa.select(keys))}
        engine.dispose()
        assert set(told) <= ids, "the application told a commit that its database lost"
        events: dict[str, set[str]] = defaultdict(set)
        for note in map(json.loads, notes.read_text().splitlines()):
            events[note["event"]].update(note["ids"])
        # A process that was killed, or whose database went away amid a commit, does not know.
        unsure = events["asked"] - events["accepted"]
        return cls(ids | events["accepted"], unsure, len(events["undone"]), numbers)


def arrivals(broker: Broker, queue: str) -> list[tuple[str, str, int]]:
    """Empty *queue*; return id, key and number of each message."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        count = channel.queue_declare(queue, passive=True).method.message_count
        found: list[tuple[str, str, int]] = []
        while len(found) < count:
            _, properties, body = next(channel.consume(queue, auto_ack=True))
            assert properties is not None
            read = json.loads(body or b"")
            found.append((str(properties.message_id), read["key"], read["n"]))
        channel.cancel()
        return found


class Ledger:
    """The fate of each message.

    Attributes:
        arrived: The number of messages that arrived.
        wrong: Each breach of the promise, as a sentence.
        duplicates: Messages that arrived more than once, by the reason.
    """

    def __init__(
        self, truth: Truth, arrived: list[tuple[str, str, int]], chaos: Chaos, notes: Path
    ) -> None:
        self._truth = truth
        self._arrived = arrived
        self.arrived = len({one for one, _, _ in arrived})
        self._chaos = chaos
        self.wrong: list[str] = []
        self.duplicates: Counter[str] = Counter()
        times = Counter(one for one, _, _ in arrived)
        self._check_places(set(times))
        self._check_order()
        self._explain({one: count for one, count in times.items() if count > 1}, notes)

    def _check_places(self, ids: set[str]) -> None:
        if missing := self._truth.must - ids:
            self.wrong.append(f"{len(missing)} messages are missing: {sorted(missing)[:5]}")
        if ghosts := ids - self._truth.must - self._truth.may:
            self.wrong.append(f"{len(ghosts)} messages are ghosts: {sorted(ghosts)[:5]}")

    def _check_order(self) -> None:
        """Check that the first arrivals of each key are in order, and those of web complete."""
        first: dict[str, list[int]] = defaultdict(list)
        for _, key, n in dict.fromkeys(self._arrived):
            first[key].append(n)
        for key, numbers in first.items():
            if numbers != sorted(numbers):
                late = next(b for a, b in pairwise(numbers) if b < a)
                self.wrong.append(f"the key {key} is out of order at {late}")
        for key in WEB_KEYS:
            if sorted(first[key]) != list(range(1, self._truth.numbers[key] + 1)):
                self.wrong.append(f"the key {key} has not each number once")
        self.keys = len(first)

    def _explain(self, repeated: dict[str, int], notes: Path) -> None:
        claims: dict[str, list[dict[str, Any]]] = defaultdict(list)
        ends: dict[str, dict[str, Any]] = {}
        for note in map(json.loads, notes.read_text().splitlines()):
            if note["event"] == "claim":
                for one in note["ids"]:
                    claims[one].append(note)
            else:
                ends[note["token"]] = note
        killed = set().union(*(program.pids for program in self._chaos.programs.values()))
        for one, count in repeated.items():
            if one.startswith("out-"):
                self.duplicates["their instance was killed: it did something again"] += 1
                continue
            reasons = [
                self._reason(claim, ends.get(claim["token"]), killed) for claim in claims[one]
            ]
            if count > len(reasons):
                reasons += ["the connection to the broker was lost amid their batch"] * (
                    (count - len(reasons)) * self._is_in_outage(claims[one])
                )
            known = [reason for reason in reasons if reason]
            if len(known) < count - 1:
                self.wrong.append(f"{one} arrived {count} times; claims: {reasons}")
            self.duplicates.update(known[:1])

    def _reason(
        self, claim: dict[str, Any], end: dict[str, Any] | None, killed: set[int]
    ) -> str | None:
        """Return the reason why the messages of *claim* may arrive again; None for none."""
        if end is None:
            if claim["pid"] in killed:
                return "their batch was on its way when its relay was killed"
            return None
        if end["lost"]:
            return "their relay was stopped, or without its database, for longer than its lease"
        if self._is_in_outage([claim]) and not set(claim["ids"]) <= set(end["sent"]):
            return "the broker went away amid their batch"
        return None

    def _is_in_outage(self, claims: list[dict[str, Any]]) -> bool:
        return any(
            since - 10 <= claim["at"] <= until_
            for claim in claims
            for since, until_ in self._chaos.outages
        )

    def __str__(self) -> str:
        chaos, truth = self._chaos, self._truth
        lines = [f"{count} times: {what}." for what, count in sorted(chaos.done.items())]
        for program in chaos.programs.values():
            how = "; ".join(f"{count} {moment}" for moment, count in program.kills.most_common())
            lines.append(f"{program.name} was killed {program.kills.total()} times ({how}).")
        times = Counter(one for one, _, _ in self._arrived)
        repeated = sum(count > 1 for count in times.values())
        lines += [
            f"{len(truth.must)} messages were committed.",
            f"{truth.undone} of the script were rolled back.",
            f"{len(truth.may)} may arrive: their producer was killed before it knew.",
            f"{len(times)} messages arrived, {repeated} of them more than once.",
            *(f"  {count} since {why}." for why, count in self.duplicates.most_common()),
            f"The first arrivals of {self.keys} keys are in order.",
        ]
        return "\n".join([*lines, *(f"WRONG: {sentence}" for sentence in self.wrong), ""])


def drain(store: OutboxStore, programs: Mapping[str, Program | Consumer], seconds: float) -> None:
    """Stop the producers, and wait until the relays have sent everything."""
    for program in programs.values():
        if program.role != "relay":
            program.finish()

    def is_empty() -> bool:
        for program in programs.values():
            if isinstance(program, Consumer) or program.role != "relay":
                continue
            if not program.process.is_alive():
                program.pids.add(program.process.pid)
                program.start()
        return not store.rows(limit=1)

    until(is_empty, lambda: f"not sent: {store.stats()}", seconds)


class Bench:
    """The database, the queue and the programs of one test."""

    def __init__(self, url: str, broker: Broker, directory: Path) -> None:
        self.url, self.broker, self._directory = url, broker, directory
        self.store = OutboxStore.connect(url)
        self.store.migrate()
        engine = plain_engine(url)
        make_tables(engine)
        engine.dispose()
        self.topic = f"ledger.{uuid.uuid4()}"
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(self.topic, durable=True)
            channel.queue_bind(self.topic, "amq.topic", f"{self.topic}.#")
        self.programs: dict[str, Program | Consumer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs.values():
            program.end()
        self.store.close()

    def notes(self, role: str) -> Path:
        return self._directory / f"{role}.notes"

    def start(
        self, *names: str, dead: int | None = None, point: tuple[str, int, int] | None = None
    ) -> None:
        """Start programs, which get a signal at *point*; the first endpoint is the port *dead*."""
        first = () if dead is None else (f"amqp://127.0.0.1:{dead}/%2F",)
        endpoints = (*first, self.broker.url)
        for name in names:
            role = name.partition(" ")[0]
            if role == "consumer":
                self.programs[name] = Consumer(self.broker, self.topic, endpoints, self._directory)
                continue
            orders = Orders(self.url, "", str(self.notes(role)), self.topic, endpoints, point=point)
            self.programs[name] = Program(role, name, orders, self._directory)

    def begun(self, name: str) -> Path:
        return self._directory / f"{name}.begun"

    def claims(self, name: str) -> int:
        """Return the number of claims of the relay *name* so far."""
        lines = self.notes("relay").read_text().splitlines()
        notes = [json.loads(line) for line in lines if line.endswith("}")]
        pid = self.programs[name].process.pid
        return sum(note["event"] == "claim" and note["pid"] == pid for note in notes)

    def ledger(self, chaos: Chaos, told: list[str]) -> Ledger:
        """Wait until everything is sent, and account for it."""
        drain(self.store, self.programs, 180)
        arrived = arrivals(self.broker, self.topic)
        truth = Truth.read(self.url, self.notes("script"), told)
        for program in self.programs.values():
            if isinstance(program, Consumer):
                truth.must |= program.must
                truth.may |= program.may
        return Ledger(truth, arrived, chaos, self.notes("relay"))
