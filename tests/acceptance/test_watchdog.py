# SPDX-License-Identifier: GPL-2.0-or-later
"""The watchdog of a real systemd restarts a stuck instance of the real unit."""

from __future__ import annotations

import json

import pytest

from consumer_framework.testing.broker.proxy import Proxy

from .service import HEADERS, bodies, install_module, publish

# A message makes each of these handlers get stuck in its own way.
STUCK = """
import re
import time

def sleeps(message):
    if message.body.get("stuck"):
        time.sleep(3600)
    print(f"handled {message.id}", flush=True)

def holds_the_gil(message):
    if message.body.get("stuck"):
        # Takes some ages, and lets no other thread run.
        re.match("(a|aa)+$", "a" * 100 + "b")
    print(f"handled {message.id}", flush=True)

async def blocks_the_loop(message):
    if message.body.get("stuck"):
        time.sleep(3600)
    print(f"handled {message.id}", flush=True)
"""

# A shorter watchdog interval than that of the unit.
FASTER = "[Service]\nWatchdogSec=3\nRestartSec=100ms\n"
SETTINGS = """
[consumer_config.framework]
handler_timeout = "1s"
[consumer_config.framework.recovery]
crash_attempts = 1
"""

# As in tests/integration/test_watchdog.py: the broker forgets a consumer without a word.
FORGET = """
{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
[gen_server2:call(amqqueue:get_pid(Q), {{basic_cancel, element(1, C), element(2, C), undefined,
<<"test">>}}) || C <- rabbit_amqqueue:consumers(Q)].
"""


@pytest.fixture
def watched(make, host):
    """Return a function that makes an instance with a quick watchdog."""
    install_module(host, "stuck", STUCK)

    def make_watched(name, **options):
        host.write(f"/etc/systemd/system/fm-consumer@{name}.service.d/faster.conf", FASTER)
        host.run("systemctl", "daemon-reload")
        return make(name, extra=SETTINGS, **options)

    return make_watched


def stuck():
    return [("t", json.dumps({"stuck": True}).encode(), HEADERS)]


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        ("sleeps", "Watchdog request (last status: Stuck: the handler does not return: message "),
        ("holds_the_gil", "Watchdog timeout"),
        ("blocks_the_loop", "Watchdog timeout"),
    ],
)
def test_a_message_that_blocks_is_set_aside_and_the_rest_is_handled(
    watched, broker, queue, handler, reason
):
    service = watched(handler.replace("_", "-"), callback=f"stuck_consumer:{handler}")
    service.systemctl("start")
    ids = publish(broker, queue, [*bodies(2), *stuck(), *bodies(3)])
    service.until(lambda: service.show("NRestarts") != "0", "it is restarted")
    service.until(lambda: len(set(service.noted("handled"))) == 5, "the rest is handled")
    service.until(lambda: "1 quarantined" in service.show("StatusText"), "one is set aside")
    assert set(service.noted("handled")) == {*ids[:2], *ids[3:]}
    assert service.show("NRestarts") == "1"
    journal = service.journal()
    assert reason in journal
    assert "code=dumped" in journal or "code=killed, status=6/ABRT" in journal
    assert f"in {handler}" in journal, "the stacks show where it was"
    assert journal.count("most recent call first") >= 2
    assert journal.count("Current thread") + journal.count("Thread 0x") <= 8, "once, not twice"
    assert broker.depth(queue) == (0, 1)
    # The message is gone, so the instance notifies the watchdog again.
    pid = service.show("MainPID")
    publish(broker, queue, bodies(1))
    service.until(lambda: len(set(service.noted("handled"))) == 6, "it goes on")
    assert service.show("MainPID") == pid


def test_a_consumer_that_the_broker_forgot_comes_back_by_itself(watched, broker, queue):
    service = watched("forgotten")
    service.systemctl("start")
    publish(broker, queue, bodies(1))
    service.until(lambda: len(service.noted("handled")) == 1, "it works")
    # The instance has counted its consumer by then.
    watched_since = service.show("WatchdogTimestampMonotonic")
    service.until(
        lambda: service.show("WatchdogTimestampMonotonic") != watched_since, "the watchdog is fed"
    )
    broker.ctl("eval", FORGET.format(queue=queue))
    ids = publish(broker, queue, bodies(3))
    service.until(lambda: set(ids) <= set(service.noted("handled")), "they are handled")
    assert service.show("NRestarts") == "1"
    assert (
        "Watchdog request (last status: Stuck: the broker no longer has the consumer of queue"
    ) in service.journal()


def test_an_instance_whose_broker_is_away_is_no_reason_for_a_restart(watched, broker, queue):
    service = watched("patient")
    with Proxy("127.0.0.1", broker.port) as proxy:
        service.configure(proxy.url_for(broker.url), queue, SETTINGS)
        service.systemctl("start")
        proxy.refuse()
        proxy.cut()
        service.until(lambda: "Waiting for" in service.show("StatusText"), "it notices")
        # This is longer than the watchdog waits.
        for _ in range(4):
            fed_at = service.show("WatchdogTimestampMonotonic")
            service.until(
                lambda last=fed_at: service.show("WatchdogTimestampMonotonic") != last, "it is fed"
            )
        proxy.accept()
        publish(broker, queue, bodies(1))
        service.until(lambda: len(service.noted("handled")) == 1, "it goes on", 60)
        assert service.show("NRestarts") == "0"
        service.systemctl("stop")


def test_the_watchdog_of_the_unit_waits_for_30_seconds(make):
    service = make("usual")
    service.systemctl("start")
    assert service.show("WatchdogUSec") == "30s"
    assert service.show("TimeoutAbortUSec") == "10s"
