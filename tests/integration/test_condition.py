# SPDX-License-Identifier: GPL-2.0-or-later
"""The condition of a real instance, its lag in time, its next loss, and its consumer's health()."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from consumer_framework.runtime.control.client import connected_to
from consumer_framework.runtime.control.schema import Reload, Status

from .instance import HEADERS, publish, queue_table, until

if TYPE_CHECKING:
    from consumer_framework.runtime.control.schema import StatusReport

# As systemd's WatchdogSec=0.9: the broker is asked each 0.3 s.
WATCHDOG = {"WATCHDOG_USEC": "900000"}

WAITS = """
def handler(message):
    note("start", message)
    while not os.path.exists(os.environ["NOTES"] + ".go"):
        time.sleep(0.05)
"""

WELL_OR_NOT = """
from consumer_framework import Consumer

class handler(Consumer):
    def handle(self, message):
        note("handled", message)

    def health(self):
        with open(os.environ["NOTES"] + ".health") as file:
            text = file.read()
        if text == "hang":
            note_of_thread()
            time.sleep(3600)
        return text

def note_of_thread():
    with open(os.environ["NOTES"] + ".hangs", "a") as file:
        file.write("hangs")
"""

NEEDS_A_DATABASE = """
from consumer_framework import Consumer, DependencyFault

class handler(Consumer):
    def handle(self, message):
        note("handled", message)
        if os.path.exists(os.environ["NOTES"] + ".down"):
            raise DependencyFault("the database is gone")
"""


def ask(instance, request) -> Any:
    """Return the last answer to a request."""
    control = instance.configuration.with_name("control")
    with connected_to([control]) as running:
        assert running is not None
        return [*running.ask(request)][-1]


def report_of(instance) -> StatusReport:
    report: StatusReport = ask(instance, Status())
    return report


def reports(instance, condition, seconds=60):
    """Wait for a report with *condition*."""
    found: Any = None

    def is_there():
        nonlocal found
        found = report_of(instance)
        return found.condition == condition

    until(is_there, lambda: f"{condition}: {found}\n{instance.log}", seconds)
    return found


def sent(ago):
    at = datetime.now(UTC) - timedelta(seconds=ago)
    return {"headers": {**HEADERS, "sent-at": at.isoformat()}}


def beside(instance, name):
    return instance.configuration.with_name(f"notes.{name}")


def test_messages_that_wait_for_long_make_an_instance_that_lags_and_the_queue_reaches_its_cap(
    broker, queue_name, start
):
    extra = "[qos]\nprefetch_count = 1\n[consumer_config.framework.thresholds]\nlag_time = '10m'\n"
    queues = queue_table(queue_name, arguments={"x-max-length": 3})
    instance = start(broker.url, queues, WAITS, extra=extra, environment=WATCHDOG).ready()
    publish(broker.url, queue_name, range(4), **sent(ago=3000))
    instance.noted("start", 1)
    lagging = reports(instance, "lagging")
    assert lagging.lag_source == "message"
    assert 3000 <= lagging.lag_seconds < 3600
    assert lagging.reason.endswith("the oldest message waits for 50 min")
    assert lagging.status.partition("lagging: ")[2].startswith(lagging.reason)
    until(lambda: report_of(instance).lag == 3, "the broker is asked")
    full = report_of(instance).loss
    assert full is not None
    assert full.seconds == 0
    assert full.subject == f'queue "{queue_name}" reaches 3 messages and drops its oldest messages'
    file = instance.configuration
    file.write_text(file.read_text().replace("lag_time = '10m'", "lag_time = '2h'"))
    assert ask(instance, Reload()).result == "reloaded"
    assert report_of(instance).condition == "consuming", "the threshold is another one"
    beside(instance, "go").touch()
    well = reports(instance, "consuming")
    until(lambda: report_of(instance).lag_seconds == 0, lambda: str(report_of(instance)))
    assert well.reason == ""
    assert instance.stop() == 0


def test_the_health_of_the_consumer_is_a_part_of_its_status(broker, queue_name, start):
    extra = "[consumer_config.framework]\nhealth_interval = 1\nhealth_timeout = 1\n"
    instance = start(broker.url, queue_table(queue_name), WELL_OR_NOT, extra=extra).ready()
    first = reports(instance, "unhealthy")
    assert first.reason.startswith("FileNotFoundError: ")
    beside(instance, "health").write_text("the index is 3 h old")
    until(lambda: report_of(instance).reason == "the index is 3 h old", "the text is the reason")
    publish(broker.url, queue_name, [1])
    instance.noted("handled", 1)
    beside(instance, "health").write_text("")
    reports(instance, "consuming")
    assert instance.log.count("the consumer is not well: FileNotFoundError") == 1
    beside(instance, "health").write_text("hang")
    until(beside(instance, "hangs").exists, "health() is called")
    assert reports(instance, "unhealthy").reason == "health() takes longer than 1s"
    publish(broker.url, queue_name, [2])
    instance.noted("handled", 2)
    assert beside(instance, "hangs").read_text() == "hangs", "one call at a time"
    assert instance.stop() == 0


def test_during_a_pause_the_queue_is_counted_and_its_oldest_message_gets_older(
    broker, queue_name, start
):
    extra = (
        "[consumer_config.framework.recovery]\nimmediate = 0\nhold_slots = 0\n"
        "[consumer_config.framework.recovery.breaker]\nconsecutive = 1\nprobe = ['1h']\n"
    )
    queues = queue_table(queue_name, arguments={"x-message-ttl": 3_600_000})
    instance = start(broker.url, queues, NEEDS_A_DATABASE, extra=extra, environment=WATCHDOG)
    beside(instance, "down").touch()
    instance.ready()
    until(lambda: report_of(instance).lag_seconds == 0, "the queue is known to be empty")
    publish(broker.url, queue_name, [1])
    paused = reports(instance, "paused")
    assert paused.reason.startswith("the database is gone")
    publish(broker.url, queue_name, [2, 3])
    until(lambda: report_of(instance).lag == 2, lambda: f"{report_of(instance)}\n{instance.log}")
    until(lambda: report_of(instance).lag_seconds, lambda: str(report_of(instance)))
    waiting = report_of(instance)
    assert waiting.lag_source == "estimate"
    assert waiting.loss is not None
    assert waiting.loss.subject == f'messages of queue "{queue_name}" expire at an age of 1h'
    assert 3000 < waiting.loss.seconds < 3600
    assert instance.stop() == 0
