# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Prometheus reads a real instance, and the rules and the dashboard find their series."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from consumer_framework.testing.broker.place import reserve_port

from .instance import FM_CONSUMER, publish, queue_table, until
from .prometheus import Prometheus, promtool

MONITORING = Path(__file__).resolve().parents[2] / "packaging/monitoring"
RULES = MONITORING / "fm-consumer-rules.yml"
DASHBOARD = MONITORING / "fm-consumer-dashboard.json"
# Metrics of the rules and the dashboard that this instance may lack: it published nothing, loses
# nothing, has no watchdog, may not have asked the broker yet, and is a target of no node-exporter.
NOT_HERE = {
    "fm_consumer_time_to_loss_seconds",
    "fm_consumer_lag_messages",
    "fm_consumer_lag_seconds",
    "fm_consumer_watchdog_margin_seconds",
    "fm_consumer_watchdog_seconds",
    "fm_outbox_messages",
    "fm_outbox_oldest_seconds",
    "messaging_client_sent_messages_total",
    "node_textfile_mtime_seconds",
}

HANDLER = """
def handler(message):
    if message.body["n"] == 3:
        raise LookupError("gone")
    note("done", message)
"""


def metrics_in(text):
    found = set(re.findall(r"\b(?:fm_(?:consumer|outbox)|messaging|node)_[a-z_]+", text))
    return found - {"fm_consumers"}


@pytest.fixture
def port():
    with reserve_port() as holder:
        yield holder.getsockname()[1]


def monitored(port, **more):
    lines = [f'[monitoring]\nport = {port}\naddress = "127.0.0.1"']
    lines += [f"[consumer_config.framework.{table}]\n{text}" for table, text in more.items()]
    return "\n".join(lines) + "\n"


def get(port, path, accept="*/*"):
    """Return the status and the body of a page."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 -- of a constant
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def instance(broker, queue_name, start, port):
    """Run an instance that handled three messages, and quarantined one after two runs."""
    extra = monitored(port, recovery="delays = []")
    running = start(broker.url, queue_table(queue_name), HANDLER, extra=extra).ready()
    headers = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}
    headers["sent-at"] = "2026-01-01T00:00:00+00:00"
    publish(broker.url, queue_name, range(4), headers=headers)
    running.noted("done", 3)
    until(lambda: 'disposition="quarantine"' in get(port, "/metrics")[1], "one is quarantined")
    return running


def test_prometheus_scrapes_a_running_instance(instance, port, queue_name, tmp_path):
    status, page = get(port, "/metrics")
    assert status == 200
    assert promtool("check", "metrics", given=page) == (0, "")
    with Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{port}"], [RULES]) as prometheus:
        until(lambda: prometheus.query("fm_consumer_up"), "it is scraped")
        until(
            lambda: all(rule["health"] == "ok" for rule in prometheus.rules()),
            lambda: str([rule for rule in prometheus.rules() if rule["health"] != "ok"]),
        )
        used = {*metrics_in(RULES.read_text()), *metrics_in(DASHBOARD.read_text())}
        absent = {name for name in used if not prometheus.query(name)}
        assert absent <= NOT_HERE

        def value(expression):
            ((_labels, found),) = prometheus.query(expression)
            return found

        assert value("fm_consumer_ready") == 1
        assert value("fm_consumer_state == 1") == 1
        assert value("messaging_client_consumed_messages_total") == 5
        good = f'{{messaging_destination_name="{queue_name}",error_type=""}}'
        assert value(f"messaging_process_duration_seconds_count{good}") == 3
        assert value('messaging_process_duration_seconds_count{error_type="LookupError"}') == 2
        assert (
            value(f'fm_consumer_dispositions_total{{topic="{queue_name}",disposition="ack"}}') == 3
        )
        assert value('fm_consumer_store_messages{state="quarantined"}') == 1
        assert value("fm_consumer_time_in_queue_seconds_count") == 4
        assert value("fm_consumer_connections_total") == 1
        assert value("fm_consumer_store_file_bytes") > 4096
        alert = 'ALERTS{alertname="ConsumerQuarantines",fm_instance="instance"}'
        until(lambda: prometheus.query(alert), "the alert is pending")
        assert value("process_resident_memory_bytes") > 1e6
    status, page = get(port, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert page.endswith("# EOF\n")
    merged = subprocess.run(
        [FM_CONSUMER, "metrics", "instance", "--state-dir", str(instance.state)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "STATE_DIRECTORY": str(instance.state),
            "RUNTIME_DIRECTORY": str(instance.state.parent),
        },
    ).stdout
    assert promtool("check", "metrics", given=merged) == (0, "")
    assert 'process_resident_memory_bytes{fm_instance="instance"}' in merged
    pages = "The pages are /live, /metrics, /ready.\n"
    assert get(port, "/elsewhere") == get(port, "/") == get(port, "/a/b?c") == (404, pages)
    assert instance.stop() == 0


def test_an_instance_that_does_not_consume_is_live_and_not_ready(broker, queue_name, start, port):
    handler = """
from consumer_framework import DependencyFault
def handler(message):
    raise DependencyFault("the database is gone")
"""
    extra = monitored(
        port, recovery="[consumer_config.framework.recovery.breaker]\nconsecutive = 1"
    )
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    assert get(port, "/ready")[0] == 200
    publish(broker.url, queue_name, [1])
    until(lambda: get(port, "/ready")[0] == 503, "it pauses")
    found = json.loads(get(port, "/ready")[1])
    assert found["consuming"] is False
    assert found["state"] == "paused"
    assert "the database is gone" in found["reason"]
    assert get(port, "/live") == (200, '{"status": "OK"}\n')
    page = get(port, "/metrics")[1]
    assert 'fm_consumer_paused{fm_instance="instance",reason="dependency"} 1.0' in page
    assert 'fm_consumer_pauses_total{fm_instance="instance",reason="dependency"} 1.0' in page
    assert instance.stop() == 0


def test_pages_answer_while_the_handler_is_set_up(broker, queue_name, start, port, tmp_path):
    handler = f"""
import asyncio
from pathlib import Path
from consumer_framework import Consumer
class Slow(Consumer):
    async def setup(self):
        while not Path({str(tmp_path / "go")!r}).exists():
            await asyncio.sleep(0.02)
    async def handle(self, message):
        pass
handler = Slow
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=monitored(port))

    def answer():
        try:
            return get(port, "/ready")
        except OSError:
            return None

    status, body = until(answer, "it listens")
    assert (status, json.loads(body)["state"]) == (503, "building")
    assert get(port, "/live")[0] == 200
    assert (
        'fm_consumer_state{fm_instance="instance",state="building"} 1.0' in get(port, "/metrics")[1]
    )
    (tmp_path / "go").touch()
    instance.ready()
    assert get(port, "/ready")[0] == 200
    assert instance.stop() == 0


def test_promtool_passes_the_rules_with_their_tests_and_the_example():
    code, said = promtool("test", "rules", MONITORING / "fm-consumer-rules-test.yml")
    assert code == 0, said
    code, said = promtool("check", "config", "--syntax-only", MONITORING / "prometheus-example.yml")
    assert code == 0, said
