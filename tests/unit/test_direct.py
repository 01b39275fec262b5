# SPDX-License-Identifier: GPL-2.0-or-later
"""A script sends at once, and is told which messages the broker does not have."""

import itertools

import pytest
from fedora_messaging import config as upstream_config
from fedora_messaging import message as upstream
from fedora_messaging.exceptions import ValidationError

from consumer_framework import publishing
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.publishing.direct import Sender, SendError
from consumer_framework.publishing.message import PublishError
from consumer_framework.publishing.messengers import Feature, Reject, Retry, Scope, Sent
from consumer_framework.publishing.policy import Backoff
from consumer_framework.settings import OutboxRule, OutboxSettings, Unroutable
from tests.unit.outboxes import Scripted, message

QUICK = Backoff(0.001, 0.001)


def sending(messenger, settings=None, **options):
    return Sender(messenger, settings or OutboxSettings(), backoff=QUICK, **options)


def a_message(n=1):
    return upstream.Message(topic="app.done", body={"n": n})


def failing(times, result):
    """Return an answer that fails so many times, and then succeeds."""
    left = itertools.count(times, -1)
    return lambda _: result if next(left) > 0 else Sent(routed=True)


def test_a_call_returns_when_the_broker_has_the_message():
    messenger = Scripted()
    given = a_message()
    with sending(messenger, exchange="mine", topic_prefix="org.example") as send:
        sent = send(given)
    assert messenger.sent == [sent]
    assert (sent.id, sent.topic, sent.exchange) == (given.id, "org.example.app.done", "mine")
    assert send.sent == 1
    assert not messenger.is_open, "the block closes the connection"


def test_a_call_may_name_another_exchange():
    messenger = Scripted()
    with sending(messenger) as send:
        send(a_message(), exchange="other")
        send.many([a_message()], exchange="third")
    assert [one.exchange for one in messenger.sent] == ["other", "third"]


def test_many_messages_go_in_windows_and_an_endless_source_is_not_read_ahead():
    taken, sent_at = [], []

    def endless():
        for n in itertools.count():
            taken.append(n)
            yield a_message(n)

    def answer(_):
        sent_at.append(len(taken))
        return Sent() if len(taken) <= 20 else Reject("enough")

    messenger = Scripted(answer)
    with sending(messenger, OutboxSettings(window=10)) as send, pytest.raises(SendError):
        send.many(endless())
    assert [len(batch) for batch in messenger.batches] == [10, 10, 10]
    assert sorted(set(sent_at)) == [10, 20, 30]
    assert send.sent == 20


def test_messages_with_an_ordering_key_go_one_after_the_other():
    messenger = Scripted()
    sending(messenger).send([message("key"), message("key"), message()])
    assert [len(batch) for batch in messenger.batches] == [1, 1, 1]


@pytest.mark.parametrize("scope", [Scope.ENDPOINT, Scope.MESSAGE])
def test_a_message_that_may_be_sent_later_is_tried_again(scope):
    messenger = Scripted(failing(3, Retry("away", scope)))
    with sending(messenger) as send:
        send(a_message())
    assert len(messenger.batches) == 4
    assert send.sent == 1


def test_only_the_messages_that_failed_are_tried_again():
    given = [message() for _ in range(5)]
    again = failing(1, Retry("full", Scope.MESSAGE))
    messenger = Scripted(lambda one: again(one) if one is given[2] else Sent())
    sending(messenger).send(given)
    assert messenger.batches == [[one.id for one in given], [given[2].id]]


def test_a_broker_that_is_away_for_too_long_ends_it_with_the_messages_that_are_left():
    messenger = Scripted()
    messenger.refuses = ConnectionError("localhost:1: refused")
    given = [message() for _ in range(7)]
    send = sending(messenger, OutboxSettings(window=3), timeout=0.02)
    with pytest.raises(
        SendError, match=r"was not sent, and 2 more: localhost:1: refused"
    ) as caught:
        send.send(given)
    assert caught.value.unsent == given
    assert send.sent == 0


@pytest.mark.parametrize(
    "result", [Reject("too large"), Retry("403, forbidden", Scope.TOPIC)], ids=["reject", "topic"]
)
def test_a_message_that_the_broker_refuses_is_not_tried_again_nor_are_those_behind_it(result):
    given = [message() for _ in range(4)]
    messenger = Scripted(lambda one: result if one is given[1] else Sent())
    with pytest.raises(SendError, match=result.reason) as caught:
        sending(messenger, OutboxSettings(window=2)).send(given)
    assert caught.value.unsent == given[1:]
    assert messenger.batches == [[given[0].id, given[1].id]]


def test_a_message_without_a_queue_counts_as_sent_unless_its_topic_says_otherwise():
    rule = OutboxRule(topics="strict.#", unroutable=Unroutable.DEAD)
    messenger = Scripted(lambda _: Sent(routed=False))
    send = sending(messenger, OutboxSettings(rules=(rule,)))
    send.send([message(topic="lax.done")])
    assert (send.sent, send.unroutable) == (1, 1)
    with pytest.raises(SendError, match="no queue is bound for its topic"):
        send.send([message(topic="strict.done")])


def test_a_message_that_the_messenger_would_change_is_refused_with_its_window_unless_lossy():
    messenger = Scripted()
    messenger.features -= {Feature.SEVERITY}
    given = [message(), message(headers={"fedora_messaging_severity": 40})]
    with pytest.raises(SendError, match="severity is not INFO"):
        sending(messenger, timeout=5).send(given)
    assert messenger.batches == []
    sending(messenger, OutboxSettings(lossy=True)).send(given)
    assert messenger.sent == given


def test_an_invalid_message_is_refused_before_its_window_is_sent():
    messenger = Scripted()
    with sending(messenger) as send:
        with pytest.raises(PublishError, match="no JSON"):
            send(a_message({1}))
        with pytest.raises(ValidationError):
            send.many([a_message(), upstream.Message(topic="x", body=3)])  # type: ignore[arg-type]
    assert messenger.batches == []


def test_opening_tells_at_once_that_the_broker_is_away():
    messenger = Scripted()
    messenger.refuses = ConnectionError("no")
    with pytest.raises(ConnectionError):
        sending(messenger).open()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'publish_exchange = "mine"\ntopic_prefix = "org.example"\n'
        '[consumer_config.framework.outbox]\nmessenger = "capture"\n'
    )
    return path


def test_a_sender_is_made_from_a_configuration_file(file):
    with publishing.sender(file) as send:
        sent = send(a_message())
    assert (sent.exchange, sent.topic) == ("mine", "org.example.app.done")
    assert send.sent == 1


def test_without_a_file_a_sender_is_that_of_the_configuration_of_fedora_messaging(monkeypatch):
    framework = {"framework": {"outbox": {"messenger": "dummy"}}}
    monkeypatch.setitem(upstream_config.conf, "consumer_config", framework)
    monkeypatch.setitem(upstream_config.conf, "topic_prefix", "from.conf")
    with publishing.sender() as send:
        assert send(a_message()).topic == "from.conf.app.done"


def test_a_file_whose_outbox_is_invalid_is_refused_by_key(file):
    file.write_text("[consumer_config.framework.outbox]\nwindow = 0\n")
    with pytest.raises(ConfigurationError, match=r"framework\.outbox\.window"):
        publishing.sender(file)
