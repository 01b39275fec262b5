# SPDX-License-Identifier: GPL-2.0-or-later
"""A plain class is made before the event loop runs, as under ``fedora-messaging consume``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from .instance import publish, queue_table, until

UPSTREAM_COMMAND = [str(Path(sys.executable).with_name("fedora-messaging")), "consume"]
COMMANDS = pytest.mark.parametrize("command", [UPSTREAM_COMMAND, None], ids=["upstream", "ours"])

# Like fmn and fedbadges.
BRIDGE = """
import asyncio
class handler:
    def __init__(self):
        self.loop = asyncio.get_event_loop()
        if not self.loop.is_running():
            self.loop.run_until_complete(self.setup())
    async def setup(self):
        await asyncio.sleep(0)
        {setup}
    def __call__(self, message):
        if self.loop.is_running():
            asyncio.run_coroutine_threadsafe(self.handle(message), self.loop).result()
        else:
            self.loop.run_until_complete(self.handle(message))
    async def handle(self, message):
        note("done", message, greeting=self.greeting)
"""


def init(code):
    return f"""
import asyncio
class handler:
    def __init__(self):
        {code}
    def __call__(self, message):
        note("done", message)
"""


@COMMANDS
def test_a_coroutine_that_init_runs_on_the_loop_is_done_before_the_first_message(
    broker, queue_name, start, command
):
    handler = BRIDGE.format(setup="self.greeting = 'hello'")
    instance = start(broker.url, queue_table(queue_name), handler, command=command)
    consumes(broker, queue_name, instance)
    publish(broker.url, queue_name, range(3))
    assert [note["greeting"] for note in instance.noted("done", 3)] == ["hello"] * 3
    assert instance.stop() == 0


def consumes(broker, queue_name, instance):
    def depth():
        try:
            return broker.depth(queue_name)
        except Exception:  # noqa: BLE001 -- the queue is not there yet
            return None

    until(lambda: depth() == (0, 1), f"it consumes\n{instance.log}")


FAILURES = {
    "a coroutine that fails": BRIDGE.format(setup="raise ConnectionError('the database is gone')"),
    "an error": init("raise RuntimeError('no')"),
    "a broken dependency": init("raise ConnectionRefusedError('no')"),
    "asyncio.run that fails": init("asyncio.run(asyncio.wait_for(asyncio.Event().wait(), 0.01))"),
    "a value that is wrong": init("raise ValueError('no')"),
    "an exit": init("raise SystemExit(5)"),
}


@COMMANDS
@pytest.mark.parametrize("failure", FAILURES)
def test_an_init_that_fails_ends_the_process_as_upstream_does_and_takes_no_message(
    broker, queue_name, start, failure, command
):
    instance = start(broker.url, queue_table(queue_name), FAILURES[failure], command=command)
    codes = {"a value that is wrong": 2, "an exit": 5}
    assert instance.wait() == codes.get(failure, 1)
    assert "please report this defect" not in instance.log
    assert not instance.notes()


def test_asyncio_run_in_init_leaves_the_loop_in_its_place(broker, queue_name, start):
    handler = (
        init("asyncio.run(asyncio.sleep(0))")
        + """
    async def later(self):
        pass
"""
    )
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0


def test_a_handler_of_signals_that_init_sets_does_not_win(broker, queue_name, start):
    handler = init("""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.loop = asyncio.get_event_loop()
        self.loop.add_signal_handler(signal.SIGTERM, lambda: os._exit(99))
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
""")
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    instance.send(signal.SIGHUP)
    until(lambda: "nothing has changed" in instance.log, "it is reloaded")
    assert instance.stop() == 0


def test_a_signal_during_a_slow_init_ends_the_process_at_once(broker, queue_name, start):
    handler = init("print('begun', flush=True); time.sleep(600)")
    instance = start(broker.url, queue_table(queue_name), handler)
    until(lambda: "begun" in instance.log, "it is being made")
    assert instance.told("EXTEND_TIMEOUT_USEC="), "systemd is asked for time meanwhile"
    assert instance.stop() == -signal.SIGTERM


def test_a_reload_with_other_settings_of_a_plain_class_waits_for_a_restart(
    broker, queue_name, start
):
    handler = init("self.word = config.conf['consumer_config']['word']")
    extra = '[consumer_config]\nword = "one"\n'
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    text = instance.configuration.read_text()
    instance.configuration.write_text(text.replace('"one"', '"two"'))
    instance.send(signal.SIGHUP)
    until(lambda: "consumer_config.word: changed: takes a restart" in instance.log, instance.log)
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0


PUBLISH = "api.publish(Message(topic='answers', body={}))"
SENT = """
from fedora_messaging import api
from fedora_messaging.message import Message
"""


EARLY = {
    "at import": (f"{PUBLISH}\ndef handler(message): pass\n", 75),
    "in __init__": (init(PUBLISH), 1),
}


@pytest.mark.parametrize("where", EARLY)
def test_publishing_before_there_is_an_outbox_is_refused_at_once(broker, queue_name, start, where):
    handler, exit_code = EARLY[where]
    instance = start(broker.url, queue_table(queue_name), SENT + handler)
    assert instance.wait(25) == exit_code
    assert "the instance is not ready to publish yet" in instance.log
