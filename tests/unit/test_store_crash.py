# SPDX-License-Identifier: GPL-2.0-or-later
"""A write that was reported as done survives the death of the process and faults of the disk."""

import asyncio
import errno
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.files import open_writable
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

ROUNDS = 20

# Writes from many tasks at once, and prints each write that is done. The sizes differ, so that it
# dies in commits, in checkpoints and in between.
WRITER = """
import asyncio, sys
from pathlib import Path
from consumer_framework.adapters.store import Store, Limits
from consumer_framework.testing import make_delivery

async def task(store, name):
    for number in range(100_000):
        message_id = f"{name}.{number}"
        delivery = make_delivery(message_id=message_id, body=b"x" * (number * 97 % 20_000))
        if number % 3:
            await store.quarantine(delivery, "poison")
        else:
            await store.defer(delivery, 1.0)
        print(message_id, flush=True)

async def main(name):
    store = Store.open(Path(sys.argv[1]), limits=Limits())
    await asyncio.gather(*(task(store, f"{name}.{n}") for n in range(8)))

print("ready", flush=True)
asyncio.run(main(sys.stdin.readline().strip()))
"""

# Many tasks at once write, fail, replay and remove rows of a few lanes.
LANES = """
import asyncio, random, sys
from pathlib import Path
from consumer_framework.adapters.store import Store, Limits
from consumer_framework.testing import make_delivery

async def arrive(store, name):
    for number in range(100_000):
        delivery = make_delivery(message_id=f"{name}.{number}", body=b"x" * (number * 97 % 5_000))
        await store.defer(delivery._replace(lane=f"key {number % 5}"), 1.0)
        print(number, flush=True)

async def work(store, luck):
    while True:
        for delivery in store.due(9.0, 5):
            if luck.random() < 0.3:
                await store.quarantine(delivery, "poison")
            else:
                await store.remove(delivery.row)
        for row in store.rows(limit=10):
            if await store.claim(row.id):
                ends = (store.resolve, store.release, store.remove)
                await luck.choice(ends)(row.id)
            elif luck.random() < 0.1:
                await store.supersede(row.id, b"edited")
        await asyncio.sleep(0)

async def main(name):
    store = Store.open(Path(sys.argv[1]), limits=Limits())
    arrivals = (arrive(store, f"{name}.{n}") for n in range(4))
    await asyncio.gather(*arrivals, work(store, random.Random(name)))

print("ready", flush=True)
asyncio.run(main(sys.stdin.readline().strip()))
"""

# Like WRITER, but for a while no file may grow beyond a size.
LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from consumer_framework.adapters.store import Store, Limits
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    store = Store.open(Path(sys.argv[1]), limits=Limits())
    limit(500_000)
    for number in range(100):
        try:
            await store.quarantine(make_delivery(message_id=str(number), body=b"x" * 20_000), "")
        except StoreError as error:
            print("failed", number, error)
            limit(resource.RLIM_INFINITY)
        else:
            print("done", number)
    store.close()

asyncio.run(main())
"""


def program(code, directory):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def check_integrity(directory):
    with closing(sqlite3.connect(directory / "store.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def kept(directory):
    with closing(Store.read(directory)) as store:
        return {row.message_id for row in store.rows(state=None)}


def test_commits_are_synced_to_the_disk(tmp_path):
    with closing(open_writable(tmp_path / "store.sqlite3")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_write_that_was_reported_as_done_survives_sigkill(tmp_path):
    luck = random.Random(3)  # noqa: S311 -- not for secrets
    # Started ahead, since the start takes long.
    writers = [program(WRITER, tmp_path) for _ in range(ROUNDS)]
    reported: set[str] = set()
    for number, writer in enumerate(writers):
        with writer:
            assert writer.stdout.readline() == "ready\n"
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
            reported.add(writer.stdout.readline().rstrip("\n"))
            time.sleep(luck.uniform(0, 0.05))
            writer.kill()
            # The last line may be cut.
            reported.update(writer.stdout.read().split("\n")[:-1])
        assert reported <= kept(tmp_path)
    check_integrity(tmp_path)
    assert len(reported) > 10 * ROUNDS
    store = Store.open(tmp_path, limits=Limits())
    stats = store.stats()
    store.close()
    assert stats.deferred + stats.quarantined == len(kept(tmp_path))


def check_lanes(directory):
    """Check that the process that died left every lane in order."""
    lanes: dict[str, list[tuple[str, int]]] = {}
    query = """SELECT lane, state, waits FROM messages WHERE state <> 'superseded'
        ORDER BY position"""
    with closing(sqlite3.connect(directory / "store.sqlite3")) as connection:
        for lane, state, waits in connection.execute(query):
            lanes.setdefault(lane, []).append((state, waits))
    assert lanes
    for rows in lanes.values():
        states = [state for state, _ in rows]
        assert [waits for _, waits in rows] == [0] + [1] * (len(rows) - 1)
        assert "replaying" not in states[1:]
        if "quarantined" in states:
            assert "deferred" not in states[states.index("quarantined") :]


def test_a_sigkill_leaves_every_lane_in_order(tmp_path):
    luck = random.Random(4)  # noqa: S311 -- not for secrets
    writers = [program(LANES, tmp_path) for _ in range(ROUNDS // 2)]
    for number, writer in enumerate(writers):
        with writer:
            assert writer.stdout.readline() == "ready\n"
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
            writer.stdout.readline()
            time.sleep(luck.uniform(0.05, 0.2))
            writer.kill()
        check_lanes(tmp_path)
    check_integrity(tmp_path)
    store = Store.open(tmp_path, limits=Limits())
    check_lanes(tmp_path)
    lanes = {row.lane for row in store.rows(state=None)}
    assert all(store.is_blocked(lane) for lane in lanes)
    assert store.stats().replaying == 0
    store.close()


def test_a_write_fails_while_the_disk_is_full_and_the_next_one_succeeds(tmp_path):
    with program(LIMITED, tmp_path) as ended:
        output, _ = ended.communicate()
    lines = [line.split(" ", 2) for line in output.splitlines()]
    failed = [number for word, number, *_ in lines if word == "failed"]
    assert len(failed) == 1, output
    assert len(lines) == 100
    assert str(tmp_path / "store.sqlite3") in output
    assert kept(tmp_path) == {str(number) for number in range(100)} - set(failed)
    check_integrity(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("cannot mount a tmpfs")
        pytest.skip("needs root, to mount a tmpfs")
    yield disk
    # Lazily, since a test that failed leaves files open.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk):
    """Fill the disk with one file; return that file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(b"x" * 4096):
            pass
    return filler


def write(store, ids):
    """Quarantine a burst; return the ids whose write succeeded, and the errors of the others."""

    async def burst():
        writes = [
            store.quarantine(make_delivery(message_id=message_id, body=b"x" * 2000), "")
            for message_id in ids
        ]
        return await asyncio.gather(*writes, return_exceptions=True)

    results = dict(zip(ids, asyncio.run(burst()), strict=True))
    assert all(result is None or isinstance(result, StoreError) for result in results.values())
    return (
        {message_id for message_id, result in results.items() if result is None},
        [str(result) for result in results.values() if result is not None],
    )


def test_a_full_disk_fails_every_write_until_there_is_room_again(small_disk):
    store = Store.open(small_disk, limits=Limits())
    before, errors = write(store, ["1", "2"])
    assert not errors
    filler = fill(small_disk)
    during, errors = write(store, [f"full.{n}" for n in range(50)])
    assert errors
    assert set(errors) == {
        f"{small_disk / 'store.sqlite3'}: database or disk is full; make room on the disk"
    }
    again, errors = write(store, ["still full"] * 1 + [f"full2.{n}" for n in range(50)])
    assert errors
    filler.unlink()
    after, errors = write(store, [f"room.{n}" for n in range(50)])
    assert not errors
    written = before | during | again | after
    assert {row.message_id for row in store.rows()} == written
    store.close()
    assert kept(small_disk) == written
    check_integrity(small_disk)


def test_nothing_expires_while_a_full_disk_takes_no_export(small_disk):
    store = Store.open(small_disk, limits=Limits(max_age=1.0))
    write(store, [str(n) for n in range(50)])
    export = small_disk / "expired.jsonl"
    export.write_text("{}\n")
    filler = fill(small_disk)
    with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC).lower()):
        asyncio.run(store.expire(1e12))
    assert export.read_text() == "{}\n"
    assert store.stats().quarantined == 50
    filler.unlink()
    assert asyncio.run(store.expire(1e12)).rows == 50
    assert len(export.read_text().splitlines()) == 51
    store.close()


def test_a_store_that_is_deleted_while_in_use_takes_no_more_writes(tmp_path):
    store = Store.open(tmp_path, limits=Limits())
    (tmp_path / "store.sqlite3").rename(tmp_path / "moved")
    _, errors = write(store, ["1"])
    assert "no such file" in errors[0]
    (tmp_path / "store.sqlite3").touch()
    _, errors = write(store, ["1"])
    assert "replaced while in use; restart the instance" in errors[0]
    (tmp_path / "moved").replace(tmp_path / "store.sqlite3")
    _, errors = write(store, ["1"])
    assert not errors
    store.close()
