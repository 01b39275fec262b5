# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics: counts by topic, the pages of an instance and of a relay, and the port."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as parsed
from twisted.internet import task

from consumer_framework.core import disposition as to
from consumer_framework.core.attempt import NO_HISTORY
from consumer_framework.core.delivery import Failed, Succeeded
from consumer_framework.core.durations import MOST_NAMES, OTHER, Durations
from consumer_framework.core.gate import Reason
from consumer_framework.core.health import HEALTHY, Unhealthy
from consumer_framework.core.lifecycle import State
from consumer_framework.core.ports import Paused, Ran, Settled, StateChanged
from consumer_framework.core.recovery import Decision
from consumer_framework.core.secrets import hide
from consumer_framework.core.stats import Counters
from consumer_framework.publishing.report import PausedTopic, RelayReport
from consumer_framework.runtime.control.schema import Counts, StatusReport
from consumer_framework.runtime.monitoring_port import RETRY, MonitoringPort
from consumer_framework.runtime.observe import exposition
from consumer_framework.runtime.observe.exposition import INSTANCE, OUTBOX, InstanceFacts
from consumer_framework.runtime.observe.pages import RelayPages, live
from consumer_framework.runtime.watchdog import SILENCE_WINDOW, Silence
from consumer_framework.settings import Monitoring
from consumer_framework.settings.workers import number_on_host
from consumer_framework.testing import make_delivery


def settled(topic, disposition, *, is_void=False):
    delivery = make_delivery()._replace(routing_key=topic)
    outcome = Succeeded() if isinstance(disposition, to.Ack) else Failed(ValueError())
    return Settled(delivery, outcome, Decision(disposition, NO_HISTORY), is_void)


# Counts by topic.


def test_settles_are_counted_by_topic_and_disposition():
    metrics = Counters()
    metrics.notify(Ran(make_delivery(), Succeeded()))
    for event in (
        settled("a", to.Ack()),
        settled("a", to.Ack()),
        settled("a", to.Quarantine("bad")),
        settled("b", to.Hold(5.0)),
        settled("b", to.Ack(), is_void=True),
        settled("b", to.Halt(13, requeue=True)),
    ):
        metrics.notify(event)
    metrics.notify(StateChanged(State.CONNECTING, State.SUBSCRIBING))
    assert sorted(metrics.by_topic()) == [
        ("a", "ack", 2),
        ("a", "quarantine", 1),
        ("b", "halt", 1),
        ("b", "hold", 1),
        ("b", "void", 1),
    ]


def test_topics_have_a_bound_and_no_settle_is_lost_to_it():
    metrics = Counters()
    for number in range(3 * MOST_NAMES):
        metrics.notify(settled(f"topic.{number}", to.Ack()))
    found = list(metrics.by_topic())
    assert len(found) == MOST_NAMES + 1
    assert (OTHER, "ack", 2 * MOST_NAMES) in found


def test_a_pause_is_counted_once_however_often_its_words_change():
    metrics = Counters()
    for reason, text in (
        (Reason.DEPENDENCY, "gone; next probe in 5 s"),
        (Reason.DEPENDENCY, "gone; next probe in 30 s"),
        (Reason.STORE, "the disk is full"),
        (Reason.DEPENDENCY, ""),
        (Reason.DEPENDENCY, "gone again"),
    ):
        metrics.notify(Paused(reason, text))
    assert metrics.pauses[Reason.DEPENDENCY] == 2
    assert metrics.pauses[Reason.STORE] == 1


# The page.


def facts(**changes):
    counters = Counters()
    counters.notify(settled('topic "with"\\marks\nand lines', to.Ack()))
    durations = Durations()
    durations.ran([make_delivery()], 1.0, 1.2, "ValueError")
    stored = SimpleNamespace(
        deferred=2, quarantined=3, replaying=0, superseded=1, bytes=4096, blocked_lanes=0
    )
    given = {
        "report": StatusReport(
            state="consuming", lag=40, condition="consuming", counts=Counts(received=1, failed=1)
        ),
        "is_ready": True,
        "counters": counters,
        "durations": durations,
        "reasons": (Reason.DEPENDENCY,),
        "stored": stored,
        "watchdog": 30.0,
        "margin": 19.5,
        "relay": RelayReport("waiting", waiting=7, dead=1, messenger="amqp", counts={"sent": 5}),
        **changes,
    }
    return InstanceFacts("sample", "1.2", **given)


def value_of(text, name, **labels):
    (value,) = [
        sample.value
        for family in parsed(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return value


def page_of(found, accept="text/plain"):
    page = exposition.rendered(exposition.of_instance(found), accept)
    return page.content_type, page.body.decode()


@pytest.mark.parametrize("version", ["abc", "\xff", "", "9.9.9"])
def test_a_reader_that_asks_for_a_form_that_nobody_knows_gets_the_page(version):
    _, text = page_of(facts(), f"application/openmetrics-text;version={version}")
    assert "fm_consumer_up" in text


def test_the_page_has_every_metric_of_the_table_that_has_a_value():
    content_type, text = page_of(facts())
    assert content_type.startswith("text/plain; version=0.0.4")
    families = {family.name for family in parsed(text)}
    unknown = {"fm_consumer_lag_seconds", "fm_consumer_time_to_loss_seconds"}
    unknown |= {"fm_consumer_store_limit_bytes", "fm_consumer_store_file_bytes"}
    unknown |= {"fm_consumer_overdue_seconds"}
    assert families == {family.name for family in (*INSTANCE, *OUTBOX)} - unknown
    assert value_of(text, "fm_consumer_paused", reason="dependency") == 1
    assert value_of(text, "fm_consumer_paused", reason="store") == 0
    assert value_of(text, "fm_consumer_state", state="consuming") == 1
    assert value_of(text, "fm_consumer_condition", condition="consuming") == 1
    assert value_of(text, "fm_consumer_condition", condition="lagging") == 0
    assert value_of(text, "fm_consumer_store_messages", state="quarantined") == 3
    assert value_of(text, "messaging_process_duration_seconds_count", error_type="ValueError") == 1
    assert value_of(text, "messaging_process_duration_seconds_bucket", le="0.25") == 1
    assert value_of(text, "messaging_process_duration_seconds_bucket", le="0.1") == 0
    assert value_of(text, "messaging_client_sent_messages_total") == 5
    assert value_of(text, "fm_outbox_messages", state="waiting") == 7


def test_every_sample_names_the_instance():
    for family in parsed(page_of(facts())[1]):
        for sample in family.samples:
            assert sample.labels["fm_instance"] == "sample", sample


def test_a_topic_with_marks_and_lines_breaks_no_page():
    text = page_of(facts())[1]
    assert value_of(text, "fm_consumer_dispositions_total", topic='topic "with"\\marks\nand lines')


def test_a_reader_gets_openmetrics_if_it_asks():
    content_type, text = page_of(facts(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert {family.name for family in open_metrics(text)} >= {"fm_consumer_ready"}


def test_an_instance_that_is_not_built_and_has_no_store_has_a_page():
    found = facts(durations=None, stored=None, margin=None, watchdog=0.0, relay=None)
    text = page_of(found)[1]
    assert "fm_consumer_ready" in text
    for absent in ("messaging_process", "fm_consumer_store", "watchdog", "fm_outbox"):
        assert absent not in text


def test_names_and_labels_are_unique_and_legal():
    families = [*INSTANCE, *OUTBOX]
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"(fm_consumer|fm_outbox|messaging)_[a-z_]+", family.name)
        assert family.text.endswith(".")


def test_metrics_of_the_authors_are_on_the_page_and_broken_ones_leave_them_out(caplog):
    class Broken:
        def collect(self):
            raise RuntimeError("not today")

    own = Counter("sample_builds", "Builds.")
    own.inc(3)
    try:
        found = exposition.rendered(exposition.of_process("fm_instance", "sample")).body.decode()
        assert value_of(found, "sample_builds_total", fm_instance="sample") == 3
        assert "process_resident_memory_bytes" in found
        broken = Broken()
        REGISTRY._collector_to_names[broken] = ["broken"]
        try:
            names = {metric.name for metric in exposition.of_process("fm_instance", "sample")}
            assert names == {each.name for each in exposition.usage_of_process()}
        finally:
            del REGISTRY._collector_to_names[broken]
        assert "not today" in caplog.text
    finally:
        REGISTRY.unregister(own)


def test_the_usage_of_the_process_is_known_without_the_time_of_the_boot():
    found = {
        sample.name: sample.value
        for metric in exposition.usage_of_process()
        for sample in metric.samples
    }
    assert found.keys() == {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    }
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert found["process_open_fds"] > 2
    assert found["process_cpu_seconds_total"] > 0


# /live and /ready.


def test_live_is_the_watchdogs_verdict():
    good, bad = live(HEALTHY), live(Unhealthy("the handler does not return"))
    assert (good.status, json.loads(good.body)) == (200, {"status": "OK"})
    assert bad.status == 503
    assert json.loads(bad.body) == {"status": "stuck", "reason": "the handler does not return"}


@pytest.mark.parametrize(
    ("report", "status", "reason"),
    [
        (RelayReport("sending"), 200, None),
        (RelayReport("standby"), 200, None),
        (RelayReport("waiting", trouble="connection refused"), 503, "connection refused"),
        (RelayReport("starting"), 503, "starting"),
    ],
)
def test_a_relay_is_ready_while_it_sends_or_stands_by(report, status, reason):
    pages = RelayPages("web", lambda: report, lambda: False).by_path
    page = pages["/ready"]("")
    assert page.status == status
    assert json.loads(page.body).get("reason") == reason
    assert pages["/live"]("").status == 200


def test_a_reason_tells_no_secret():
    hide("hunter2-of-the-database", "the password of the database")
    report = RelayReport("failing", trouble="postgresql://web:hunter2-of-the-database@db: refused")
    page = RelayPages("web", lambda: report, lambda: False).by_path["/ready"]("")
    assert b"refused" in page.body
    assert b"hunter2" not in page.body


def test_a_relay_whose_thread_does_not_move_is_not_live():
    pages = RelayPages("web", RelayReport, lambda: True).by_path
    assert pages["/live"]("").status == 503


def test_a_relay_shows_its_outbox():
    report = RelayReport(
        "sending", waiting=0, messenger="stomp", paused=(PausedTopic("amq.topic", "a", 9.0),)
    )
    text = RelayPages("web", lambda: report, lambda: False).by_path["/metrics"]("").body.decode()
    assert value_of(text, "fm_outbox_up", fm_relay="web") == 1
    assert value_of(text, "fm_outbox_oldest_seconds") == 0
    assert value_of(text, "fm_outbox_paused_topics") == 1
    assert value_of(text, "messaging_client_sent_messages_total", messaging_system="stomp") == 0


# The watchdog's margin.


def test_the_longest_silence_is_remembered_for_some_minutes_and_then_forgotten():
    silence = Silence()
    assert silence.longest(5.0) is None
    for now in (10.0, 12.0, 20.0, 22.0):
        silence.end(now)
    assert silence.longest(23.0) == 8.0
    silence.end(22.0 + SILENCE_WINDOW)
    assert silence.longest(22.0 + SILENCE_WINDOW) == SILENCE_WINDOW
    for step in range(2):
        for seconds in range(0, int(SILENCE_WINDOW) + 1, 10):
            silence.end(22.0 + (step + 1) * SILENCE_WINDOW + seconds)
    assert silence.longest(22.0 + 3 * SILENCE_WINDOW) == 10.0


def test_a_silence_that_goes_on_counts_too():
    silence = Silence()
    silence.end(10.0)
    assert silence.longest(27.0) == 17.0


# The port.


class Reactor(task.Clock):
    """Twisted's clock, and ports of which some are taken."""

    def __init__(self, *refusals):
        super().__init__()
        self.refusals = list(refusals)
        self.listened = []

    def listenTCP(self, port, _site, backlog, interface):  # noqa: N802 -- Twisted's name
        self.listened.append((interface, port, backlog))
        if self.refusals:
            raise self.refusals.pop(0)
        return SimpleNamespace(stopListening=lambda: "stopped")


def test_a_port_that_is_taken_is_told_and_tried_again_until_it_is_free(caplog):
    told: list[str] = []
    in_use = OSError(98, "Address already in use")
    reactor = Reactor(in_use, in_use)
    port = MonitoringPort(("127.0.0.1", 8000), {}, reactor, told.append)
    port.startService()
    reactor.advance(RETRY)
    assert set(told) == {"monitoring port 127.0.0.1:8000: cannot listen: Address already in use"}
    assert len(caplog.records) == 1, "it is logged once"
    reactor.advance(RETRY)
    assert told[-1] == ""
    assert reactor.listened == [("127.0.0.1", 8000, 16)] * 3
    reactor.advance(10 * RETRY)
    assert len(reactor.listened) == 3
    assert port.stopService() == "stopped"


@pytest.mark.parametrize("refusal", [OverflowError("port must be 0-65535"), ValueError("no IP")])
def test_a_place_that_cannot_be_is_told_and_ends_nothing(refusal):
    told: list[str] = []
    port = MonitoringPort(("::1", 70000), {}, Reactor(refusal), told.append)
    port.startService()
    assert told == [f"monitoring port [::1]:70000: cannot listen: {refusal}"]
    assert port.stopService() is None


def test_an_end_while_the_port_is_taken_leaves_no_timer():
    reactor = Reactor(OSError(98, "Address already in use"))
    port = MonitoringPort(("127.0.0.1", 8000), {}, reactor, lambda _: None)
    port.startService()
    port.stopService()
    assert reactor.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("address", "worker", "place"),
    [
        ("", 1, ("127.0.0.1", 8000)),
        ("", 3, ("127.0.0.1", 8002)),
        ("::", 1, ("::", 8000)),
        ("192.0.2.1", 2, ("192.0.2.1", 8001)),
    ],
)
def test_it_listens_on_loopback_unless_told_otherwise_and_each_worker_has_a_port(
    address, worker, place
):
    assert Monitoring(address=address, port=8000).place(worker) == place


def test_a_worker_that_may_not_look_at_its_file_has_the_number_of_its_name(tmp_path):
    # Root may look at everything, so the directory cannot be looked at for another reason.
    closed = tmp_path / ("x" * 300)
    assert [number_on_host(name, closed) for name in ("builds", "builds_3")] == [1, 3]


def test_a_worker_has_its_number_by_the_link_of_its_file(tmp_path):
    (tmp_path / "builds.toml").write_text("")
    (tmp_path / "builds_3.toml").symlink_to("builds.toml")
    (tmp_path / "own_2.toml").write_text("")
    (tmp_path / "other_2.toml").symlink_to("builds.toml")
    numbers = {
        name: number_on_host(name, tmp_path)
        for name in ("builds", "builds_3", "own_2", "other_2", "gone_4")
    }
    assert numbers == {"builds": 1, "builds_3": 3, "own_2": 1, "other_2": 1, "gone_4": 1}


# The rules and the dashboard.

MONITORING = Path(__file__).resolve().parents[2] / "packaging/monitoring"


def test_the_rules_and_the_dashboard_use_metrics_that_there_are():
    names = {
        f"{each.name}{suffix}"
        for each in (*INSTANCE, *OUTBOX)
        for suffix in {
            "counter": ("_total",),
            "gauge": ("",),
            "histogram": ("_bucket", "_sum", "_count"),
        }[each.kind]
    }
    for file in MONITORING.iterdir():
        text = file.read_text()
        used = set(re.findall(r"\b(?:fm_consumer|fm_outbox|messaging)_[a-z_]+", text))
        assert used - names - {"fm_consumers", "messaging_destination_name"} == set(), file


def test_each_alert_has_a_test_and_none_fires_for_a_healthy_instance():
    rules = (MONITORING / "fm-consumer-rules.yml").read_text()
    tests = (MONITORING / "fm-consumer-rules-test.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(set(alerts)) == len(alerts) >= 15
    fires, quiet = tests.split("- name: A healthy instance")
    for alert in alerts:
        assert f"- name: {alert}\n" in fires
        assert f"- {{alertname: {alert}, eval_time: 2h, exp_alerts: []}}" in quiet


def test_the_dashboard_has_a_place_for_each_panel():
    board = json.loads((MONITORING / "fm-consumer-dashboard.json").read_text())
    places: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert max(x for x, _ in cells) < 24
        places |= cells
        assert panel["targets"][0]["expr"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_an_instance_imports_no_library_of_metrics_before_somebody_reads_them():
    program = (
        "import sys\n"
        "from consumer_framework.runtime import reactor\n"
        "reactor.install()\n"
        "from consumer_framework.runtime import app, outbox\n"
        "import consumer_framework.cli.metrics\n"
        "found = {'prometheus_client', 'opentelemetry'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
