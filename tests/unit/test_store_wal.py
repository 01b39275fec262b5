# SPDX-License-Identifier: GPL-2.0-or-later
"""Damage in the write-ahead log is reported; the traces of a crash are no damage."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.wal import find_damage
from consumer_framework.core.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import asyncio, os, sys
from pathlib import Path
from consumer_framework.adapters.store import Store, Limits
from consumer_framework.testing import make_delivery
store = Store.open(Path(sys.argv[1]), limits=Limits())
for number in range(8):
    asyncio.run(store.defer(make_delivery(message_id=str(number), body=b"%d" % number), 1.0))
os.kill(os.getpid(), 9)
"""
HEADER = 32
FRAME = 24 + 4096


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Return the state of a killed process, with a log that is not in the database yet."""
    directory: Path = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", KILLED, str(directory)], check=False)
    return directory


@pytest.fixture
def state(killed, tmp_path) -> Path:
    copy: Path = tmp_path / "state"
    shutil.copytree(killed, copy)
    return copy


def wal(state: Path) -> Path:
    return state / "store.sqlite3-wal"


def frames(state: Path) -> int:
    return (wal(state).stat().st_size - HEADER) // FRAME


def scribble(state: Path, at: int, octets: bytes = b"\xa5" * 64) -> None:
    with wal(state).open("r+b") as stream:
        stream.seek(at)
        stream.write(octets)


def reopened(state: Path) -> int:
    """Open the store, and return the number of messages that are left."""
    with closing(Store.open(state, limits=Limits())) as store:
        count = len(store.rows(state=None))
        # The store takes new writes.
        asyncio.run(store.remove(99))
    assert list(state.glob("*-wal")) == []
    return count


def test_the_log_of_a_killed_process_is_not_damaged(state, caplog):
    assert reopened(state) == 8
    assert caplog.text == ""
    assert list(state.glob("damaged-*")) == []


def test_a_torn_tail_as_of_a_power_cut_is_not_damage(state, caplog):
    with wal(state).open("ab") as stream:
        stream.write(wal(state).read_bytes()[HEADER : HEADER + 1000])
    assert reopened(state) == 8
    with wal(state).open("wb") as stream:
        stream.write(b"half a header")
    assert reopened(state) == 8
    assert caplog.text == ""


@pytest.mark.parametrize(
    "where", ["header", "first page", "middle salts", "last page", "last salts"]
)
def test_random_bytes_in_the_log_are_reported_and_the_files_kept(state, caplog, where):
    last = HEADER + (frames(state) - 1) * FRAME
    at = {
        "header": 4,
        "first page": HEADER + 24 + 100,
        "middle salts": HEADER + frames(state) // 2 * FRAME + 8,
        "last page": last + 24 + 100,
        "last salts": last + 8,
    }[where]
    scribble(state, at)
    before = wal(state).read_bytes()
    assert reopened(state) < 8
    assert "store.sqlite3-wal: damaged: " in caplog.text
    [aside] = state.glob("damaged-*")
    assert str(aside) in caplog.text
    assert (aside / "store.sqlite3-wal").read_bytes() == before
    assert (aside / "store.sqlite3").exists()
    caplog.clear()
    reopened(state)
    assert caplog.text == "", "it is told once"


def test_frames_of_an_earlier_log_are_no_damage(state):
    whole = wal(state).read_bytes()
    count = frames(state)
    # A log that was begun anew has a first salt that is one more.
    salt = (int.from_bytes(whole[16:20], "big") - 1) % (1 << 32)
    for number in range(count // 2, count):
        scribble(state, HEADER + number * FRAME + 8, salt.to_bytes(4, "big"))
    assert find_damage(wal(state), count // 2) == ""
    assert "transactions cannot be read" in find_damage(wal(state), 0)
    assert find_damage(state / "none", 0) == ""


def test_nothing_is_overwritten_where_a_copy_has_no_room(state, monkeypatch):
    scribble(state, HEADER + 24 + 100)
    before = wal(state).read_bytes()

    def fail(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", fail)
        for _ in range(2):
            with pytest.raises(StoreError, match="no space left") as error:
                Store.open(state, limits=Limits())
            assert not error.value.lasting
    assert list(state.glob("damaged-*")) == []
    reopened(state)
    [aside] = state.glob("damaged-*")
    assert (aside / "store.sqlite3-wal").read_bytes() == before


def test_a_process_that_dies_during_the_check_changes_nothing(state):
    (state / "store.sqlite3-wal.held").hardlink_to(wal(state))
    assert reopened(state) == 8
    assert list(state.glob("*.held")) == []
