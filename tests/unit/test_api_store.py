# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine`` of a user who may not read the store, and may ask the instance."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pika
import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.core import secrets
from consumer_framework.core.attempt import RouteState
from consumer_framework.core.ramp import Ramp
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.routes import Refusal

from .machine import make_host
from .quarantined import OTHER_CAUSE, a_delivery, failures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .machine import Host

HEADERS = {"n": 2**63 - 1, "d": Decimal("1.5"), "b": b"\xff", "t": datetime(2026, 1, 2, tzinfo=UTC)}


def odd_delivery():
    """Make a message with everything that JSON does not have, and with routes."""
    odd = a_delivery(7, b"\xff\x00 no JSON", history=failures(1, OTHER_CAUSE))
    states = (RouteState("mail", "done"), RouteState("index", "later", 9e9, "not now"))
    history = odd.history.with_state(states[0]).with_state(states[1])
    return odd._replace(history=history, properties=pika.BasicProperties(headers=HEADERS))


async def fill(store):
    """Write three rows of one lane, of which the first is edited, and others of all kinds."""
    for number in (1, 2, 3):
        await store.quarantine(a_delivery(number)._replace(lane="key"), "no")
    await store.quarantine(a_delivery(4, routing_key="org.other"), "no")
    await store.defer(a_delivery(5), 9e9)
    await store.quarantine(odd_delivery(), "odd")
    assert await store.supersede(1, b'{"n": "mended"}', "edit by root") == 7


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    made = make_host(short_tmp_path, monkeypatch)
    state, operators = made.directory / "lib/sample", made.directory / "run/sample/operators"
    for directory in (state, operators):
        directory.mkdir(parents=True)
    # The instance listens at both places.
    (operators / "control").symlink_to(state / "control")
    with closing(Store.open(state, limits=Limits())) as store:
        asyncio.run(fill(store))
    return made


@contextmanager
def running(host, **answers) -> Iterator[None]:
    with host.runs("sample", answers={getattr(schema, k): v for k, v in answers.items()}):
        yield


def asked(host, verb, *words):
    """Return the result of a user who has to ask the instance."""
    return host.does("quarantine", verb, "sample", *words)


def read(host, verb, *words):
    """Return the result of a user who may read the store."""
    state = str(host.directory / "lib/sample")
    return host.does("quarantine", verb, "sample", "--state-dir", state, *words)


class Replays:
    """Remembers the rows that an instance is to replay."""

    def __init__(self):
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        for row in request.rows or (2, 3):
            yield schema.Replayed(row, "succeeded")


LOOKS = (
    "list",
    "list --causes --where error~package",
    "list --rows",
    "list --topic org.other*",
    "list --queue sample --limit 2",
    "list --after 3 --state any",
    "list --state deferred",
    "list --state superseded",
    "list --fingerprint KeyError",
    "list --where key=key --where body.n=mended",
    *(f"show {number}" for number in range(1, 8)),
    "show --where attempts=1",
)


def test_the_instance_tells_all_that_the_store_has(host):
    with running(host):
        for look in LOOKS:
            told, wanted = (does(host, *look.split(), "--json") for does in (asked, read))
            assert told.exit_code == 0, told.stderr
            assert json.loads(told.stdout) == json.loads(wanted.stdout), look
            assert json.loads(told.stdout), look


def test_lists_and_messages_are_readable(host):
    with running(host):
        assert "5 messages, 2 causes" in asked(host, "list").stdout
        shown = asked(host, "show", "6").stdout
        behind = asked(host, "show", "2").stdout
        missing = asked(host, "show", "99")
    assert "runs again at" in shown
    assert "not JSON" in shown
    assert "row 7 of the same key" in behind
    assert missing.exit_code == 2
    assert "there is no row 99 (any more)" in missing.stderr


def test_a_list_may_be_longer_than_an_answer(host):
    with closing(Store.open(host.directory / "lib/sample", limits=Limits())) as store:

        async def write() -> None:
            more = (store.quarantine(a_delivery(n, {"n": n}), "many") for n in range(100, 1102))
            await asyncio.gather(*more)

        asyncio.run(write())
    with running(host):
        rows = json.loads(asked(host, "list", "--rows", "--json").stdout)
        some = json.loads(asked(host, "list", "--limit", "1001", "--json").stdout)
    assert len(rows) == 1007
    assert some == rows[:1001]


def test_messages_of_one_key_are_replayed_in_their_order(host):
    replays = Replays()
    with running(host, Replay=replays):
        assert asked(host, "replay", "--all").exit_code == 0
        assert asked(host, "replay", "4", "2", "7").exit_code == 0
        assert asked(host, "replay", "--first", "1").exit_code == 0
        assert (
            asked(host, "replay", "--where", "key=key", "--ramp", "50,100", "--yes").exit_code == 0
        )
        assert asked(host, "replay", "--fingerprint", "KeyError").exit_code == 0
    # The edited copy has the place of row 1.
    assert [request.rows for request in replays.requests] == [
        *((7, 2, 4, 6, 3), (4, 7, 2), (7,), (7, 2, 3), (6,)),
    ]
    assert [request.ramp for request in replays.requests if request.is_ramp] == [(50.0, 100.0)]


def test_a_replay_in_stages_goes_on_where_it_was(host):
    replays = Replays()
    with running(host, Replay=replays):
        assert "there is no replay to go on with" in asked(host, "replay", "--resume").stderr
    with closing(Store.open(host.directory / "lib/sample", limits=Limits())) as store:

        async def begin() -> None:
            await store.begin_ramp(Ramp((50.0, 100.0), 5.0), [7, 2, 3])
            store.record_ramp(0, "succeeded")
            await store.ramp_recorded()

        asyncio.run(begin())
    with running(host, Replay=replays):
        done = asked(host, "replay", "--resume")
    assert "a replay of 3 messages began" in done.stderr
    assert "1 of them have run" in done.stderr
    assert "2 of 2 succeeded" in done.stdout
    assert [request.resume for request in replays.requests] == [True]


def test_a_stopped_instance_is_not_asked(host):
    for order in ("list", "show 1", "replay --all", "replay --resume", "drop 1 --yes"):
        done = asked(host, *order.split())
        assert done.exit_code == 78
        assert "lib/sample/store.sqlite3: may not be read by this user; use sudo" in done.stderr


def test_an_operator_is_refused_before_there_is_a_question_or_an_edit(host):
    with running(host):
        for words in (("drop", "1"), ("replay", "1", "--edit"), ("replay", "1", "--body", "-")):
            done = asked(host, *words)
            assert done.exit_code == 78
            assert done.stdout == ""
            assert "may not be read by this user; use sudo" in done.stderr


def test_messages_of_an_instance_that_stops_meanwhile_stay(host):
    host.configures()
    with closing(Store.read(host.directory / "lib/sample")) as store:
        rows = tuple(store.rows())

    async def stops(_request):
        (host.directory / "run/sample/operators/control").unlink()
        yield schema.QuarantineReport(rows, None)

    with running(host, Quarantine=stops):
        done = asked(host, "replay", "--all")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "sample does not run" in done.stderr


def test_a_message_is_shown_without_secrets_of_the_instance(host):
    secrets.hide("op3rators-never-see-me", "credential:api")
    with closing(Store.open(host.directory / "lib/sample", limits=Limits())) as store:
        asyncio.run(store.quarantine(a_delivery(8, {"url": "op3rators-never-see-me"}), "no"))
    with running(host):
        shown = json.loads(asked(host, "show", "8", "--json").stdout)
    assert shown["message"]["body"] == {"url": "<credential:api>"}


def test_a_refusal_of_the_instance_is_one_line(host):
    async def refuse(_request):
        raise Refusal(409, "row 1 is damaged")
        yield

    with running(host, Show=refuse):
        done = asked(host, "show", "1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the instance says: row 1 is damaged" in done.stderr
