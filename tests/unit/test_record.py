# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer record`` without a broker: its file when a signal comes at the wrong moment."""

import os
import signal

import pytest
from click.testing import CliRunner

from consumer_framework.adapters.store import export
from consumer_framework.cli import main
from consumer_framework.kit import recorded
from consumer_framework.operate import watching


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_messages_are_recorded_although_a_signal_comes_amid_the_write(
    tmp_path, monkeypatch, number
):
    write = export.append

    def append(file, lines):
        if lines:
            os.kill(os.getpid(), number)
        write(file, lines)

    def watch(*_, **_options):
        yield from [recorded.delivery_of({"topic": "a", "body": {}})] * 2

    monkeypatch.setattr(export, "append", append)
    monkeypatch.setattr(watching, "watch", watch)
    file = tmp_path / "recorded.jsonl"
    done = CliRunner().invoke(main, ["record", "--url", "amqp://localhost", str(file)])
    assert done.exit_code == 0, done.output
    assert "2 messages recorded" in done.output
    assert len(list(recorded.read(file))) == 2
