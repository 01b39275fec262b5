# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of a SQLite file: those of a new one are those that all migrations make."""

import contextlib
import os
import sqlite3
import subprocess
import sys

import pytest

from consumer_framework.publishing.message import OutboxError
from consumer_framework.publishing.migrations import HEAD, is_newer, new_file, serves, upgrade
from consumer_framework.publishing.store import OutboxStore


def tables(file):
    """Return the definition of each table and index, and the version."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        master = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
        found = {row[:3]: " ".join((row[3] or "").split()) for row in master}
        [version] = connection.execute("SELECT version_num FROM fm_outbox_version").fetchall()
    # alembic's own white space.
    return {key: text.replace("( ", "(").replace(" )", ")") for key, text in found.items()}, version


def test_a_new_file_has_the_tables_that_the_migrations_make(tmp_path):
    new, migrated = (OutboxStore.connect(f"sqlite:///{tmp_path}/{name}") for name in "ab")
    new.migrate()
    with migrated.transaction() as connection:
        upgrade(connection)
    for store in (new, migrated):
        store.close()
    assert tables(tmp_path / "a") == tables(tmp_path / "b")
    assert tables(tmp_path / "a")[1] == (HEAD,)


def test_a_new_file_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/a")
    with monkeypatch.context() as patch:
        patch.setattr(new_file, "STATEMENTS", (*new_file.STATEMENTS[:4], "no SQL"))
        with pytest.raises(OutboxError, match="syntax error"):
            store.migrate()
    assert store.fault_of_tables("migrate") == ("has no tables", "run: migrate")
    store.migrate()
    assert store.fault_of_tables("migrate") is None
    store.close()


def test_a_version_that_no_migration_made_is_told(tmp_path):
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/a")
    store.migrate()
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE fm_outbox_version SET version_num = '0000'")
    with pytest.raises(OutboxError, match="unknown version"):
        store.migrate()
    store.close()


@pytest.mark.parametrize(
    ("found", "is_served", "is_of_newer"),
    [
        ("0001", False, False),
        (HEAD, True, False),
        (f"9999_for_{HEAD}", True, True),
        ("9999_for_0001", True, True),
        ("9999_for_9998", False, True),
        ("9999", False, True),
    ],
)
def test_a_program_can_use_its_own_tables_and_newer_ones_that_say_so(found, is_served, is_of_newer):
    assert (serves(found), is_newer(found)) == (is_served, is_of_newer)


def test_the_first_message_in_a_new_file_needs_no_alembic(tmp_path):
    code = """
import sys
from fedora_messaging.message import Message
from consumer_framework.publishing import Outbox
Outbox(f"sqlite:///{sys.argv[1]}/outbox.sqlite3").publish(Message(topic="app.done"))
print("alembic" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout == "False\n"
