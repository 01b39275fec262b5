# SPDX-License-Identifier: GPL-2.0-or-later
"""A damaged row is quarantined, and all other rows work."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from base64 import b64decode
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.core.disposition import Ack
from consumer_framework.core.errors import DamagedRowError, StoreError
from consumer_framework.runtime.control.requests import Responder
from consumer_framework.runtime.control.schema import Replay, Replayed
from consumer_framework.testing import make_delivery

if TYPE_CHECKING:
    from pathlib import Path

# Damage to row 1, by a flipped bit or by a shell of sqlite3.
DAMAGES = {
    "another body": "UPDATE messages SET body = x'7b7d' WHERE id = 1",
    "a body that is no bytes": "UPDATE messages SET body = 7 WHERE id = 1",
    "properties that are no JSON": "UPDATE messages SET properties = 'x' WHERE id = 1",
    "other properties": "UPDATE messages SET properties = '[{\"table\":0}]' WHERE id = 1",
    "text that is no UTF-8": "UPDATE messages SET routing_key = CAST(x'ff' AS TEXT) WHERE id = 1",
    "a table that promises more": (
        "UPDATE messages SET checksum = NULL, properties = '[{\"table\":3}]' WHERE id = 1"
    ),
}


def fill(directory: Path, damage: str, *, lane: str = "", quarantined: bool = False) -> None:
    """Defer three messages, and damage the first."""

    async def keep(store: Store) -> None:
        for number in range(3):
            message = make_delivery(message_id=str(number), queue="sample", body=b"%d" % number)
            delivery = message._replace(lane=lane)
            if quarantined:
                await store.quarantine(delivery, "poison")
            else:
                await store.defer(delivery, 1.0)

    with closing(Store.open(directory, limits=Limits())) as store:
        asyncio.run(keep(store))
    with closing(sqlite3.connect(directory / "store.sqlite3")) as connection:
        connection.execute(damage)
        connection.commit()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_deferred_row_is_quarantined_and_named_and_the_others_are_due(
    tmp_path, damage, caplog
):
    fill(tmp_path, damage)
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        assert [delivery.row for delivery in store.due(2.0, 3)] == [2, 3]
        # Even before the quarantine is written.
        assert [delivery.row for delivery in store.due(2.0, 2)] == [2, 3]
        assert store.next_due() == 1.0
        asyncio.run(store.remove(2))
        row = store.row(1)
        assert row is not None
        assert (row.state, row.fingerprint) == ("quarantined", "damaged in the store")
        assert [one.id for one in store.rows(state=None)] == [1, 3]
        asyncio.run(store.remove(3))
        assert store.next_due() is None
    assert caplog.text.count("row 1 is damaged") == 1
    assert "(message 0 of sample); it is quarantined" in caplog.text


def test_the_rows_behind_a_damaged_row_wait_for_the_operator(tmp_path):
    fill(tmp_path, DAMAGES["another body"], lane="a")
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        assert store.due(2.0) == []
        asyncio.run(store.remove(99))
        assert [row.reason for row in store.rows()][1:] == ["behind row 1 of the same key"] * 2


def test_a_damaged_row_is_left_out_even_where_the_disk_takes_no_write(tmp_path, caplog):
    fill(tmp_path, DAMAGES["another body"])
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
            connection.execute(
                "CREATE TRIGGER full BEFORE UPDATE ON messages "
                "BEGIN SELECT RAISE(ABORT, 'no room'); END"
            )
            connection.commit()
        assert [delivery.row for delivery in store.due(2.0)] == [2, 3]
        with pytest.raises(sqlite3.IntegrityError):
            asyncio.run(store.defer(make_delivery()._replace(row=2), 3.0))
        assert [delivery.row for delivery in store.due(2.0)] == [2, 3]
    assert "no room" in caplog.text


def test_a_row_that_the_database_cannot_read_does_not_hide_the_others(tmp_path, monkeypatch):
    fill(tmp_path, "SELECT 1")
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        read = store._select

        def select(query, *values):
            if query.startswith("SELECT * FROM messages WHERE id = ?") and values == (1,):
                raise StoreError("database disk image is malformed", lasting=True)
            return read(query, *values)

        def malformed(*_args):
            raise StoreError("database disk image is malformed", lasting=True)

        monkeypatch.setattr(store, "_select", select)
        monkeypatch.setattr(store, "_due", malformed)
        assert [delivery.row for delivery in store.due(2.0)] == [2, 3]
        assert next(iter(store.export([1]))).startswith('{"damaged": "database disk image')


def test_a_disk_that_fails_for_a_while_damages_nothing(tmp_path, monkeypatch):
    fill(tmp_path, "SELECT 1")
    with closing(Store.open(tmp_path, limits=Limits())) as store:

        def failing(*_args):
            raise StoreError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(store, "_due", failing)
            patch.setattr(store, "delivery", failing)
            with pytest.raises(StoreError, match="disk I/O error"):
                store.due(2.0)
        assert [delivery.row for delivery in store.due(2.0)] == [1, 2, 3]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_export_and_expiry_write_the_readable_rest_of_a_damaged_row(tmp_path, damage):
    fill(tmp_path, damage, quarantined=True)
    with closing(Store.open(tmp_path, limits=Limits(max_age=1.0))) as store:
        assert [row.id for row in store.rows()] == [1, 2, 3]
        left, *others = map(json.loads, store.export([1, 2, 3]))
        assert left["row"] == 1
        assert "body" not in left
        assert b64decode(left["body_base64"]) in {b"0", b"{}", b"7"}
        assert [line["id"] for line in others] == ["1", "2"]
        assert asyncio.run(store.expire(1e12)).rows == 3
    lines = [json.loads(line) for line in (tmp_path / "expired.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2"]
    assert lines[0]["damaged"] == left["damaged"]


def test_a_replay_skips_a_damaged_row_and_goes_on(tmp_path):
    fill(tmp_path, DAMAGES["another body"], quarantined=True)

    async def replay(store: Store):
        async def run(_delivery):
            return Ack()

        answers = Responder(store, run).replay(Replay((1, 2, 3)))
        return [answer async for answer in answers if isinstance(answer, Replayed)]

    with closing(Store.open(tmp_path, limits=Limits())) as store:
        first, *others = asyncio.run(replay(store))
        with pytest.raises(DamagedRowError, match="export it, and drop it"):
            store.delivery(1)
        assert asyncio.run(store.drop([1])) == [1]
    assert first.result == "skipped"
    assert "row 1 is damaged: its message is not what was received" in first.reason
    assert [answer.result for answer in others] == ["succeeded", "succeeded"]


def test_an_edited_message_is_not_damaged(tmp_path):
    fill(tmp_path, "SELECT 1", quarantined=True)
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        child = asyncio.run(store.supersede(1, b'{"edited": true}'))
        assert child is not None
        delivery = store.delivery(child)
        assert delivery is not None
        assert delivery.body == b'{"edited": true}'
