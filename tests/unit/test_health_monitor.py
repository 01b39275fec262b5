# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about an instance, looked at again and again, and the health that follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consumer_framework.adapters.amqp.presence import QueueSample
from consumer_framework.core.errors import StoreError
from consumer_framework.core.health import InstanceCondition
from consumer_framework.core.lag import UNKNOWN, Lag
from consumer_framework.core.lifecycle import State
from consumer_framework.core.stats import Snapshot
from consumer_framework.runtime.health import HealthMonitor
from consumer_framework.settings import Settings
from consumer_framework.testing import FakeClock, make_delivery

STEP = 10.0
MINUTES = 60.0


def settings(arguments=None, url="amqp://localhost", **framework):
    queue = {"durable": True, "auto_delete": False, "exclusive": False}
    return Settings.model_validate(
        {
            "amqp_url": url,
            "queues": {"builds": {**queue, "arguments": arguments or {}}},
            "bindings": [],
            "consumer_config": {"framework": framework},
        }
    )


class Store:
    def __init__(self):
        self.numbers = SimpleNamespace(bytes=0, deferred=0, quarantined=0, oldest=None)
        self.is_broken = False

    def stats(self):
        if self.is_broken:
            raise StoreError("the disk is gone")
        return self.numbers


class Instance(SimpleNamespace):
    """The parts of an instance that its health follows from."""

    def __init__(self, directory=None, configured=None):
        configured = configured or settings()
        subscription = SimpleNamespace(queue="builds", configured_name="builds")
        framework = configured.framework
        super().__init__(
            clock=FakeClock(),
            settings=configured,
            plan=SimpleNamespace(framework=framework, limits=SimpleNamespace(timeout=600.0)),
            state=State.CONSUMING,
            trouble="",
            exit_code=0,
            was_ready=True,
            remarks={},
            counters=SimpleNamespace(snapshot=lambda: self.counts),
            counts=Snapshot(),
            dispatcher=SimpleNamespace(
                held=0, waiting=0, oldest_waiting=lambda limit: iter(self.in_memory[:limit])
            ),
            in_memory=[],
            running=(),
            lag=None,
            executor=SimpleNamespace(longest=lambda: self.longest, health=None),
            longest=("", 0.0),
            session=SimpleNamespace(subscriptions=(subscription,)),
            files=SimpleNamespace(store=Store(), directory=directory),
            status=SimpleNamespace(rate=0.0),
        )
        self.monitor = HealthMonitor(self)  # type: ignore[arg-type]

    def counts_queue(self, ready, consumers=1):
        self.monitor.samples = {"builds": QueueSample(consumers, ready)}
        self.lag = ready

    def passes(self, seconds, each: Any = lambda: None):
        for _ in range(int(seconds / STEP)):
            self.clock.advance(STEP)
            each()
            self.monitor.look()

    def has_in_memory(self, *ages):
        self.in_memory = [self.message(age) for age in ages]
        self.dispatcher.waiting = len(ages)

    def message(self, age, size=100):
        at = datetime.fromtimestamp(self.clock.time() - age, UTC)
        properties = pika.BasicProperties(headers={"sent-at": at.isoformat()})
        made = make_delivery(queue="builds")
        return made._replace(properties=properties, body=b"x" * size)

    @property
    def health(self) -> Any:
        return self.monitor.now()

    @property
    def loss(self) -> Any:
        return self.health.loss

    @property
    def condition(self):
        return self.health.assessment.condition


@pytest.fixture
def instance():
    return Instance()


# Lag.


def test_the_age_of_the_oldest_message_in_memory_is_the_lag(instance):
    instance.passes(STEP)
    instance.has_in_memory(40, 5)
    assert instance.health.lag == Lag(40.0, "message")


def test_a_message_in_the_handler_is_the_oldest_one(instance):
    instance.passes(STEP)
    instance.has_in_memory(5)
    instance.running = (instance.message(70),)
    assert instance.health.lag == Lag(70.0, "message")


def test_without_any_message_there_is_no_lag(instance):
    instance.counts_queue(0)
    instance.passes(STEP)
    assert instance.health.lag == Lag(0.0, "message")


def test_messages_without_a_time_have_an_estimate(instance):
    instance.counts_queue(1190)
    instance.dispatcher.waiting = 10
    instance.status.rate = 2.0
    instance.passes(STEP)
    assert instance.health.lag == Lag(600.0, "estimate")


def test_during_a_pause_the_oldest_message_goes_on_waiting(instance):
    instance.counts_queue(0)
    instance.has_in_memory(40)
    instance.passes(STEP)
    instance.state, instance.trouble = State.PAUSED, "the database is gone"
    instance.has_in_memory()
    instance.counts_queue(3, consumers=0)
    instance.passes(5 * MINUTES)
    assert instance.health.lag == Lag(40.0 + STEP + 5 * MINUTES, "message")
    assert instance.condition is InstanceCondition.PAUSED


def test_during_a_pause_an_empty_queue_does_not_lag_and_a_message_that_comes_waits_since_then(
    instance,
):
    instance.counts_queue(0)
    instance.passes(STEP)
    instance.state = State.PAUSED
    instance.counts_queue(0, consumers=0)
    instance.passes(5 * MINUTES)
    assert instance.health.lag == Lag(0.0, "message")
    instance.counts_queue(3, consumers=0)
    instance.passes(2 * MINUTES)
    assert instance.health.lag == Lag(2 * MINUTES, "estimate")


def test_during_a_pause_others_may_have_taken_the_oldest_message(instance):
    instance.counts_queue(0, consumers=2)
    instance.has_in_memory(40)
    instance.passes(STEP)
    instance.state = State.PAUSED
    instance.has_in_memory()
    instance.counts_queue(3, consumers=1)
    instance.passes(STEP)
    assert instance.health.lag == UNKNOWN


def test_without_a_connection_the_oldest_message_goes_on_waiting(instance):
    instance.counts_queue(0)
    instance.has_in_memory(40)
    instance.passes(STEP)
    instance.state = State.CONNECTING
    instance.has_in_memory()
    instance.monitor.samples = {}
    instance.passes(MINUTES)
    assert instance.health.lag.seconds == 40.0 + STEP + MINUTES


# The condition.


def test_an_instance_with_nothing_to_do_becomes_idle_and_busy_again(instance):
    instance.passes(9 * MINUTES)
    assert instance.condition is InstanceCondition.CONSUMING
    instance.passes(2 * MINUTES)
    assert instance.condition is InstanceCondition.IDLE
    instance.counts = Snapshot(received=1)
    instance.passes(STEP)
    assert instance.condition is InstanceCondition.CONSUMING


@pytest.mark.parametrize("work", ["running", "waiting", "lag"])
def test_an_instance_with_work_is_not_idle(instance, work):
    instance.running = (instance.message(0),) if work == "running" else ()
    instance.dispatcher.waiting = int(work == "waiting")
    instance.lag = int(work == "lag")
    instance.passes(20 * MINUTES)
    assert instance.condition is not InstanceCondition.IDLE


def test_runs_that_fail_lately_make_an_instance_that_retries(instance):
    instance.counts = Snapshot(received=1000)
    instance.passes(10 * MINUTES)
    instance.counts = Snapshot(received=1004, held=1, deferred=1, requeued=1)
    instance.files.store.numbers.deferred = 2
    instance.passes(STEP)
    health = instance.health
    assert health.assessment.condition is InstanceCondition.RETRYING
    assert health.assessment.reason.startswith("3 of 4 runs lately")
    instance.passes(10 * MINUTES)
    assert instance.condition is not InstanceCondition.RETRYING, "that was long ago"


def test_a_run_that_takes_half_its_time_limit_is_slow(instance):
    instance.longest = ("message 1", 299.0)
    assert instance.condition is InstanceCondition.CONSUMING
    instance.longest = ("message 1", 300.0)
    assert instance.condition is InstanceCondition.SLOW


def test_the_word_of_the_watchdog_counts(instance):
    instance.monitor.stuck = "the handler does not return"
    assert instance.health.assessment.reason == "the handler does not return"


def test_a_store_that_cannot_be_read_leaves_the_rest(instance):
    instance.files.store.is_broken = True
    instance.counts_queue(5000)
    instance.passes(STEP)
    assert instance.condition is InstanceCondition.LAGGING


def test_before_its_handler_is_made_and_after_its_end_an_instance_has_a_condition(instance):
    instance.state, instance.executor, instance.was_ready = State.BUILDING, None, False
    instance.passes(STEP)
    assert instance.condition is InstanceCondition.STARTING
    instance.state = State.STOPPED
    instance.passes(STEP)
    assert instance.condition is InstanceCondition.DRAINING


def test_a_lag_is_logged_once_while_it_lasts_and_its_end_when_it_is_over_for_a_minute(
    instance, caplog
):
    caplog.set_level("INFO")
    instance.counts_queue(5000)
    instance.passes(5 * MINUTES)
    for ready in (900, 1100, 900, 1100):
        instance.counts_queue(ready)
        instance.passes(3 * STEP)
    assert caplog.messages == ["lagging: 5,000 messages wait on the broker"]
    instance.counts_queue(10)
    instance.passes(MINUTES)
    assert len(caplog.messages) == 1
    instance.passes(STEP)
    assert caplog.messages[1:] == ["no longer lagging"]
    instance.passes(20 * MINUTES)
    assert len(caplog.messages) == 2


def test_another_condition_is_logged_too(instance, caplog):
    instance.counts_queue(5000)
    instance.passes(STEP)
    instance.counts_queue(0)
    instance.longest = ("message 1", 400.0)
    instance.passes(STEP)
    assert [line.partition(":")[0] for line in caplog.messages] == ["lagging", "slow"]


# The next loss.


def test_a_queue_that_grows_to_its_cap_is_a_loss():
    instance = Instance(configured=settings({"x-max-length": 10_000}))
    ready = iter(range(0, 100_000, 100))
    instance.passes(2 * MINUTES, lambda: instance.counts_queue(next(ready)))
    loss = instance.loss
    # 1,100 messages after two minutes, and 10 more each second.
    assert loss.seconds == pytest.approx(890, abs=1)
    assert 'queue "builds" reaches 10,000 messages' in loss.subject


def test_the_size_of_the_messages_counts_against_a_cap_in_bytes():
    instance = Instance(configured=settings(queue_policy={"max_bytes": 1_000_000}))
    ready = iter(range(0, 100_000, 100))
    instance.in_memory = [instance.message(0, 50), instance.message(0, 150)]
    instance.passes(2 * MINUTES, lambda: instance.counts_queue(next(ready)))
    assert instance.loss.seconds == pytest.approx(890, abs=1)


@pytest.mark.parametrize("vhost", ["%2Fpubsub", "%2Fpublic_pubsub"])
def test_on_fedoras_broker_its_caps_are_known(vhost):
    url = f"amqps://bodhi@rabbitmq.fedoraproject.org/{vhost}"
    instance = Instance(configured=settings(url=url))
    instance.in_memory = [instance.message(0, 1_000_000)]
    ready = iter(range(0, 100_000, 1))
    instance.passes(2 * MINUTES, lambda: instance.counts_queue(next(ready)))
    assert instance.loss.subject.startswith('queue "builds" reaches ')
    instance.state = State.CONNECTING
    instance.passes(STEP)
    expires = "the broker deletes" in instance.loss.subject
    assert not expires, "the cap is nearer"


def test_a_queue_that_is_deleted_without_a_consumer_is_a_loss_while_there_is_no_connection():
    instance = Instance(configured=settings({"x-expires": 3_600_000}))
    instance.passes(STEP)
    assert not instance.loss
    instance.state = State.CONNECTING
    instance.session.subscriptions = ()
    instance.passes(10 * MINUTES)
    assert instance.loss.seconds == 50 * MINUTES


@pytest.mark.parametrize(("kind", "seconds"), [("classic", None), ("quorum", 50 * MINUTES)])
def test_during_a_pause_the_questions_about_a_classic_queue_keep_it(kind, seconds):
    instance = Instance(configured=settings({"x-expires": 3_600_000, "x-queue-type": kind}))
    instance.counts_queue(0)
    instance.passes(STEP)
    assert not instance.loss
    instance.state = State.PAUSED
    instance.counts_queue(0, consumers=0)
    instance.passes(10 * MINUTES)
    assert (instance.loss.seconds if instance.loss else None) == seconds
    instance.state = State.CONNECTING
    instance.monitor.samples = {}
    instance.passes(10 * MINUTES)
    assert instance.loss.seconds == (50 * MINUTES if kind == "classic" else 40 * MINUTES)


def test_a_queue_that_others_consume_from_is_not_deleted():
    instance = Instance(configured=settings({"x-expires": 3_600_000}))
    instance.counts_queue(0, consumers=2)
    instance.passes(STEP)
    instance.state = State.CONNECTING
    instance.passes(10 * MINUTES)
    assert instance.loss is None


def test_messages_get_too_old_during_a_pause():
    instance = Instance(configured=settings({"x-message-ttl": 3_600_000}))
    instance.counts_queue(1)
    instance.has_in_memory(600)
    instance.passes(STEP)
    assert not instance.loss, "nothing shows that the age grows"
    instance.state = State.PAUSED
    instance.has_in_memory()
    instance.counts_queue(1, consumers=0)
    instance.passes(10 * MINUTES)
    assert instance.loss.seconds == 3600 - 600 - 10 * MINUTES - STEP


def test_limits_follow_a_reload(instance):
    instance.counts_queue(500)
    instance.passes(STEP)
    assert not instance.loss
    instance.settings = settings({"x-max-length": 500})
    assert instance.loss.seconds == 0


def test_a_store_that_grows_reaches_its_limit(tmp_path):
    instance = Instance(tmp_path, settings(quarantine_max_bytes=1_000_000))

    def grow():
        instance.files.store.numbers.bytes += 1000

    instance.passes(2 * MINUTES, grow)
    loss = instance.loss
    assert loss.seconds == pytest.approx(9880, abs=1)
    assert "the store reaches" in loss.subject


def test_the_age_of_a_quarantined_message_is_a_loss(tmp_path):
    instance = Instance(tmp_path)
    numbers = instance.files.store.numbers
    numbers.quarantined, numbers.oldest = 1, instance.clock.time() - 80 * 86400
    assert instance.loss.seconds == 10 * 86400


def test_the_space_on_the_disk_is_looked_at(tmp_path):
    instance = Instance(tmp_path)
    instance.passes(5 * MINUTES)
    loss = instance.loss
    assert loss is None or "the disk" in loss.subject


def certificate(path, days):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sample")])
    now = datetime(1970, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(path.read_bytes() + pem if path.exists() else pem)
    return str(path)


def test_the_end_of_a_certificate_is_a_loss(tmp_path):
    instance = Instance()
    today = instance.clock.time() / 86400
    file = certificate(tmp_path / "client.pem", int(today) + 10)
    bundle = certificate(tmp_path / "ca.pem", int(today) + 1)
    certificate(tmp_path / "ca.pem", int(today) + 30)
    tls = instance.settings.tls.model_copy(
        update={"certfile": file, "keyfile": file, "ca_cert": bundle}
    )
    instance.settings = instance.settings.model_copy(update={"tls": tls})
    loss = instance.loss
    assert loss.subject.startswith(f"the certificate in {file} ends")
    assert 9 * 86400 <= loss.seconds <= 10 * 86400
    certificate(tmp_path / "renewed.pem", int(today) + 400).replace("", "")
    (tmp_path / "renewed.pem").replace(file)
    instance.clock.advance(3600)
    assert instance.loss.subject.startswith(f"the certificate in {bundle} ends"), (
        "it was read again"
    )


def test_a_certificate_that_cannot_be_read_is_no_loss(instance):
    tls = instance.settings.tls.model_copy(update={"ca_cert": "/nowhere"})
    instance.settings = instance.settings.model_copy(update={"tls": tls})
    assert instance.loss is None


def test_a_queue_that_is_gone_after_a_restart_is_forgotten(instance):
    instance.counts_queue(5000)
    instance.passes(STEP)
    instance.session.subscriptions = ()
    instance.monitor.samples = {}
    instance.lag = None
    instance.passes(STEP)
    assert replace(instance.health, loss=None).lag == UNKNOWN
