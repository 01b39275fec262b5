# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening a store: one process at a time, and a clear message for every fault."""

import asyncio
import errno
import os
import pwd
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.files import (
    APPLICATION_ID,
    MIGRATIONS,
    described,
    is_locked_elsewhere,
)
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

HOLDER = """
import sys
from pathlib import Path
from consumer_framework.adapters.store import Store, Limits
store = Store.open(Path(sys.argv[1]), limits=Limits(), instance="robosignatory")
print("open", flush=True)
sys.stdin.read()
"""


def open_store(directory, **limits):
    return Store.open(directory, limits=Limits(**limits))


def refusal(directory):
    with pytest.raises(StoreError) as error:
        open_store(directory).close()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def database(tmp_path):
    return tmp_path / "store.sqlite3"


def test_a_missing_directory_is_named_with_the_cure(tmp_path):
    message = refusal(tmp_path / "none")
    assert str(tmp_path / "none") in message
    assert "no such file or directory" in message
    assert "--state-dir" in message


def test_a_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert "not a directory" in refusal(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_directory_of_another_user_is_named_with_the_cure(tmp_path):
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    nobody = pwd.getpwnam("nobody")
    code = HOLDER.replace("store =", f"import os; os.seteuid({nobody.pw_uid})\nstore =")
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "permission denied; make it writable for this user" in ended.stderr


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path, database):
    database.write_text("Dear diary, today " * 100)
    message = refusal(tmp_path)
    assert str(database) in message
    assert "not a database; move the file away" in message
    assert database.read_text().startswith("Dear diary")


def test_a_database_of_another_program_is_named_and_left_alone(tmp_path, database):
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
        connection.commit()
    assert "no store" in refusal(tmp_path)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


def test_a_store_of_a_newer_version_is_refused_for_writing_and_reading(tmp_path, database):
    open_store(tmp_path).close()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "newer version (schema 99" in refusal(tmp_path)
    with pytest.raises(StoreError, match="newer version"):
        Store.read(tmp_path)


def test_a_refused_store_can_be_opened_after_its_fault_is_repaired(tmp_path, database):
    database.write_text("no database " * 100)
    refusal(tmp_path)
    database.unlink()
    open_store(tmp_path).close()


def test_the_file_has_an_application_id_and_a_version(tmp_path, database):
    open_store(tmp_path).close()
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path, database, monkeypatch):
    broken = (*MIGRATIONS, "CREATE TABLE news (a); INSERT INTO nowhere VALUES (1);")
    open_store(tmp_path).close()
    monkeypatch.setattr("consumer_framework.adapters.store.files.MIGRATIONS", broken)
    assert "nowhere" in refusal(tmp_path)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert not connection.execute("SELECT * FROM sqlite_schema WHERE name='news'").fetchall()


def test_an_older_store_is_brought_up_to_date_with_its_rows(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    asyncio.run(store.defer(make_delivery(), 1.0))
    store.close()
    newer = (*MIGRATIONS, "CREATE TABLE news (a);")
    monkeypatch.setattr("consumer_framework.adapters.store.files.MIGRATIONS", newer)
    with pytest.raises(StoreError, match="older version; start the instance once"):
        Store.read(tmp_path)
    store = open_store(tmp_path)
    assert store.next_due() == 1.0
    store.close()
    Store.read(tmp_path).close()


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process
        process.kill()


def test_a_second_process_is_told_which_process_has_the_store(tmp_path, holder):
    message = refusal(tmp_path)
    assert f"in use by process {holder.pid} (instance robosignatory)" in message
    assert "stop that first" in message


def test_a_killed_process_frees_the_store(tmp_path, holder):
    holder.kill()
    holder.wait()
    open_store(tmp_path).close()


FORKS = """
import os, pathlib, sys, time
from consumer_framework.adapters.store import Store, Limits
from consumer_framework.adapters.store.files import Lock
lock = Lock(pathlib.Path(sys.argv[1]), "sample")
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


def test_a_forked_child_of_a_dead_holder_does_not_keep_the_store(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert is_locked_elsewhere(tmp_path)
        process.kill()
    try:
        assert not is_locked_elsewhere(tmp_path)
        open_store(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_checking_the_lock_does_not_free_it(tmp_path):
    store = open_store(tmp_path)
    assert not is_locked_elsewhere(tmp_path)
    look = "from consumer_framework.adapters.store.files import is_locked_elsewhere as look\n"
    look += f"import pathlib; print(look(pathlib.Path({str(tmp_path)!r})))"
    assert subprocess.check_output([sys.executable, "-c", look]) == b"True\n"
    store.close()
    assert not is_locked_elsewhere(tmp_path / "none")


@pytest.mark.parametrize(
    ("number", "lasting"),
    [
        (errno.ENOSPC, False),
        (errno.EROFS, False),
        (errno.EIO, False),
        (errno.EDQUOT, False),
        (errno.EACCES, True),
        (errno.ENOTDIR, True),
    ],
)
def test_only_errors_that_need_a_change_are_lasting(tmp_path, number, lasting):
    with pytest.raises(StoreError) as error, described(tmp_path):
        raise OSError(number, os.strerror(number))
    assert error.value.lasting is lasting


def test_the_store_is_read_while_another_process_writes_it(tmp_path, holder):
    reader = Store.read(tmp_path)
    assert reader.rows(state=None) == []
    reader.close()
    assert holder.poll() is None


def test_one_process_cannot_open_it_twice_either(tmp_path):
    store = open_store(tmp_path)
    assert f"process {os.getpid()}" in refusal(tmp_path)
    store.close()


def test_reading_a_store_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        Store.read(tmp_path)
    with pytest.raises(StoreError, match="no such directory"):
        Store.read(tmp_path / "none")


def test_a_reader_cannot_write(tmp_path):
    open_store(tmp_path).close()
    reader = Store.read(tmp_path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM messages")
    reader.close()


def test_no_other_user_may_read_the_messages(tmp_path):
    store = open_store(tmp_path)
    asyncio.run(store.defer(make_delivery(), 1.0))
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give the directory away")
def test_files_that_root_creates_belong_to_the_owner_of_the_directory(tmp_path):
    os.chown(tmp_path, 1234, 1234)
    store = open_store(tmp_path)
    asyncio.run(store.defer(make_delivery(), 1.0))
    assert {file.stat().st_uid for file in tmp_path.iterdir()} == {1234}
    store.close()


def test_a_closed_store_leaves_the_database_and_the_lock_file(tmp_path):
    store = open_store(tmp_path)
    asyncio.run(store.defer(make_delivery(), 1.0))
    store.close()
    store.close()
    assert {file.name for file in tmp_path.iterdir()} == {"store.sqlite3", "store.lock"}


def test_a_store_with_missing_tables_is_refused_and_not_left_locked(tmp_path, database):
    open_store(tmp_path).close()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE messages")
    assert "no such table" in refusal(tmp_path)
    assert "no such table" in refusal(tmp_path)
