# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs of the publishing ledger: a web application, a script and a relay.

:func:`run` is a program's process. It may be killed at any moment; :mod:`.publishing_points` lets
it die at a chosen one. It tells by a file that its work has begun.

The web application commits each message together with a row of its own table. So that table has
the truth about its messages, and the ledger does not depend on the outbox that it judges. The
script has no table: it appends to a file, and syncs it, before and after each publish.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from fedora_messaging.message import Message
from sqlalchemy.orm import Session

from consumer_framework.cli import main as fm_consumer
from consumer_framework.publishing.claims import Claims
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.publishing.store import OutboxError, OutboxStore, create_engine

from .publishing_points import arm

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds; a relay that dies is replaced so soon.
LEASE = 1
WINDOW = 50
WEB_KEYS = tuple(f"web-{n}" for n in range(6))
SCRIPT_KEYS = 3

metadata = sa.MetaData()
keys = sa.Table(
    "app_keys",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("n", sa.Integer),
)
committed = sa.Table(
    "app_messages",
    metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("key_name", sa.String(40)),
    sa.Column("n", sa.Integer),
)


@dataclass(frozen=True)
class Orders:
    """The orders of a program.

    Attributes:
        url: The database.
        begun: The file that the program makes when its work begins; the web application writes its
            port into it.
        notes: The file that it appends to.
        topic: The beginning of each topic.
        endpoints: The brokers of a relay.
        first: Numbers of a later process are higher.
        log: The file of its output.
        point: A moment, the number of times that it comes, and the signal that the program gets.
    """

    url: str
    begun: str
    notes: str
    topic: str
    endpoints: tuple[str, ...] = ()
    first: int = 0
    log: str = os.devnull
    point: tuple[str, int, int] | None = None


class Notes:
    """A file of JSON lines. Each is written by one system call, and is on the disk then."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, event: str, **more: Any) -> None:
        line = {"event": event, "pid": os.getpid(), "at": time.monotonic(), **more}
        os.write(self._file, (json.dumps(line) + "\n").encode())
        os.fsync(self._file)


def make_tables(engine: sa.Engine) -> None:
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(keys), [{"name": name, "n": 0} for name in WEB_KEYS])


def plain_engine(url: str) -> sa.Engine:
    """Return an engine as an application makes it, without the options of the outbox's own."""
    options = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {}
    return sa.create_engine(create_engine(url).url, pool_pre_ping=True, **options)


class _UndoError(Exception):
    """The application changes its mind."""


def undo(*, is_undone: bool) -> None:
    if is_undone:
        raise _UndoError


class Application:
    """A WSGI application: each request commits one to three messages, or rolls them back."""

    def __init__(self, orders: Orders) -> None:
        self._topic = f"{orders.topic}.web"
        self._engine = plain_engine(orders.url)
        self._outbox = Outbox(self._engine)

    def __call__(self, _environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            with Session(self._engine) as session, session.begin():
                ids = [self._publish(session, key) for key in self._chosen()]
                undo(is_undone=random.random() < 0.1)  # noqa: S311 -- no secret
        except _UndoError:
            status, ids = "409 Conflict", []
        except sa.exc.SQLAlchemyError:
            status, ids = "503 Service Unavailable", []
        else:
            status = "201 Created"
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(ids).encode()]

    @staticmethod
    def _chosen() -> list[str]:
        # In their order, so that two requests never wait for each other.
        return sorted(random.sample(WEB_KEYS, random.randint(1, 3)))  # noqa: S311

    def _publish(self, session: Session, key: str) -> str:
        # The row of the key is locked until the commit, so the numbers of a key have an order.
        session.execute(sa.update(keys).where(keys.c.name == key).values(n=keys.c.n + 1))
        n = session.scalar(sa.select(keys.c.n).where(keys.c.name == key))
        message = Message(topic=self._topic, body={"key": key, "n": n})
        message.id = f"{key}:{n}:{uuid.uuid4().hex}"
        session.execute(sa.insert(committed).values(id=message.id, key_name=key, n=n))
        self._outbox.publish(message, key, session=session)
        return message.id


def serve(orders: Orders) -> Iterator[None]:
    application = Application(orders)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told: list[Any] = []
            body = b"".join(application({}, lambda *answer: told.extend(answer)))
            self.send_response(int(told[0].split()[0]))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    partial = Path(orders.begun).with_suffix(".new")
    partial.write_text(str(server.server_address[1]))
    partial.rename(orders.begun)
    yield
    server.serve_forever()


def script(orders: Orders) -> Iterator[None]:
    """Publish in spool mode, one by one and in blocks, a tenth of which are given up."""
    outbox, notes, n = Outbox(orders.url), Notes(orders.notes), orders.first
    Path(orders.begun).touch()
    yield
    while True:
        messages = []
        for _ in range(random.randint(1, 3)):  # noqa: S311 -- no secret
            n += 1
            key = f"script-{n % SCRIPT_KEYS}"
            message = Message(topic=f"{orders.topic}.script", body={"key": key, "n": n})
            message.id = f"{key}:{n}:{uuid.uuid4().hex}"
            messages.append((message, key))
        ids = [message.id for message, _ in messages]
        is_undone = random.random() < 0.1  # noqa: S311
        notes.write("undone" if is_undone else "asked", ids=ids)
        try:
            with outbox.transaction():
                for message, key in messages:
                    outbox.publish(message, key)
                undo(is_undone=is_undone)
        except OutboxError:
            notes.write("refused", ids=ids)
            time.sleep(0.05)
        except _UndoError:
            pass
        else:
            notes.write("accepted", ids=ids)
        time.sleep(0.005)


def record_claims(notes: Notes) -> None:
    """Write each claim and its end to the notes, so that each duplicate can be explained."""
    ids: dict[int, str] = {}

    def recorded_claim(store: OutboxStore, token: str, *arguments: Any) -> Any:
        # Looked up now, because a point may wrap it.
        claimed = Claims.claim(store, token, *arguments)
        ids.clear()
        ids.update({one.row: one.message.id for one in claimed})
        if claimed:
            notes.write("claim", token=token, ids=list(ids.values()))
        return claimed

    def recorded_settle(store: OutboxStore, token: str, **lists: Any) -> Any:
        settled = Claims.settle(store, token, **lists)
        sent = [ids[row] for row in lists["sent"]]
        notes.write("settle", token=token, sent=sent, lost=settled.lost)
        return settled

    for name, method in {"claim": recorded_claim, "settle": recorded_settle}.items():
        setattr(OutboxStore, name, method)


RELAY = """
[consumer_config.framework.outbox]
database = {url}
endpoints = {endpoints}
lease = "{lease}s"
window = {window}
"""


def relay(orders: Orders) -> Iterator[None]:
    """Run ``fm-consumer outbox relay``."""
    directory = Path(orders.begun).with_suffix(".state")
    directory.mkdir(exist_ok=True)
    os.environ |= {"STATE_DIRECTORY": str(directory), "RUNTIME_DIRECTORY": str(directory)}
    file = directory / "relay.toml"
    values = {"url": json.dumps(orders.url), "endpoints": json.dumps(orders.endpoints)}
    file.write_text(RELAY.format(lease=LEASE, window=WINDOW, **values))
    record_claims(Notes(orders.notes))
    Path(orders.begun).touch()
    yield
    fm_consumer(["outbox", "relay", "--conf", str(file)])


ROLES = {"web": serve, "script": script, "relay": relay}


def run(role: str, orders: Orders) -> None:
    """Run the program *role*; it does not return."""
    log = os.open(orders.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    program = ROLES[role](orders)
    next(program)
    if orders.point is not None:
        arm(role, *orders.point)
    next(program, None)
