# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer top`` in a terminal of 80 columns and 24 lines, with an instance that works."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pytest

from .instance import FM_CONSUMER, publish, queue_table, until

pyte = pytest.importorskip("pyte")

HANDLER = """
def handler(message):
    note("start", message)
    if message.body["n"] == 0:
        raise ValueError("no name")
    time.sleep(600)
"""
RECOVERY = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n"
COLUMNS, LINES = 80, 24


class Terminal:
    """A command in a terminal, and the screen of the terminal."""

    def __init__(self, *words, **environment):
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [str(FM_CONSUMER), *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(theirs)

    @property
    def text(self):
        return "\n".join(self._screen.display)

    def shows(self, *texts, seconds=30):
        end = time.monotonic() + seconds
        while missing := [text for text in texts if text not in self.text]:
            assert time.monotonic() < end, f"no {missing} in\n{self.text}"
            self._read()

    def press(self, keys):
        os.write(self._own, keys.encode())

    def ends(self, seconds=30):
        """Return the exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self._read()
        return self.process.poll()

    def _read(self):
        if select.select([self._own], [], [], 0.1)[0]:
            try:
                self._stream.feed(os.read(self._own, 65536))
            except OSError:
                time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._own)


def test_the_screen_shows_the_work_of_an_instance_and_pauses_it(
    broker, queue_name, start, short_tmp_path
):
    state = str(short_tmp_path / "instance")
    places = {"STATE_DIRECTORY": state, "RUNTIME_DIRECTORY": state}
    queues = queue_table(queue_name)
    instance = start(broker.url, queues, HANDLER, extra=RECOVERY, environment=places).ready()
    publish(broker.url, queue_name, [0, 1])
    instance.noted("start", 2)
    with Terminal("top", "instance", "--state-dir", state, "--interval", "500ms") as terminal:
        terminal.shows("1 instance: 1", "INSTANCE", "instance", "details")
        terminal.press("\r")
        terminal.shows("IN FLIGHT", queue_name, "in handler")
        terminal.shows("SLOWEST HANDLERS", "1 run", "IN QUARANTINE", "ValueError: no name")
        terminal.press("p")
        terminal.shows("pause instance? y/n")
        terminal.press("y")
        terminal.shows("paused")
        until(lambda: instance.told("STATUS=Paused"), "the instance is paused")
        terminal.press("\x1b")
        terminal.shows("1 instance: 1 paused")
        terminal.press("r")
        terminal.shows("resume instance? y/n")
        terminal.press("y")
        terminal.shows("takes messages")
        terminal.press("q")
        assert terminal.ends() == 0


def test_ctrl_c_ends_the_screen(short_tmp_path):
    with Terminal("top", XDG_STATE_HOME=str(short_tmp_path)) as terminal:
        terminal.shows("quit")
        terminal.press("\x03")
        assert terminal.ends() in {0, 130}
