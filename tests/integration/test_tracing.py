# SPDX-License-Identifier: GPL-2.0-or-later
"""An instance sends its traces to a collector, by OTLP over HTTP."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from consumer_framework.testing.broker.place import reserve_port

from .instance import HEADERS, publish, queue_table, until

PUBLISHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACES = "[consumer_config.framework]\ntraces = true\n"
# Milliseconds.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


class Collector(ThreadingHTTPServer):
    """Takes spans as OpenTelemetry's collector does."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Spans)
        self.spans: list[Any] = []
        self.services: set[str] = set()

    @property
    def environment(self):
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}", **SOON}

    def named(self, name):
        return [span for span in self.spans if span.name == name]


class Spans(BaseHTTPRequestHandler):
    timeout = 30
    server: Collector

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            found = {one.key: one.value.string_value for one in each.resource.attributes}
            self.server.services.add(found["service.name"])
            for scope in each.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def collector():
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_a_trace_goes_from_the_publisher_over_two_handlers(broker, queue_name, start, collector):
    handler = f"""
from fedora_messaging import api
from fedora_messaging.message import Message
def handler(message):
    if message.body["n"] == 1:
        api.publish(Message(topic={queue_name!r}, body={{"n": 2}}))
    note("done", message)
"""
    instance = start(
        broker.url,
        queue_table(queue_name),
        handler,
        extra=TRACES,
        environment=collector.environment,
    ).ready()
    publish(broker.url, queue_name, [1], headers={**HEADERS, "traceparent": PUBLISHER})
    instance.noted("done", 2)
    assert instance.stop() == 0
    assert collector.services == {"fm-consumer@instance"}
    runs = collector.named(f"process {queue_name}")
    first = next(run for run in runs if run.links[0].span_id.hex() == "00f067aa0ba902b7")
    second = next(run for run in runs if run is not first)
    (publication,) = collector.named("publish amq.topic")
    assert publication.parent_span_id == first.span_id
    assert second.links[0].span_id == publication.span_id
    settles = collector.named(f"settle {queue_name}")
    assert {settle.parent_span_id for settle in settles} == {first.span_id, second.span_id}


def test_a_collector_that_is_away_keeps_no_message_and_no_stop(broker, queue_name, start):
    with reserve_port() as holder:
        place = f"http://127.0.0.1:{holder.getsockname()[1]}"
        instance = start(
            broker.url,
            queue_table(queue_name),
            'def handler(message):\n    note("done", message)\n',
            extra=TRACES,
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": place,
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
                **SOON,
            },
        ).ready()
        publish(broker.url, queue_name, range(3))
        instance.noted("done", 3)
        until(lambda: "opentelemetry" in instance.log, "the loss of spans is logged")
        assert instance.stop() == 0
