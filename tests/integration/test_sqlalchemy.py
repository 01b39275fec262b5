# SPDX-License-Identifier: GPL-2.0-or-later
"""The outbox beside the tables of an application that uses SQLAlchemy and alembic."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fedora_messaging.message import Message
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from consumer_framework.publishing.integrations.sqlalchemy import include_name
from consumer_framework.publishing.outbox import Outbox

from .outbox import on_every_database

pytestmark = on_every_database
DRIVERS = {"sqlite": "sqlite+aiosqlite", "mariadb+pymysql": "mariadb+asyncmy"}


@pytest.fixture
def outbox(outbox_url):
    outbox = Outbox(outbox_url)
    outbox.store.migrate()
    yield outbox
    outbox.close()


def test_alembic_leaves_the_tables_of_the_outbox_alone(outbox):
    metadata = sa.MetaData()
    sa.Table("fm", metadata, sa.Column("id", sa.Integer, primary_key=True))
    with outbox.store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": include_name})
        [(change, table)] = compare_metadata(context, metadata)
    assert (change, table.name) == ("add_table", "fm")


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_a_message_shares_the_fate_of_an_asynchronous_transaction(outbox, kind):
    url = outbox.store.engine.url
    driver = DRIVERS.get(url.drivername, url.drivername)

    async def main():
        engine = create_async_engine(url.set(drivername=driver))
        for topic, end in (("gone", "rollback"), ("kept", "commit")):
            opened = AsyncSession(engine) if kind == "session" else engine.connect()
            async with opened as transaction:
                message = Message(topic=topic, body={"text": "ä€😀"})
                await outbox.publish_async(message, **{kind: transaction})
                await getattr(transaction, end)()
        await engine.dispose()

    asyncio.run(main())
    [row] = outbox.store.rows()
    assert (row.message.topic, row.message.body) == (
        "kept",
        b'{"text": "\\u00e4\\u20ac\\ud83d\\ude00"}',
    )
