# SPDX-License-Identifier: GPL-2.0-or-later
import errno
import logging
import os
import socket
from types import SimpleNamespace

import pytest

from consumer_framework.adapters.flight import Flight
from consumer_framework.core.errors import (
    ConfigurationError,
    ExitCode,
    FrameworkError,
    JournalError,
)
from consumer_framework.core.settings import Framework
from consumer_framework.host.forks import let_go
from consumer_framework.host.stores import open_stores, wait_for_stores
from consumer_framework.testing import FakeClock, FakeNotifier, make_delivery


def test_a_message_that_a_process_died_with_is_named_with_its_fields(tmp_path, caplog):
    open_stores(tmp_path, "sample", Framework()).close()
    flight, _ = Flight.open(tmp_path, 1)
    flight.took_off(make_delivery(message_id="id-1"))
    # Not landed: as by a process that is killed.
    flight.close()
    with caplog.at_level(logging.WARNING):
        open_stores(tmp_path, "sample", Framework()).close()
    (record,) = caplog.records
    assert "the process died while message id-1 of " in record.getMessage()
    assert record.FM_MESSAGE_ID == "id-1"


def waiting(*results, patience=10.0):
    """Open stores that say so at each try; returns what came of it, and what was told."""
    clock, notifier = FakeClock(), FakeNotifier()
    tries = iter(results)

    def open_them():
        result = next(tries)
        if isinstance(result, Exception):
            raise result
        return result

    try:
        return wait_for_stores(open_them, patience, notifier, clock, clock.advance), notifier
    except FrameworkError as error:
        return error, notifier


def test_a_start_waits_while_the_disk_is_full_and_says_so(caplog):
    full = JournalError("/s/journal.sqlite3: no space left on device; make room")
    stores, notifier = waiting(full, full, "open")
    assert stores == "open"
    assert "Starting: /s/journal.sqlite3: no space left on device" in notifier.status_line
    assert "gives up in 9 s" in notifier.status_line
    assert caplog.text.count("waiting for the state directory") == 1


def test_a_start_that_waited_in_vain_may_succeed_later():
    in_use = JournalError("in use by process 1")
    fault, _ = waiting(*[in_use] * 100, patience=1.0)
    assert fault.exit_code == ExitCode.TEMPORARY
    assert str(fault) == "not started within 1s (start_timeout): in use by process 1"


def test_what_never_passes_is_not_waited_for(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match="--state-dir"):
        open_stores(file, "sample", Framework())


def test_a_full_disk_is_no_error_of_the_configuration(tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", fail)
    with pytest.raises(JournalError, match="No space left"):
        open_stores(tmp_path, "sample", Framework())


def test_a_forked_process_lets_go_of_the_sockets_of_the_reactor():
    ours, theirs = socket.socketpair()
    closed = socket.socket()
    closed.close()
    with ours, theirs:
        let_go(SimpleNamespace(getReaders=lambda: [ours, closed], getWriters=lambda: [ours]))
        assert theirs.recv(1) == b""
