# SPDX-License-Identifier: GPL-2.0-or-later
import asyncio
import errno
import logging
import os
import socket
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from consumer_framework.adapters.flight import Flight
from consumer_framework.adapters.store import Limits
from consumer_framework.core.errors import (
    ConfigurationError,
    ExitCode,
    FrameworkError,
    StoreError,
)
from consumer_framework.runtime.app import close_sockets
from consumer_framework.runtime.state_files import (
    is_directory_given,
    open_state_files,
    users_directory,
    wait_for_state_files,
)
from consumer_framework.settings import Framework, Ordering, StoreKind
from consumer_framework.testing import FakeClock, FakeNotifier, make_delivery


def test_a_message_that_a_process_died_with_is_named_with_its_fields(tmp_path, caplog):
    open_state_files(tmp_path, "sample", Framework()).close()
    flight, _ = Flight.open(tmp_path, 1)
    flight.took_off(make_delivery(message_id="id-1"))
    # Not landed: as by a process that is killed.
    flight.close()
    with caplog.at_level(logging.WARNING):
        open_state_files(tmp_path, "sample", Framework()).close()
    (record,) = caplog.records
    assert "the process died while message id-1 of " in record.getMessage()
    assert record.FM_MESSAGE_ID == "id-1"


def waiting(*results, patience=10.0):
    """Try to open with one of *results* at each try; return the outcome and the notifier."""
    clock, notifier = FakeClock(), FakeNotifier()
    tries = iter(results)

    def open_them():
        result = next(tries)
        if isinstance(result, Exception):
            raise result
        return result

    try:
        return wait_for_state_files(open_them, patience, notifier, clock, clock.advance), notifier
    except FrameworkError as error:
        return error, notifier


def test_a_start_waits_while_the_disk_is_full_and_reports_it(caplog):
    full = StoreError("/s/store.sqlite3: no space left on device; make room")
    stores, notifier = waiting(full, full, "open")
    assert stores == "open"
    assert "Starting: /s/store.sqlite3: no space left on device" in notifier.status_line
    assert "gives up in 9 s" in notifier.status_line
    assert caplog.text.count("waiting for the state directory") == 1


def test_a_start_that_waited_in_vain_may_succeed_later():
    in_use = StoreError("in use by process 1")
    fault, _ = waiting(*[in_use] * 100, patience=1.0)
    assert fault.exit_code == ExitCode.TEMPORARY
    assert str(fault) == "not started within 1s (start_timeout): in use by process 1"


def test_a_lasting_error_is_not_waited_for(tmp_path):
    file = tmp_path / "file"
    file.touch()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    for place in (file, link):
        with pytest.raises(
            ConfigurationError, match=r"move it away, or name another .*--state-dir"
        ):
            open_state_files(place, "sample", Framework())


def test_a_full_disk_is_no_error_of_the_configuration(tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", fail)
    with pytest.raises(StoreError, match="No space left"):
        open_state_files(tmp_path, "sample", Framework())


def test_a_forked_process_lets_go_of_the_sockets_of_the_reactor():
    ours, theirs = socket.socketpair()
    closed = socket.socket()
    closed.close()
    with ours, theirs:
        close_sockets(SimpleNamespace(getReaders=lambda: [ours, closed], getWriters=lambda: [ours]))
        assert theirs.recv(1) == b""


IN_MEMORY = Framework(store=StoreKind.MEMORY)


def test_without_a_store_nothing_is_on_the_disk_and_every_method_works(tmp_path):
    async def use(store):
        delivery = make_delivery(lane="a")
        assert not store.is_open(delivery)
        assert not store.is_blocked("a")
        assert (store.due(1e12), store.next_due(), store.count_due(1e12)) == ([], None, 0)
        assert (store.rows(state=None), store.stats().quarantined) == ([], 0)
        for write in (store.defer(delivery, 1.0), store.quarantine(delivery, "odd")):
            with pytest.raises(StoreError, match="no store"):
                await write
        await store.remove(1)
        assert await store.drop([1]) == []
        assert [await store.claim(1), await store.release(1), await store.resolve(1)] == [False] * 3
        assert await store.supersede(1, b"") is None
        assert (await store.expire(1e12)).rows == 0
        assert await store.rebase(0.0) == 0
        store.limit(Limits())
        assert store.commits == 0

    stores = open_state_files(tmp_path / "none", "sample", IN_MEMORY)
    asyncio.run(use(stores.store))
    place = stores.flight.took_off(make_delivery())
    stores.flight.landed(place)
    stores.close()
    assert (stores.directory, stores.store.keeps) == (None, False)
    assert list(tmp_path.iterdir()) == []


NOWHERE = Path("/proc/nowhere/sample")


def test_an_instance_without_a_usual_directory_runs_and_logs_the_loss(caplog):
    stores = open_state_files(NOWHERE, "sample", Framework(), is_given=False)
    stores.close()
    assert not stores.store.keeps
    assert "/proc/nowhere" in caplog.text
    assert "there is no quarantine" in caplog.text
    assert 'store = "memory"' in caplog.text


def test_a_directory_that_was_given_must_be_usable():
    with pytest.raises(ConfigurationError, match="--state-dir"):
        open_state_files(NOWHERE, "sample", Framework())


def test_ordering_is_refused_where_there_is_no_place_for_a_store():
    framework = Framework(ordering=Ordering.KEY, ordering_key="topic")
    with pytest.raises(ConfigurationError, match='ordering = "key" cannot do without it'):
        open_state_files(NOWHERE, "sample", framework, is_given=False)


def test_an_instance_never_runs_without_a_directory_that_has_messages(tmp_path, monkeypatch):
    open_state_files(tmp_path, "sample", Framework()).close()

    def fail(*_args):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("consumer_framework.adapters.store.files.create", fail)
    with pytest.raises(ConfigurationError):
        open_state_files(tmp_path, "sample", Framework(), is_given=False)


def test_messages_of_a_former_store_are_named(tmp_path, caplog):
    with closing(open_state_files(tmp_path, "sample", Framework())) as stores:
        asyncio.run(stores.store.quarantine(make_delivery(), "odd"))
    open_state_files(tmp_path, "sample", IN_MEMORY).close()
    assert f"1 messages in {tmp_path}/store.sqlite3 are not run" in caplog.text


def test_a_user_without_a_home_has_a_directory_to_try(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert users_directory("sample") == Path("/.local/state/fedora-messaging/sample")


def test_a_directory_is_given_by_the_command_line_or_the_unit(monkeypatch, tmp_path):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert not is_directory_given(None)
    assert is_directory_given(tmp_path)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert is_directory_given(None)
