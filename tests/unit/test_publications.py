# SPDX-License-Identifier: GPL-2.0-or-later
"""Publishing in a consumer's process: the seam to fedora-messaging, tests' tools, the sender."""

import asyncio
import os
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fedora_messaging import api
from fedora_messaging.exceptions import (
    ConnectionException,
    PublishException,
    PublishForbidden,
    PublishReturned,
    PublishTimeout,
)
from fedora_messaging.message import Message
from fedora_messaging.testing import mock_sends
from sqlalchemy.orm import Session

from consumer_framework import BatchConsumer, Drop, publishing
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.errors import ConfigurationError, StoreError
from consumer_framework.publishing import upstream
from consumer_framework.publishing.messengers import Reject, Retry, Scope, Sent
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.publishing.shared import SharedSender
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.runtime import publications
from consumer_framework.runtime.publications import Publications, has_rows
from consumer_framework.settings import parse
from consumer_framework.testing import Ack, Harness, Hold, capture_outbox
from consumer_framework.testing.fakes import FakeClock
from consumer_framework.testing.harness import document_of
from tests.unit.outboxes import message as outgoing_message

pytest_plugins = ["consumer_framework.pytest_plugin"]
PATIENCE = 20


def a_message(topic="org.example.made", **body):
    return Message(topic=topic, body=body)


# mock_sends and capture_outbox.


@pytest.mark.parametrize(
    "publish",
    [
        api.publish,
        publishing.publish,
        lambda message: asyncio.run(publishing.publish_async(message)),
        lambda message: Outbox("sqlite:////nowhere/o", opens_late=True).publish(message),
    ],
)
def test_mock_sends_sees_every_way_to_publish_and_nothing_is_stored(publish):
    with mock_sends(Message(topic="org.example.made", body={"n": 1}), Message) as sent:
        publish(a_message(n=1))
        publish(a_message(n=2))
    assert [message.body["n"] for message in sent] == [1, 2]


@pytest.mark.parametrize("publish", [api.publish, publishing.publish])
def test_mock_sends_works_in_the_harness(publish):
    with (
        Harness(lambda message: publish(a_message(n=message.body["n"]))) as harness,
        mock_sends(Message),
    ):
        assert isinstance(harness.deliver(a_message(n=1)), Ack)
        assert harness.published == []


def test_mock_sends_fails_as_ever_if_another_number_was_published():
    with pytest.raises(AssertionError, match="Expected 1"), mock_sends(Message):
        pass


def test_the_fixture_captures_what_a_test_publishes(capture_outbox):
    sent = publishing.publish(a_message(n=1), ordering_key="k", exchange="x")
    assert [message.body for message in capture_outbox] == [{"n": 1}]
    assert capture_outbox[:1][0].id == sent.id
    assert (capture_outbox.outgoing[0].ordering_key, capture_outbox.outgoing[0].exchange) == (
        "k",
        "x",
    )
    assert len(capture_outbox) == 1
    assert "org.example.made" in repr(capture_outbox)


def test_a_block_that_raises_captures_nothing():
    def fail():
        with publishing.default().transaction():
            publishing.publish(a_message())
            raise ZeroDivisionError

    with capture_outbox() as captured:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert captured != [1]
        assert list(captured) == []


def test_the_outbox_of_an_application_is_captured_and_used_again_afterwards(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3")
    outbox.prepared()
    engine = outbox.store.engine
    with capture_outbox(outbox) as captured, Session(engine) as session:
        outbox.publish(a_message(n=1))
        outbox.publish(a_message(n=1), session=session)
    assert len(captured) == 2
    assert outbox.store.rows() == []
    outbox.publish(a_message(n=2))
    assert len(outbox.store.rows()) == 1
    outbox.close()


# The harness.


def test_the_harness_shows_what_each_message_published():
    def handler(message):
        api.publish(a_message(n=message.body["n"]))
        publishing.publish(a_message(n=-message.body["n"]))
        if message.body["n"] == 2:
            raise Drop("no")

    first, second = a_message(n=1), a_message(n=2)
    with Harness(handler) as harness:
        harness.deliver(first)
        harness.deliver(second)
        assert [one.body["n"] for one in harness.published] == [1, -1]
        assert [one.body["n"] for one in harness.published_by(first)] == [1, -1]
        assert harness.published_by(second) == []


def test_a_message_whose_answers_cannot_be_stored_stays_unsettled_in_the_harness():
    message = a_message(n=1)
    with Harness(lambda _message: api.publish(a_message(n=2))) as harness:
        harness.outbox.error = StoreError("disk full")
        harness.deliver(message)
        assert harness.paused == "disk full"
        assert (harness.unsettled, harness.published) == ([message], [])
        harness.outbox.error = None
        harness.advance(5)
        assert harness.acked == [message]
        assert harness.published[0].body == {"n": 2}
        assert not harness.paused


def test_a_retry_in_the_harness_publishes_once():
    runs = []

    def handler(_message):
        runs.append(1)
        api.publish(a_message(n=len(runs)))
        if len(runs) < 3:
            raise ValueError("not yet")

    with Harness(handler) as harness:
        assert isinstance(harness.deliver(a_message()), Hold)
        harness.advance("10s")
        assert [one.body["n"] for one in harness.published] == [3]


def test_direct_publishing_in_the_harness_is_there_at_once():
    def handler(_message):
        api.publish(a_message(n=1))
        raise Drop("no")

    with Harness(handler, settings={"publishing": "direct"}) as harness:
        harness.deliver(a_message())
        assert len(harness.published) == 1


def test_a_batch_in_the_harness_publishes_for_each_of_its_messages():
    class Batches(BatchConsumer):
        def handle_batch(self, messages):
            publishing.publish(a_message(n=len(messages)))

    message = a_message()
    with Harness(Batches, settings={"batch": {"size": 2}}) as harness:
        harness.deliver(message)
        harness.advance(2)
        assert [one.body for one in harness.published_by(message)] == [{"n": 1}]


# The sender of direct publishing.


class Scripted:
    """A messenger that answers with one result after the other; the last one stays."""

    features: frozenset[Any] = frozenset()

    def __init__(self, *results):
        self.results = list(results)
        self.sent = []
        self.closed = 0

    def open(self):
        if isinstance(self.results[0], ConnectionError):
            raise self._next()

    def send_many(self, batch):
        self.sent += batch
        result = self._next()
        if isinstance(result, Exception):
            raise result
        return [result] * len(batch)

    def close(self):
        self.closed += 1

    def _next(self):
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]


@contextmanager
def direct(messenger, monkeypatch=None):
    sender = SharedSender(lambda: messenger, lambda: "amq.topic", lambda: "")
    with upstream.replaced(upstream.publish_and_wait(sender.begin)):
        yield sender
    sender.stop(PATIENCE)


@pytest.fixture
def signals():
    """The blinker signals of fedora-messaging, by their names."""
    found = []

    def pre(_sender, message):
        found.append("pre")

    def done(_sender, message):
        found.append("done")

    def failed(_sender, message, reason):
        found.append(type(reason).__name__)

    api.pre_publish_signal.connect(pre)
    api.publish_signal.connect(done)
    api.publish_failed_signal.connect(failed)
    yield found
    api.pre_publish_signal.disconnect(pre)
    api.publish_signal.disconnect(done)
    api.publish_failed_signal.disconnect(failed)


def test_a_message_that_is_sent_directly_is_confirmed_when_publish_returns(signals):
    messenger = Scripted(Sent(routed=True))
    with direct(messenger):
        api.publish(a_message(n=1))
    assert [message.topic for message in messenger.sent] == ["org.example.made"]
    assert signals == ["pre", "done"]
    assert messenger.closed == 1


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (Retry("403", Scope.TOPIC), PublishForbidden),
        (Retry("full", Scope.MESSAGE), PublishReturned),
        (Reject("too large"), PublishException),
        (ZeroDivisionError("a defect"), PublishException),
    ],
)
def test_a_refusal_is_the_error_of_upstream(result, error, signals):
    with direct(Scripted(result)), pytest.raises(error):
        api.publish(a_message(n=1))
    assert signals == ["pre", error.__name__]


def test_an_endpoint_that_comes_back_in_time_gets_the_message(monkeypatch):
    monkeypatch.setattr("consumer_framework.publishing.shared._AGAIN", 0.01)
    messenger = Scripted(ConnectionError("refused"), Retry("away"), Sent())
    with direct(messenger):
        api.publish(a_message(n=1))
    assert len(messenger.sent) == 2


def test_an_endpoint_that_stays_away_is_a_timeout(signals):
    with direct(Scripted(ConnectionError("refused"))), pytest.raises(PublishTimeout):
        api.publish(a_message(n=1), timeout=1)
    assert signals == ["pre", "TimeoutError"]


def test_a_messenger_with_too_few_answers_keeps_no_caller_waiting():
    class Short(Scripted):
        def send_many(self, batch):
            return super().send_many(batch)[1:]

    with direct(Short(Sent())):
        for _ in range(2):
            with pytest.raises(PublishException, match="0 results for 1 messages"):
                api.publish(a_message(n=1))


def test_nothing_is_sent_after_the_end():
    with direct(Scripted(Sent())) as sender:
        sender.stop(PATIENCE)
        with pytest.raises(ConnectionException):
            api.publish(a_message(n=1))


def test_a_wrong_message_is_refused_before_it_is_sent(signals):
    messenger = Scripted(Sent())
    with direct(messenger), pytest.raises(PublishException, match="255"):
        api.publish(a_message("t" * 256))
    assert messenger.sent == []
    assert signals == ["pre", "PublishException"]


def test_many_threads_share_the_sender():
    messenger = Scripted(Sent())
    with direct(messenger):
        threads = [threading.Thread(target=api.publish, args=(a_message(n=n),)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(messenger.sent) == 20


def test_the_own_publish_of_the_process_is_there_again_after_a_block():
    module: Any = api
    before = module._twisted_publish_wrapper, module.crochet
    with direct(Scripted(Sent())):
        assert module.crochet is not before[1]
    assert (module._twisted_publish_wrapper, module.crochet) == before


# Publications.


def settings_of(**framework):
    return parse(document_of({}, framework), default_bindings=True)


def test_publishing_early_is_refused():
    with upstream.replaced(publications.refuse_early), pytest.raises(RuntimeError, match="ready"):
        api.publish(a_message())


def test_an_outbox_without_a_place_is_refused_and_without_the_wish_is_direct(tmp_path):
    with pytest.raises(ConfigurationError, match="no state directory"):
        Publications(settings_of(publishing="outbox"), None, FakeClock())
    assert Publications(settings_of(), None, FakeClock()).is_direct
    assert not Publications(settings_of(), tmp_path, FakeClock()).is_direct
    assert Publications(settings_of(publishing="direct"), tmp_path, FakeClock()).is_direct


def test_an_outbox_that_was_never_used_starts_no_relay_and_has_no_report(tmp_path):
    one = Publications(settings_of(), tmp_path, FakeClock())
    one.start()
    one.count()
    one.apply(settings_of())
    assert (one.report(), one.remark, one.is_stuck) == (None, "", False)
    asyncio.run(one.stop())
    assert list(tmp_path.iterdir()) == []


def test_rows_of_an_earlier_process_are_found(tmp_path):
    file = tmp_path / "outbox.sqlite3"
    assert not has_rows(file)
    outbox = Outbox(f"sqlite:///{file}")
    store = outbox.prepared()
    assert not has_rows(file)
    store.put([(outgoing_message(), "spool")])
    assert has_rows(file)
    outbox.close()
    file.write_bytes(b"no database" * 100)
    assert has_rows(file), "the relay says what is wrong"


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_relay_sends_what_is_published_outside_a_run_and_reports(tmp_path):
    dummy = settings_of(outbox={"messenger": "dummy"})
    one = Publications(dummy, tmp_path, SystemClock())
    with one.installed():
        publishing.publish(a_message(n=1))
        api.publish(a_message(n=2))
        until(lambda: (one.report() or SimpleNamespace(sent=0)).sent == 2)
    one.count()
    report = one.report()
    assert report is not None
    assert (report.published, report.state) == (2, "sending")
    assert one.remark.startswith("outbox: sending")
    one.apply(dummy.model_copy(update={"tls": dummy.tls.model_copy(update={"ca_cert": "/x"})}))
    with one.installed():
        publishing.publish(a_message(n=3))
        until(lambda: (one.report() or SimpleNamespace(sent=0)).sent == 3)
    asyncio.run(one.stop())


def test_the_relay_sends_what_another_process_left_in_the_outbox(tmp_path):
    one = Publications(settings_of(outbox={"messenger": "dummy"}), tmp_path, SystemClock())
    one.start()
    assert one.outbox is not None
    one.outbox.prepared()
    one.count()
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3")
    outbox.publish(a_message(n=1))
    outbox.close()

    def is_sent():
        one.count()
        return (one.report() or SimpleNamespace(sent=0)).sent == 1

    until(is_sent)
    asyncio.run(one.stop())


def test_a_forked_process_starts_no_relay_of_its_own(tmp_path, monkeypatch):
    one = Publications(settings_of(outbox={"messenger": "dummy"}), tmp_path, SystemClock())
    pid = os.getpid()
    with one.installed():
        with monkeypatch.context() as context:
            context.setattr(os, "getpid", lambda: pid + 1)
            publishing.publish(a_message(n=1))
        assert one.report() is None
        assert has_rows(tmp_path / "outbox.sqlite3")
    asyncio.run(one.stop())


def test_a_messenger_that_cannot_be_made_leaves_the_messages_and_says_so(tmp_path, caplog):
    wrong = settings_of(outbox={"messenger": "dummy", "options": {"no": "option"}})
    one = Publications(wrong, tmp_path, SystemClock())
    with one.installed():
        publishing.publish(a_message(n=1))
        until(lambda: "messages are stored and not sent" in caplog.text)
    asyncio.run(one.stop())
    assert has_rows(tmp_path / "outbox.sqlite3")


def test_an_outbox_that_cannot_be_used_is_no_defect(tmp_path, caplog):
    (tmp_path / "outbox.sqlite3").write_bytes(b"no database" * 100)
    one = Publications(settings_of(outbox={"messenger": "dummy"}), tmp_path, SystemClock())
    one.start()
    until(lambda: "messages are stored and not sent: the outbox" in caplog.text)
    asyncio.run(one.stop())
    assert "defect" not in caplog.text


def test_a_stop_sends_the_last_messages_and_gives_back_the_lease(tmp_path):
    one = Publications(settings_of(outbox={"messenger": "dummy"}), tmp_path, SystemClock())
    with one.installed():
        publishing.publish(a_message(n=1))
        until(lambda: (one.report() or SimpleNamespace(sent=0)).sent == 1)
        publishing.publish(a_message(n=2))
    asyncio.run(one.stop())
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/outbox.sqlite3")
    assert (store.rows(), store.leased_until()) == ([], 0.0)
    store.close()
