# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness: authors test their consumers with it."""

import asyncio
import doctest
import tempfile
import time
from dataclasses import dataclass
from typing import Any, cast

import pytest
from fedora_messaging import api, config
from fedora_messaging.message import Message
from jsonschema import ValidationError

from consumer_framework import (
    Consumer,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Recovery,
    Retry,
    Skip,
)
from consumer_framework.author import translate
from consumer_framework.core import disposition as to
from consumer_framework.core.errors import ConfigurationError, StoreError
from consumer_framework.testing import Ack, Harness
from consumer_framework.testing import harness as harness_module
from consumer_framework.testing.fake_queue import FakeQueue


def message(n=1):
    return Message(topic="org.example.test", body={"n": n})


@pytest.mark.parametrize("module", [harness_module, translate])
def test_the_examples_in_the_docstrings_are_true(module):
    with translate.hosting():
        result = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert (result.failed, result.attempted > 0) == (0, True)


class Sample(Consumer):
    @dataclass
    class Config:
        word: str

    recovery = Recovery(immediate=0, delays=(3,))

    def setup(self):
        self.heard = ["setup"]

    def handle(self, message):
        self.heard.append(self.config.word)
        raise ValueError(self.heard)

    def teardown(self):
        pass


def test_a_consumer_has_its_config_its_setup_and_its_own_recovery():
    with Harness(Sample, config={"word": "hello"}) as harness:
        first = message()
        held = harness.deliver(first)
        assert isinstance(held, to.Hold)
        assert held.until == pytest.approx(harness.now + 3)
        harness.advance(3)
        assert harness.quarantined == [first]
        assert [a.message for a in harness.attempts(first)] == [
            "['setup', 'hello']",
            "['setup', 'hello', 'hello']",
        ]


def test_settings_override_the_class():
    settings = {"recovery": {"delays": ()}}
    with Harness(Sample, config={"word": "hello"}, settings=settings) as harness:
        assert isinstance(harness.deliver(message()), to.Quarantine)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"config": {"wrong": 1}}, "consumer_config"),
        ({"config": {"word": "x"}, "settings": {"slot": 1}}, "consumer_config.framework"),
    ],
)
def test_a_configuration_that_starts_no_instance_starts_no_harness(arguments, where):
    with pytest.raises(ConfigurationError, match=where):
        Harness(Sample, **arguments)


class Reads:
    def __init__(self):
        self.word = config.conf["consumer_config"]["word"]
        self.loop = asyncio.get_event_loop()

    async def __call__(self, message):
        assert self.loop is asyncio.get_running_loop()
        raise Skip(self.word)


def test_a_plain_class_reads_its_configuration_and_leaves_none_behind():
    before = dict(config.conf.items())
    with Harness(Reads, config={"word": "hello"}) as harness:
        assert harness.deliver(message()) == to.Ack()
    assert dict(config.conf.items()) == before


def test_a_coroutine_sleeps_in_virtual_time():
    async def handler(_message):
        await asyncio.sleep(300)

    with Harness(handler) as harness:
        first = message()
        assert harness.deliver(first) is None
        harness.advance("4m")
        assert harness.unsettled == [first]
        harness.advance("1m")
        assert harness.acked == [first]


def test_a_coroutine_may_await_the_world_outside():
    async def handler(_message):
        await asyncio.to_thread(lambda: None)

    with Harness(handler, patience=20) as harness:
        assert harness.deliver(message()) == to.Ack()


def test_a_coroutine_method_may_await_a_thread_though_it_has_a_time_limit():
    class Threaded(Consumer):
        async def handle(self, message):
            await asyncio.to_thread(time.sleep, 0.05)

    with Harness(Threaded) as harness:
        assert harness.deliver(message()) == to.Ack()


def test_an_error_of_setup_is_raised():
    class Broken(Sample):
        def setup(self):
            raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"), Harness(Broken, config={"word": ""}):
        pass


def test_a_dropped_connection_brings_back_held_messages_with_their_attempts():
    with Harness(Sample, config={"word": "hello"}) as harness:
        first = message()
        harness.deliver(first)
        harness.cut()
        assert harness.requeued == [first]
        harness.advance(1)
        assert harness.quarantined == [first]


def test_a_killed_process_counts_as_a_crash_of_the_message():
    with Harness(lambda _: None) as harness:
        once, twice = message(1), message(2)
        assert harness.deliver(once, kills=1) == to.Ack()
        assert isinstance(harness.deliver(twice, kills=2), to.Quarantine)


def test_a_restart_gives_back_held_messages():
    with Harness(Sample, config={"word": "hello"}) as harness:
        first = message()
        harness.deliver(first)
        harness.restart()
        assert harness.requeued == [first]


def test_a_halted_instance_takes_nothing_until_it_is_started_again():
    def handler(_message):
        if len(harness.runs(first)) == 1:
            raise Halt(4, "enough", requeue=True)

    with Harness(handler) as harness:
        first, second = message(1), message(2)
        harness.deliver(first)
        assert harness.halted == to.Halt(4, requeue=True, reason="enough")
        assert harness.deliver(second) is None
        assert harness.queued == [first, second]
        harness.restart()
        harness.advance(1)
        assert harness.acked == [first, second]


def test_messages_that_wait_for_a_slot_when_the_instance_halts_stay_in_the_queue():
    async def handler(message):
        if message.body["n"] == 2:
            await asyncio.sleep(1)
            raise Halt(4)

    with Harness(handler) as harness:
        messages = [message(n) for n in range(1, 5)]
        # After a quick first one, several are ready for the slot.
        for each in messages:
            harness.deliver(each)
        harness.advance(10)
        assert harness.acked == messages[:2]
        assert harness.queued == messages[2:]
        assert [len(harness.runs(each)) for each in messages] == [1, 1, 0, 0]


def test_a_broken_dependency_pauses_and_a_probe_resumes():
    def handler(_message):
        if harness.now < back:
            raise DependencyFault("database")

    with Harness(handler, settings={"recovery": {"breaker": {"consecutive": 1}}}) as harness:
        back = harness.now + 100
        first, second = message(1), message(2)
        harness.deliver(first)
        assert "database" in harness.paused
        assert harness.deliver(second) is None
        harness.advance("10m")
        assert (harness.paused, harness.acked) == ("", [first, second])
        assert harness.attempts(first) == ()


def test_messages_that_wait_for_a_slot_while_a_dependency_breaks_are_no_probes():
    async def handler(message):
        if message.body["n"] > 1:
            await asyncio.sleep(1)
            if harness.now < back:
                raise DependencyFault("database")

    with Harness(handler, settings={"recovery": {"breaker": {"consecutive": 1}}}) as harness:
        back = harness.now + 100
        messages = [message(n) for n in range(1, 5)]
        # After a quick first one, several are ready for the slot.
        for each in messages:
            harness.deliver(each)
        harness.advance(20)
        assert harness.paused == "database; next probe in 30 s"
        assert [len(harness.runs(each)) for each in messages] == [1, 1, 0, 0]
        harness.advance("10m")
        assert (harness.paused, harness.acked) == ("", messages)


def test_a_full_disk_pauses_and_nothing_is_acknowledged_before_there_is_room():
    with Harness(Sample, config={"word": "hello"}) as harness:
        harness.store.error = StoreError("no space left")
        assert harness.deliver_raw(b"no json", message_id="1", headers={}) is None
        assert (harness.paused, harness.unsettled) == ("no space left", [b"no json"])
        harness.store.error = None
        harness.advance("10s")
        assert (harness.paused, harness.quarantined) == ("", [b"no json"])


def test_a_drop_is_a_rejection():
    def handler(_message):
        raise Drop("old")

    with Harness(handler) as harness:
        first = message()
        assert harness.deliver(first) == to.Reject("old")
        assert harness.rejected == [first]


def test_a_message_that_was_never_delivered_has_no_attempts():
    with Harness(lambda _: None) as harness, pytest.raises(LookupError, match="never delivered"):
        harness.attempts(message())


def test_a_deferred_message_that_waited_for_a_slot_when_the_store_failed_comes_back_later():
    async def handler(message):
        number = message.body["n"]
        if number == 2:
            await asyncio.sleep(10)
            raise Quarantine("odd")
        if len(harness.runs(messages[number])) == 1:
            raise Retry(after=30)
        await asyncio.sleep(10)

    settings = {"recovery": {"hold_slots": 0}}
    with Harness(handler, patience=0, settings=settings) as harness:
        messages = {n: Message(topic="a", body={"n": n}) for n in (1, 2, 4)}
        harness.deliver(messages[1])
        harness.deliver(messages[4])
        harness.advance(25)
        harness.deliver(messages[2])
        harness.advance(6)
        harness.store.error = StoreError("full")
        harness.advance(6)
        harness.store.error = None
        harness.advance("24h")
        assert {message.body["n"] for message in harness.acked} == {1, 4}
        assert harness.deferred == []


# Orders of an operator.


def poison_until_mended(mended):
    def handle(message):
        if not mended:
            raise Quarantine("poison")

    return handle


def test_a_quarantined_message_can_be_replayed():
    mended: list[bool] = []
    with Harness(poison_until_mended(mended)) as harness:
        first = message()
        harness.deliver(first)
        assert isinstance(harness.replay(first), to.Quarantine)
        assert harness.quarantined == [first]
        mended.append(True)
        assert harness.replay(first) == to.Ack()
        assert harness.quarantined == []
        assert harness.acked == [first]
        assert len(harness.runs(first)) == 3


def test_a_quarantined_message_can_be_dropped():
    with Harness(poison_until_mended([])) as harness:
        first = message()
        harness.deliver(first)
        harness.drop(first)
        assert harness.quarantined == harness.store.quarantined == []
        assert harness.rejected == [first]


def test_only_a_quarantined_message_that_is_first_of_its_key_can_be_replayed():
    mended: list[bool] = []
    settings = {"ordering": "key", "ordering_key": "topic"}
    with Harness(poison_until_mended(mended), settings=settings) as harness:
        messages = [message(n) for n in (1, 2)]
        with pytest.raises(LookupError, match="never delivered"):
            harness.replay(messages[0])
        for one in messages:
            harness.deliver(one)
        assert harness.quarantined == messages
        assert harness.runs(messages[1]) == [], "behind the first"
        with pytest.raises(LookupError, match="behind another one"):
            harness.replay(messages[1])
        mended.append(True)
        for one in messages:
            assert harness.replay(one) == to.Ack()
        with pytest.raises(LookupError, match="not quarantined"):
            harness.drop(messages[0])


def test_a_message_in_a_replay_cannot_be_replayed_or_dropped():
    async def handle(message):
        await asyncio.sleep(10)
        if len(harness.runs(first)) == 1:
            raise Quarantine("poison")

    with Harness(handle) as harness:
        first = message()
        harness.deliver(first)
        harness.advance(10)
        assert harness.replay(first) is None
        for order in (harness.replay, harness.drop):
            with pytest.raises(LookupError, match="is being replayed"):
                order(first)
        harness.advance(10)
        assert harness.acked == [first]


# Publications and files of a consumer.


class Archive(Consumer):
    def __init__(self, config):
        super().__init__(config)
        (self.state_dir / "made").write_text("in __init__")

    def handle(self, message):
        with (self.state_dir / "seen").open("a") as seen:
            seen.write(f"{message.body['n']}\n")


def test_a_consumer_finds_its_files_again_after_a_crash_and_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Harness(Archive) as harness:
        harness.deliver(message(1))
        harness.crash()
        harness.deliver(message(2))
        harness.restart()
        [directory] = tmp_path.iterdir()
        assert (directory / "seen").read_text() == "1\n2\n"
        assert (directory / "made").read_text() == "in __init__"
        assert directory.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_without_a_host_a_consumer_has_no_directory():
    class Bare(Consumer):
        def handle(self, message):
            pass

    with pytest.raises(RuntimeError, match="state_dir is known only in an instance"):
        _ = Bare({}).state_dir


def test_messages_that_a_handler_publishes_are_recorded_with_signals_and_not_sent():
    signals = []

    def note(sender, message):
        signals.append(message)

    def handler(message):
        api.publish(Message(topic="org.example.answer", body=message.body))

    api.publish_signal.connect(note)
    try:
        with Harness(handler) as harness:
            assert isinstance(harness.deliver(message(7)), Ack)
    finally:
        api.publish_signal.disconnect(note)
    assert [sent.body for sent in harness.published] == [{"n": 7}]
    assert signals == harness.published


def test_a_message_that_does_not_fit_its_schema_cannot_be_published():
    failures = []

    def note(sender, message, reason):
        failures.append(reason)

    def handler(_message):
        api.publish(Message(topic="a.topic", body=cast("Any", ["no object"])))

    api.publish_failed_signal.connect(note)
    try:
        with Harness(handler, settings={"recovery": {"immediate": 0, "delays": []}}) as harness:
            first = message()
            assert isinstance(harness.deliver(first), to.Quarantine)
    finally:
        api.publish_failed_signal.disconnect(note)
    assert harness.published == []
    assert [type(reason) for reason in failures] == [ValidationError]
    assert harness.attempts(first)[-1].error.endswith("ValidationError")


@pytest.mark.parametrize("slots", [1, 2])
def test_a_cut_in_each_attempt_gives_a_message_no_additional_attempts(slots):
    async def fail(message):
        await asyncio.sleep(2)
        raise ValueError

    settings = {"slots": slots, "recovery": {"immediate": 2, "delays": ()}}
    with Harness(fail, settings=settings) as harness:
        first = message()
        harness.deliver(first)
        for _ in range(20):
            harness.advance(1)
            harness.cut()
        assert len(harness.runs(first)) == 3
        assert len(harness.attempts(first)) == 3, "each with its traceback"
        assert harness.quarantined == [first]


def test_an_error_after_the_write_of_a_message_is_not_swallowed(monkeypatch):
    def ack(self, delivery):
        raise RuntimeError("a defect")

    monkeypatch.setattr(FakeQueue, "ack", ack)

    def quarantine(message):
        raise Quarantine("odd")

    with Harness(quarantine) as harness, pytest.raises(RuntimeError, match="a defect"):
        harness.deliver(message())


def test_a_restart_leaves_a_replay_that_did_not_begin_in_quarantine():
    async def slow(message):
        await asyncio.sleep(3)

    with Harness(slow) as harness:
        harness.deliver_raw(b"no json", message_id="one")
        assert harness.deliver(message()) is None
        assert harness.replay(b"no json") is None
        harness.restart()
        harness.advance("1m")
        assert harness.quarantined == [b"no json"]
        assert len(harness.acked) == 1


@pytest.mark.parametrize("handler", [lambda: None, lambda self, message, queue: None, 3])
def test_the_harness_refuses_a_handler_that_an_instance_refuses(handler):
    class Unfit:
        __call__ = handler

    with pytest.raises(ConfigurationError, match="callback: "):
        Harness(Unfit)
