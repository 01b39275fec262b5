# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay as the configuration describes it, and the facts that people see of it."""

import itertools

import pytest

from consumer_framework.adapters import config
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.secrets import redact
from consumer_framework.publishing.events import Published, StoreDown
from consumer_framework.publishing.messengers import Reject, Retry, Scope, Sent
from consumer_framework.publishing.messengers.amqp import Amqp
from consumer_framework.publishing.messengers.dummy import Dummy
from consumer_framework.publishing.relay import Step
from consumer_framework.publishing.relaying import (
    COUNT_INTERVAL,
    RelayStatus,
    endpoints_of,
    messenger_of,
    relay_of,
)
from consumer_framework.publishing.report import RelayReport
from consumer_framework.publishing.store import OutboxError, OutboxStore
from consumer_framework.testing.fakes import FakeClock
from tests.unit.outboxes import LEASE, NOW, Setup, message, spooled


@pytest.fixture
def settings(tmp_path):
    def load(outbox="", top="", framework=""):
        path = tmp_path / "sample.toml"
        path.write_text(
            f"{top}\n[consumer_config.framework]\n{framework}\n"
            f"[consumer_config.framework.outbox]\n{outbox}\n"
        )
        return config.load(path)

    return load


@pytest.fixture
def store(tmp_path):
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/outbox.sqlite3")
    store.migrate()
    yield store
    store.close()


def test_the_endpoints_are_those_of_the_broker_and_its_cluster(settings):
    url = 'amqp_url = "amqp://me:s%3Acret-word@one:5673/%2Fapp?frame_max=4096"'
    loaded = settings(top=url, framework='brokers = ["two", "three:1", "[::1]:2"]')
    found = endpoints_of(loaded)
    login, rest = "amqp://me:s%3Acret-word@", "/%2Fapp?frame_max=4096"
    hosts = ("one:5673", "two:5673", "three:1", "[::1]:2")
    assert found.urls == tuple(f"{login}{host}{rest}" for host in hosts)
    assert found.timeout == 15


def test_a_url_without_user_stays_without_user(settings):
    assert endpoints_of(settings(top='amqp_url = "amqp://one"')).urls == ("amqp://one:5672",)


def test_the_outboxs_own_endpoints_win_and_their_passwords_are_secrets(settings):
    loaded = settings('endpoints = ["amqp://me:hush%2Fhush@two"]\ntimeout = "5s"')
    found = endpoints_of(loaded)
    assert found.urls == ("amqp://me:hush%2Fhush@two",)
    assert found.timeout == 5
    assert "hush" not in redact("the password hush/hush is not to be seen")
    assert isinstance(messenger_of(loaded), Amqp)


def test_the_time_limit_of_an_endpoint_follows_the_lease(settings):
    assert settings('lease = "10s"').framework.outbox.endpoint_timeout == 5
    assert settings('lease = "10m"').framework.outbox.endpoint_timeout == 30


def test_a_time_limit_that_is_not_shorter_than_the_lease_is_refused(settings):
    wrong = "outbox.timeout: 30s is not shorter than lease .30s.; set it below 30s"
    with pytest.raises(ConfigurationError, match=wrong):
        settings('timeout = "30s"')


def test_options_that_a_messenger_does_not_know_are_refused(settings):
    loaded = settings('messenger = "amqp"\noptions = {speed = 3}')
    with pytest.raises(ConfigurationError, match=r"outbox\.options\.speed: unknown key"):
        messenger_of(loaded)


def test_a_relay_of_a_configuration_sends(settings, store):
    store.put(spooled(message()))
    clock = FakeClock(NOW)
    status = RelayStatus(clock, "dummy")
    loaded = settings('messenger = "dummy"\nwindow = 3\nlossy = true')
    assert isinstance(messenger_of(loaded), Dummy)
    relay = status.relay = relay_of(loaded, store, observer=status, clock=clock)
    assert relay.step() is Step.SENT
    assert status.counters.sent == 1
    relay.close()


def described(setup, **options):
    """Return the status of a relay that a test drives."""
    status = RelayStatus(setup.clock, "scripted")
    status.counters = setup.counters
    status.relay, status.store = setup.relay, setup.store
    for name, value in options.items():
        setattr(status, name, value)
    status.count()
    return status


def test_before_the_relay_is_made_the_status_says_so():
    report = RelayStatus(FakeClock(NOW), "amqp").report()
    assert report == RelayReport(messenger="amqp", counts=report.counts)
    assert report.line == "starting, 0 sent, up 0 s"


def test_the_status_of_a_relay_that_sends_has_rate_backlog_oldest_and_dead(store):
    setup = Setup(store)
    status = described(setup)
    setup.messenger.answer = lambda one: Reject("odd") if one.id == "odd" else Sent(routed=True)
    setup.put(*(message() for _ in range(120)), message(id="odd"))
    setup.steps()
    setup.put(message(created=NOW - 30))
    setup.clock.advance(60)
    status.count()
    report = status.report()
    assert (report.state, report.waiting, report.dead, report.oldest) == ("sending", 1, 1, 90)
    assert report.rate == pytest.approx(2, rel=0.01)
    assert report.counts["sent"] == 120
    assert report.line == (
        "sending to scripted, 2.0/s, 1 waiting, oldest 90 s, 1 dead, 120 sent, up 60 s"
    )


def test_the_status_of_a_relay_without_an_endpoint_has_the_reason_and_the_next_attempt(store):
    setup = Setup(store)
    setup.messenger.refuses = ConnectionRefusedError("nobody at home")
    setup.relay.step()
    report = described(setup).report()
    assert (report.state, report.trouble, report.next_attempt) == ("waiting", "nobody at home", 1)
    assert report.line.startswith("cannot send: nobody at home; again in 1 s, 0 waiting")
    setup.messenger.refuses = None
    setup.later(1)
    assert described(setup).report().state == "sending"


def test_the_status_of_a_relay_in_reserve_says_that_another_one_sends(store):
    setup = Setup(store)
    store.lease("another", LEASE, NOW)
    setup.relay.step()
    report = described(setup).report()
    assert report.state == "standby"
    assert report.line.startswith("standby: another relay sends, 0 waiting")


def test_the_status_of_a_relay_whose_database_is_away_says_so(store):
    setup = Setup(store)
    setup.relay.store_fault = "the disk is full"
    status = described(setup)
    status.notify(StoreDown("the disk is full"))
    report = status.report()
    assert (report.state, report.trouble, report.last_error) == (
        "failing",
        "the disk is full",
        "the disk is full",
    )


def test_paused_topics_are_in_the_status(store):
    setup = Setup(store)
    setup.messenger.answer = lambda _: Retry("403", Scope.TOPIC)
    setup.put(message(topic="app.no"))
    setup.steps()
    report = described(setup).report()
    [paused] = report.paused
    assert (paused.exchange, paused.topic) == ("amq.topic", "app.no")
    assert "1 topic paused" in report.line


def test_rows_are_counted_at_intervals_and_a_count_that_fails_keeps_the_last_one(
    store, monkeypatch
):
    setup = Setup(store)
    status = described(setup)
    setup.put(message())
    status.count()
    assert status.report().waiting == 0
    setup.clock.advance(COUNT_INTERVAL)
    status.count()
    assert status.report().waiting == 1

    def fail():
        raise OutboxError("away")

    monkeypatch.setattr(store, "stats", fail)
    setup.clock.advance(COUNT_INTERVAL)
    status.count()
    assert status.report().waiting == 1


def test_a_count_that_takes_long_is_done_less_often(store, monkeypatch):
    setup = Setup(store)
    right = store.stats
    counts = []

    def slow():
        counts.append(setup.clock.time())
        setup.clock.advance(2)
        return right()

    monkeypatch.setattr(store, "stats", slow)
    status = described(setup)
    for _ in range(100):
        setup.clock.advance(1)
        status.count()
    assert [b - a for a, b in itertools.pairwise(counts)] == [42, 42]


def test_the_endpoint_in_use_is_that_of_the_messenger(store):
    setup = Setup(store)
    setup.messenger.endpoint = "broker:5672"
    assert setup.relay.endpoint == ""
    setup.relay.step()
    assert described(setup).report().line.startswith("sending to broker:5672")


def test_each_event_of_the_relay_reaches_the_counts():
    status = RelayStatus(FakeClock(NOW))
    status.notify(Published(message(), routed=False))
    assert (status.counters.sent, status.counters.unroutable) == (1, 1)
