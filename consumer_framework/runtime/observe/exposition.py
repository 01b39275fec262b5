# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics of an instance and of a relay, as Prometheus reads them.

:data:`INSTANCE` and :data:`OUTBOX` are the tables of all metrics; the reference page is made of
them. Facts go in, text comes out: nothing here looks at an instance.

Names are those of OpenTelemetry's semantic conventions for messaging, as its exporter for
Prometheus writes them, where they have one. The others begin with ``fm_consumer_`` or
``fm_outbox_``. This module imports prometheus-client, which takes a tenth of a second: import it
for the first reader.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from consumer_framework.core.durations import Durations, Histogram
from consumer_framework.core.gate import Reason
from consumer_framework.core.health import InstanceCondition
from consumer_framework.core.lifecycle import State
from consumer_framework.runtime.control.routes import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from consumer_framework.adapters.store.records import Stats
    from consumer_framework.core.stats import Counters
    from consumer_framework.publishing.report import RelayReport
    from consumer_framework.runtime.control.schema import StatusReport

    # The values of the labels, and the value; a None has no sample.
    Sample: TypeAlias = tuple[tuple[str, ...], Any]

_log = logging.getLogger(__name__)

# The label of every metric: the NAME in fm-consumer@NAME, and in fm-outbox@NAME.
INSTANCE_LABEL = "fm_instance"
RELAY_LABEL = "fm_relay"
# messaging.system, of OpenTelemetry.
SYSTEM = "rabbitmq"
# By messenger; other messengers have their own names.
_SYSTEMS = dict.fromkeys(("", "amqp", "fedora", "kombu"), SYSTEM)
# The states of a relay; see RelayReport.
RELAY_STATES = ("starting", "sending", "waiting", "standby", "failing", "idle")
TEXT_PLAIN = "text/plain"


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """The facts about an instance at one moment.

    Attributes:
        name: Its name.
        version: The version of consumer_framework.
        report: Its report, without the numbers of its store.
        is_ready: Whether it consumes from every queue.
        counters: Counts settles by topic, and pauses.
        durations: The histograms; None until its handler is set up.
        reasons: The reasons for which it is suspended now.
        slots: Runs of the handler at once.
        connections: Connections that were opened since it started.
        is_connected: Whether there is one now.
        is_blocked: Whether the broker reads nothing from the connection.
        stored: The numbers of its store; None where the store cannot be read.
        store_limit: The most bytes that its messages may take; None for no limit.
        store_file: The bytes of the store's files on the disk; None in memory.
        overdue: Seconds since the first deferred message was due; 0 for none.
        watchdog: Seconds that the service manager waits for a word; 0 for ever.
        margin: Seconds that the longest recent silence was shorter than that.
        published: Messages that its handlers published.
        relay: The report of its relay; None before that starts.
    """

    name: str
    version: str
    report: StatusReport
    is_ready: bool
    counters: Counters
    durations: Durations | None = None
    reasons: Collection[Reason] = ()
    slots: int = 0
    connections: int = 0
    is_connected: bool = False
    is_blocked: bool = False
    stored: Stats | None = None
    store_limit: int | None = None
    store_file: int | None = None
    overdue: float | None = None
    watchdog: float = 0.0
    margin: float | None = None
    published: int = 0
    relay: RelayReport | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes:
        name: Its name; that of a counter ends with ``_total``, those of a histogram's samples with
            ``_bucket``, ``_sum`` and ``_count``.
        kind: ``gauge``, ``counter`` or ``histogram``.
        text: Its meaning.
        labels: The names of its labels, after that of the instance or relay.
        samples: Returns its samples; the value of a histogram is a :class:`.Histogram`.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    labels: tuple[str, ...]
    samples: Callable[[Any], Iterable[Sample]]

    def of(self, facts: Any, label: str, name: str) -> Metric:
        """Return the samples for *facts*, with *label* in front of the other labels."""
        metric: Any = _KINDS[self.kind](self.name, self.text, labels=(label, *self.labels))
        for values, value in self.samples(facts):
            if isinstance(value, Histogram):
                buckets = [(_bound(bound), count) for bound, count in value.cumulative()]
                metric.add_metric((name, *values), buckets, value.sum)
            elif value is not None:
                metric.add_metric((name, *values), float(value))
        found: Metric = metric
        return found


_KINDS: Mapping[str, Any] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else str(bound)


def _gauge(name: str, text: str, get: Callable[[Any], float | None]) -> Family:
    return Family(name, "gauge", text, (), lambda facts: [((), get(facts))])


def _counter(name: str, text: str, get: Callable[[Any], float | None]) -> Family:
    return Family(name, "counter", text, (), lambda facts: [((), get(facts))])


def _one_of(names: Iterable[str], current: str) -> Iterator[Sample]:
    """Yield a sample of 1 for the current one of some states, and of 0 for the others."""
    for name in names:
        yield (name,), name == current


# The samples that take more than an attribute.


def _conditions(facts: InstanceFacts) -> Iterator[Sample]:
    return _one_of((each.value for each in InstanceCondition), facts.report.condition)


def _outcomes(facts: InstanceFacts) -> Iterator[Sample]:
    counts = facts.report.counts
    for name in ("succeeded", "skipped", "failed", "undecodable", "unrouted"):
        yield (name,), getattr(counts, name)


def _dispositions(facts: InstanceFacts) -> Iterator[Sample]:
    for topic, word, number in facts.counters.by_topic():
        yield (topic, word), number


def _consumed(facts: InstanceFacts) -> Iterator[Sample]:
    yield (SYSTEM, "process"), facts.report.counts.received


def _runs(facts: InstanceFacts) -> Iterator[Sample]:
    runs = facts.durations.runs if facts.durations is not None else {}
    for kind, histogram in list(runs.items()):
        yield (SYSTEM, "process", *kind), histogram


def _waits(facts: InstanceFacts) -> Iterator[Sample]:
    waits = facts.durations.waits if facts.durations is not None else {}
    for queue, histogram in list(waits.items()):
        yield (SYSTEM, queue), histogram


def _loss(facts: InstanceFacts) -> Iterator[Sample]:
    loss = facts.report.loss
    if loss is not None:
        yield (loss.subject,), loss.seconds


def _paused(facts: InstanceFacts) -> Iterator[Sample]:
    for reason in Reason:
        yield (reason.name.lower(),), reason in facts.reasons


def _pauses(facts: InstanceFacts) -> Iterator[Sample]:
    for reason, number in facts.counters.pauses.items():
        yield (reason.name.lower(),), number


def _stored(facts: InstanceFacts) -> Iterator[Sample]:
    if facts.stored is not None:
        for state in ("deferred", "quarantined", "replaying", "superseded"):
            yield (state,), getattr(facts.stored, state)


def _in_store(attribute: str) -> Callable[[InstanceFacts], float | None]:
    return lambda facts: getattr(facts.stored, attribute) if facts.stored is not None else None


INSTANCE: tuple[Family, ...] = (
    Family(
        "fm_consumer_build_info",
        "gauge",
        "The version of consumer_framework; always 1.",
        ("version",),
        lambda f: [((f.version,), 1)],
    ),
    _gauge("fm_consumer_up", "1 while the instance answers.", lambda _: 1),
    _gauge(
        "fm_consumer_ready",
        "1 while it consumes from every queue; that is the answer of /ready.",
        lambda f: f.is_ready,
    ),
    Family(
        "fm_consumer_state",
        "gauge",
        "1 for the state of its life that it is in, 0 for the others.",
        ("state",),
        lambda f: _one_of((state.name.lower() for state in State), f.report.state),
    ),
    Family(
        "fm_consumer_condition",
        "gauge",
        "1 for the condition that `fm-consumer status` shows, 0 for the others.",
        ("condition",),
        _conditions,
    ),
    _gauge("fm_consumer_uptime_seconds", "Seconds since it started.", lambda f: f.report.up),
    # Deliveries.
    Family(
        "messaging_client_consumed_messages",
        "counter",
        "Deliveries that a handler got, repetitions included.",
        ("messaging_system", "messaging_operation_name"),
        _consumed,
    ),
    Family(
        "messaging_process_duration_seconds",
        "histogram",
        "Time that a run of the handler took, decoding included; a batch is one run.",
        (
            "messaging_system",
            "messaging_operation_name",
            "messaging_destination_name",
            "fm_route",
            "error_type",
        ),
        _runs,
    ),
    Family(
        "fm_consumer_time_in_queue_seconds",
        "histogram",
        "Time from the publication of a message to the start of its first run, by its `sent-at` "
        "header.",
        ("messaging_system", "messaging_destination_name"),
        _waits,
    ),
    Family(
        "fm_consumer_outcomes",
        "counter",
        "Runs of the handler by their outcome.",
        ("outcome",),
        _outcomes,
    ),
    Family(
        "fm_consumer_dispositions",
        "counter",
        "Settled deliveries by topic and disposition; the first 50 topics have their names.",
        ("topic", "disposition"),
        _dispositions,
    ),
    _gauge("fm_consumer_slots", "Runs of the handler at once, at most.", lambda f: f.slots),
    _gauge("fm_consumer_running", "Messages in handlers now.", lambda f: f.report.counts.running),
    _gauge("fm_consumer_held", "Messages that are held in memory now.", lambda f: f.report.held),
    # The queue.
    _gauge(
        "fm_consumer_lag_messages",
        "Messages that were ready in its queues when it last asked the broker.",
        lambda f: f.report.lag,
    ),
    _gauge(
        "fm_consumer_lag_seconds",
        "Age of the oldest message that waits, known or estimated.",
        lambda f: f.report.lag_seconds,
    ),
    Family(
        "fm_consumer_time_to_loss_seconds",
        "gauge",
        "Time to the next loss if nothing changes; no sample if none is in sight.",
        ("subject",),
        _loss,
    ),
    # The connection.
    _gauge("fm_consumer_connected", "1 while there is a connection.", lambda f: f.is_connected),
    _counter(
        "fm_consumer_connections",
        "Connections that were opened; each after the first is a reconnect.",
        lambda f: f.connections,
    ),
    _gauge(
        "fm_consumer_blocked",
        "1 while the broker has an alarm and reads nothing from the connection.",
        lambda f: f.is_blocked,
    ),
    # Pauses. The breaker is the reason "dependency".
    Family(
        "fm_consumer_paused",
        "gauge",
        "1 while the instance is suspended for this reason; `dependency` is the breaker.",
        ("reason",),
        _paused,
    ),
    Family("fm_consumer_pauses", "counter", "Pauses by their reason.", ("reason",), _pauses),
    # The store.
    Family(
        "fm_consumer_store_messages",
        "gauge",
        "Messages in the store by their state.",
        ("state",),
        _stored,
    ),
    _gauge(
        "fm_consumer_store_bytes",
        "Bytes of the messages in the store, with properties and attempts.",
        _in_store("bytes"),
    ),
    _gauge(
        "fm_consumer_store_limit_bytes",
        "The limit of these bytes; no sample without a limit.",
        lambda f: f.store_limit,
    ),
    _gauge(
        "fm_consumer_store_file_bytes",
        "Bytes of the store's files on the disk.",
        lambda f: f.store_file,
    ),
    _gauge(
        "fm_consumer_blocked_lanes",
        "Ordering keys whose first message is quarantined.",
        _in_store("blocked_lanes"),
    ),
    _gauge(
        "fm_consumer_overdue_seconds",
        "Time since the first deferred message was due; 0 if none is due.",
        lambda f: f.overdue,
    ),
    # The watchdog.
    _gauge(
        "fm_consumer_watchdog_seconds",
        "Time that systemd waits for the instance (WatchdogSec=); no sample without a watchdog.",
        lambda f: f.watchdog or None,
    ),
    _gauge(
        "fm_consumer_watchdog_margin_seconds",
        "That time less the longest silence of the last minutes; systemd aborts at 0.",
        lambda f: f.margin,
    ),
    _counter(
        "fm_consumer_published",
        "Messages that handlers published and the outbox stored.",
        lambda f: f.published,
    ),
)


def _counted(name: str) -> Callable[[RelayReport], float | None]:
    return lambda report: report.counts.get(name, 0)


def _waiting(report: RelayReport) -> Iterator[Sample]:
    if report.waiting is not None:
        yield ("waiting",), report.waiting
        yield ("retrying",), report.retrying
        yield ("dead",), report.dead


def _oldest(report: RelayReport) -> float | None:
    return None if report.waiting is None else report.oldest or 0.0


def _sent(report: RelayReport) -> Iterator[Sample]:
    yield (_SYSTEMS.get(report.messenger, report.messenger), "send"), report.counts.get("sent", 0)


OUTBOX: tuple[Family, ...] = (
    _gauge("fm_outbox_up", "1 while the relay answers.", lambda _: 1),
    Family(
        "fm_outbox_state",
        "gauge",
        "1 for the state of the relay, 0 for the others.",
        ("state",),
        lambda r: _one_of(RELAY_STATES, r.state),
    ),
    _gauge("fm_outbox_uptime_seconds", "Seconds since the relay started.", lambda r: r.up),
    Family(
        "fm_outbox_messages",
        "gauge",
        "Messages in the outbox: to be sent, those of them that failed once, and dead ones.",
        ("state",),
        _waiting,
    ),
    _gauge(
        "fm_outbox_oldest_seconds",
        "Age of the oldest message that is to be sent; 0 for none.",
        _oldest,
    ),
    _gauge("fm_outbox_paused_topics", "Topics that are paused now.", lambda r: len(r.paused)),
    Family(
        "messaging_client_sent_messages",
        "counter",
        "Messages that the relay sent, and the broker confirmed.",
        ("messaging_system", "messaging_operation_name"),
        _sent,
    ),
    _counter("fm_outbox_unroutable", "Sent messages that no queue got.", _counted("unroutable")),
    _counter("fm_outbox_postponed", "Attempts to send that failed.", _counted("postponed")),
    _counter("fm_outbox_dead", "Messages that can never be sent.", _counted("dead")),
    _counter(
        "fm_outbox_skipped",
        "Messages that were not to wait, and were discarded.",
        _counted("skipped"),
    ),
    _counter("fm_outbox_sent_twice", "Messages that two relays sent.", _counted("claims_lost")),
    _counter("fm_outbox_topic_pauses", "Pauses of a topic.", _counted("topics_paused")),
    _counter(
        "fm_outbox_endpoint_failures", "Failures of an endpoint.", _counted("endpoint_failures")
    ),
    _counter(
        "fm_outbox_database_failures", "Failures of the database.", _counted("store_failures")
    ),
)


def of_instance(facts: InstanceFacts) -> Iterator[Metric]:
    """Yield the metrics of an instance, and those of its relay once that has started."""
    for family in INSTANCE:
        yield family.of(facts, INSTANCE_LABEL, facts.name)
    if facts.relay is not None:
        for family in OUTBOX:
            yield family.of(facts.relay, INSTANCE_LABEL, facts.name)


def of_relay(report: RelayReport, name: str) -> Iterator[Metric]:
    """Yield the metrics of a relay in a process of its own."""
    for family in OUTBOX:
        yield family.of(report, RELAY_LABEL, name)


def of_process(label: str, name: str) -> Iterator[Metric]:
    """Yield the metrics of the process, of Python, and those that the author's code registered.

    Args:
        label: The label that every sample gets.
        name: Its value, unless a sample has that label.
    """
    found: list[Metric] = []
    try:
        # All of them first: a broken one must not cut the page.
        found = list(REGISTRY.collect())
    except Exception as error:  # noqa: BLE001 -- the author's code
        _log.warning("the metrics of prometheus_client.REGISTRY cannot be read: %r", error)
    if "process_cpu_seconds" not in {metric.name for metric in found}:
        found += usage_of_process()
    for metric in found:
        copy = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        copy.samples = [
            sample._replace(labels={label: name, **sample.labels}) for sample in metric.samples
        ]
        yield copy


def usage_of_process() -> Iterator[Metric]:
    """Yield processor time, memory and open files, under the names of prometheus-client.

    Its own collector reads the time of the boot first, and gives up where ``/proc`` has processes
    alone, as in the unit (``ProcSubset=pid``).
    """
    times = os.times()
    spent = "Total user and system CPU time spent in seconds."
    yield CounterMetricFamily("process_cpu_seconds", spent, times.user + times.system)
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        size = pages * os.sysconf("SC_PAGE_SIZE")
        text = "Resident memory size in bytes."
        yield GaugeMetricFamily("process_resident_memory_bytes", text, size)
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        yield GaugeMetricFamily("process_open_fds", "Number of open file descriptors.", files)


@dataclass(frozen=True, slots=True)
class _Collected:
    """Stands for a registry of prometheus-client."""

    metrics: tuple[Metric, ...]

    def collect(self) -> Iterator[Metric]:
        return iter(self.metrics)


def rendered(metrics: Iterable[Metric], accept: str = TEXT_PLAIN) -> Page:
    """Write metrics in the form that a reader accepts.

    Args:
        metrics: The metrics; those without samples are left out.
        accept: The ``Accept`` header: OpenMetrics where it names that, otherwise Prometheus' text.
    """
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # It compares versions, and a client may ask for one that is no number.
        encode, content_type = choose_encoder(TEXT_PLAIN)
    collected = _Collected(tuple(metric for metric in metrics if metric.samples))
    # It only asks the registry to collect.
    registry: Any = collected
    return Page(encode(registry), content_type)
