# SPDX-License-Identifier: GPL-2.0-or-later
"""`systemctl start fm-consumer@NAME` works with the real units and a real broker."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pika
import pytest

from .service import HEADERS, bodies, publish

REPO = Path(__file__).parents[2]
REAL_MESSAGES = REPO.parent / "shared" / "data" / "fedora-messages.jsonl"


def test_start_returns_once_it_consumes_and_every_message_is_handled_once(make, broker, queue):
    sample = make("sample")
    sample.systemctl("start")
    assert broker.depth(queue) == (0, 1), "start returned, so the consumer is there"
    ids = publish(broker, queue, bodies(500))
    sample.until(lambda: len(sample.noted("handled")) >= 500, "500 are handled")
    assert Counter(sample.noted("handled")) == Counter(ids)
    assert broker.depth(queue) == (0, 1)
    sample.until(lambda: "500 handled" in sample.show("StatusText"), "the status counts them")
    status = sample.systemctl("status").stdout
    assert re.search(r'Status: "consuming 1 queue, [^,]+, 500 handled, up \d+ s"', status), status
    sample.systemctl("stop")
    assert sample.show("Result") == "success"
    assert broker.depth(queue) == (0, 0)


@pytest.mark.skipif(not REAL_MESSAGES.exists(), reason="the real messages are not beside the repo")
def test_the_real_messages_of_fedora_are_each_handled_once(make, broker, queue):
    lines = [json.loads(line) for line in REAL_MESSAGES.read_text().split("\n") if line]
    real = [
        (line["topic"][-120:], json.dumps(line["body"]).encode(), {**HEADERS, **line["headers"]})
        for line in lines
    ]
    service = make("real")
    service.systemctl("start")
    ids = publish(broker, queue, real)
    assert len(ids) > 400
    service.until(lambda: len(service.noted("handled")) >= len(ids), "all are handled", 60)
    assert Counter(service.noted("handled")) == Counter(ids)


def test_stop_waits_for_the_handler_and_loses_nothing(make, broker, queue):
    service = make("stopping")
    service.systemctl("start")
    ids = publish(broker, queue, [*bodies(1, sleep=3), *bodies(5)])
    service.until(lambda: service.noted("start"), "the slow handler runs")
    service.systemctl("stop")
    assert service.noted("handled") == ids[:1]
    assert broker.depth(queue) == (5, 0)
    service.systemctl("start")
    service.until(lambda: len(service.noted("handled")) == 6, "the rest follows")
    assert Counter(service.noted("handled")) == Counter(ids)


def test_a_kill_restarts_it_and_loses_nothing(make, broker, queue):
    service = make("killed")
    service.systemctl("start")
    ids = publish(broker, queue, [*bodies(3), *bodies(1, sleep=2), *bodies(3)])
    service.until(lambda: len(service.noted("start")) == 4, "the slow handler runs")
    service.systemctl("kill", "-s", "KILL")
    service.until(lambda: set(service.noted("handled")) == set(ids), "all are handled")
    assert service.show("NRestarts") == "1"
    runs = Counter(service.noted("start"))
    assert runs.pop(ids[3]) == 2, "the one it was killed in"
    assert set(runs.values()) == {1}
    service.until(lambda: broker.depth(queue) == (0, 1), "nothing is left")


def test_two_instances_on_one_queue_share_the_messages(make, broker, queue):
    one = make("one", extra="[qos]\nprefetch_count = 1")
    two = make("two", extra="[qos]\nprefetch_count = 1")
    one.systemctl("start")
    two.systemctl("start")
    ids = publish(broker, queue, bodies(40, sleep=0.05))
    one.until(
        lambda: len(one.noted("handled")) + len(two.noted("handled")) >= 40, "all are handled"
    )
    shares = [one.noted("handled"), two.noted("handled")]
    assert Counter(shares[0] + shares[1]) == Counter(ids)
    assert all(12 <= len(share) <= 28 for share in shares), "in turns"


def test_two_instances_with_two_files_are_independent(make, broker, queue):
    other = f"{queue}-other"
    left, right = make("left"), make("right", queue=other)
    left.systemctl("start")
    right.systemctl("start")
    left_ids, right_ids = publish(broker, queue, bodies(5)), publish(broker, other, bodies(7))
    left.until(lambda: len(left.noted("handled")) == 5, "left is done")
    right.until(lambda: len(right.noted("handled")) == 7, "right is done")
    assert set(left.noted("handled")) == set(left_ids)
    assert set(right.noted("handled")) == set(right_ids)
    left.systemctl("stop")
    assert right.show("ActiveState") == "active"
    users = {service.show("User") for service in (left, right)}
    assert users == {"fm-left", "fm-right"}
    right.systemctl("stop")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(other)


def test_log_lines_carry_their_priority(make, broker, queue):
    service = make("logging")
    service.systemctl("start")
    publish(broker, queue, [("t", b"no json", HEADERS)] * 3)
    service.until(lambda: "no valid message" in service.journal("-p", "err"), "an error")
    assert "consuming from" not in service.journal("-p", "err")
    assert "consuming from" in service.journal("-p", "info")
    assert "<6>" not in service.journal()


def test_undecodable_messages_are_set_aside_and_logged_once_per_cause(make, broker, queue):
    service = make("garbage")
    service.systemctl("start")
    publish(broker, queue, [("t", b"no json %d" % n, HEADERS) for n in range(3)])
    (good,) = publish(broker, queue, bodies(1))
    service.until(lambda: service.noted("handled") == [good], "it stops nothing behind it")
    service.until(lambda: "3 quarantined" in service.show("StatusText"), "they are set aside")
    errors = service.journal("-p", "err")
    assert errors.count("it is quarantined: no valid message") == 1
    service.systemctl("stop")
    assert broker.depth(queue) == (0, 0)


def test_a_broken_configuration_fails_at_once_and_is_not_restarted(make, host):
    service = make("broken", extra="[qos]\nprefetch_cuont = 5")
    assert service.systemctl("start", check=False).returncode != 0
    assert service.show("ExecMainStatus") == "78"
    assert service.show("NRestarts") == "0"
    assert service.show("ActiveState") == "failed"
    assert (
        "/etc/fedora-messaging/broken.toml: qos.prefetch_cuont: unknown key; "
        'did you mean "prefetch_count"?'
    ) in service.journal("-p", "err")
    assert "Traceback" not in service.journal()


def test_an_instance_without_a_configuration_fails_loudly(host):
    started = host.run("systemctl", "start", "fm-consumer@nobody", check=False)
    assert started.returncode != 0
    assert "assert" in started.stderr.lower()


def test_the_target_stops_every_instance(make, host, broker, queue):
    service = make("member")
    service.systemctl("enable")
    host.run("systemctl", "start", "fm-consumers.target")
    service.until(lambda: broker.depth(queue) == (0, 1), "the target started it")
    host.run("systemctl", "stop", "fm-consumers.target")
    service.until(lambda: service.show("ActiveState") == "inactive", "the target stopped it")
    service.systemctl("disable")


def test_the_unit_is_as_hardened_as_promised(make, host):
    service = make("secure")
    service.systemctl("start")
    scored = host.run("systemd-analyze", "security", "--no-pager", f"{service.unit}.service")
    overall = next(line for line in scored.stdout.splitlines() if "Overall exposure" in line)
    assert float(overall.split(":")[1].split()[0]) <= 1.1, overall


def test_systemd_finds_nothing_wrong_with_the_units(host):
    verified = host.run(
        "systemd-analyze", "verify", "fm-consumer@x.service", "fm-consumers.target", check=False
    )
    assert verified.returncode == 0
    # Settings that systemd 254 and later know.
    known = {"RestartSteps", "RestartMaxDelaySec", "ImportCredential", "RefreshOnReload"}
    known |= {"notify-reload"}
    complaints = [line for line in verified.stderr.splitlines() if "fm-consumer" in line]
    assert [line for line in complaints if not any(name in line for name in known)] == []
