# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces of OpenTelemetry: runs, settles and publications, with the SDK's own spans."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pika
import pytest
from fedora_messaging.message import Message
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from consumer_framework.adapters.executor import Executor, Limits
from consumer_framework.adapters.tracing import Tracing, start
from consumer_framework.author.handler import Handler
from consumer_framework.core import disposition as to
from consumer_framework.core.attempt import NO_HISTORY
from consumer_framework.core.delivery import Failed, Succeeded, Undecodable
from consumer_framework.core.errors import ConfigurationError, Drop, Retry
from consumer_framework.core.ports import Ran, Settled
from consumer_framework.core.recovery import Decision
from consumer_framework.publishing.message import outgoing
from consumer_framework.runtime.assembly.plan import check_traces
from consumer_framework.settings import Framework
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

PUBLISHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class World:
    """An SDK that keeps its spans, and an executor that traces with it."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(self.provider)

    def run(self, handler, *deliveries, decode=None):
        async def scenario():
            executor = Executor(
                handler,
                decode or (lambda delivery: SimpleNamespace(id=delivery.message_id)),
                FakeFlightRecorder(8),
                traces=self.tracing,
            )
            found = [await executor.run(delivery) for delivery in deliveries]
            executor.close()
            return found

        return asyncio.run(scenario())

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def span(self, name):
        (found,) = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def world():
    return World()


def delivered(number=1, **headers):
    properties = pika.BasicProperties(headers=headers, message_id=f"id-{number}")
    return make_delivery()._replace(
        queue="builds", generation=1, delivery_tag=number, properties=properties
    )


def settled(delivery, disposition=None, *, is_void=False):
    decision = Decision(disposition or to.Ack(), NO_HISTORY)
    return Settled(delivery, Succeeded(), decision, is_void)


def handlers(seen):
    def note():
        seen.append(trace.get_current_span().get_span_context())

    def plain(_message):
        note()

    async def coroutine(_message):
        await asyncio.sleep(0)
        note()

    def awaitable(message):
        note()
        return coroutine(message)

    return {"a thread": plain, "a coroutine": coroutine, "an awaitable": awaitable}


@pytest.mark.parametrize("form", ["a thread", "a coroutine", "an awaitable"])
def test_the_span_of_a_run_is_the_current_one_while_its_handler_runs(world, form, caplog):
    seen: list[SpanContext] = []
    call = handlers(seen)[form]
    # Two in the same thread: the context of the first must not be that of the second.
    world.run(Handler(name="handler", call=call), delivered(1), delivered(2))
    first, second = world.spans
    assert {span.name for span in world.spans} == {"process builds"}
    assert {context.span_id for context in seen} == {
        first.context.span_id,
        second.context.span_id,
    }
    assert first.context.trace_id != second.context.trace_id
    assert (first.parent, second.parent) == (None, None)
    assert "detach" not in caplog.text


def test_a_span_says_what_was_processed(world):
    world.run(Handler(name="handler", call=lambda _: None), delivered()._replace(route="late"))
    (span,) = world.spans
    assert span.kind is SpanKind.CONSUMER
    assert span.attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "builds",
        "messaging.rabbitmq.destination.routing_key": delivered().routing_key,
        "messaging.message.id": "id-1",
        "messaging.message.body.size": len(delivered().body),
        "fm.route": "late",
    }


@pytest.mark.parametrize(
    ("value", "is_linked"),
    [(PUBLISHER, True), ("00-0-0-01", False), (7, False), (["a"], False), ("", False)],
)
def test_a_run_is_linked_to_the_publication_that_the_headers_name(world, value, is_linked):
    world.run(Handler(name="handler", call=lambda _: None), delivered(traceparent=value))
    (span,) = world.spans
    assert [format(link.context.span_id, "016x") for link in span.links] == (
        ["00f067aa0ba902b7"] if is_linked else []
    )


def test_a_settle_is_below_its_run_and_takes_from_its_end_to_the_answer(world):
    delivery = delivered()
    world.run(Handler(name="handler", call=lambda _: None), delivery)
    world.tracing.notify(Ran(delivery, Succeeded()))
    world.tracing.notify(settled(delivery, to.Quarantine("bad")))
    run, settle = world.span("process builds"), world.span("settle builds")
    assert settle.parent is not None
    assert settle.parent.span_id == run.context.span_id
    assert settle.context.trace_id == run.context.trace_id
    assert settle.start_time == run.end_time
    assert settle.kind is SpanKind.CLIENT
    assert settle.attributes["messaging.operation.name"] == "quarantine"
    assert settle.attributes["messaging.operation.type"] == "settle"


def test_a_settle_without_a_run_and_one_that_comes_twice_have_no_span(world):
    delivery = delivered()
    world.tracing.notify(settled(delivery))
    world.run(Handler(name="handler", call=lambda _: None), delivery)
    world.tracing.notify(settled(delivery, is_void=True))
    world.tracing.notify(settled(delivery))
    assert world.span("settle builds").attributes["messaging.operation.name"] == "void"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LookupError("gone"), StatusCode.ERROR),
        (Retry("later"), StatusCode.UNSET),
        (Drop("no"), StatusCode.UNSET),
    ],
)
def test_an_exception_is_on_its_span_and_a_signal_is_no_error(world, error, status):
    def fail(_message):
        raise error

    (outcome,) = world.run(Handler(name="handler", call=fail), delivered())
    assert isinstance(outcome, Failed)
    (span,) = world.spans
    assert span.status.status_code is status
    assert span.attributes["error.type"] == type(error).__name__


def test_a_message_that_cannot_be_decoded_has_a_span_with_the_error(world):
    def refuse(_delivery):
        raise ValueError("no JSON")

    handler = Handler(name="handler", call=lambda _: None)
    (outcome,) = world.run(handler, delivered(), decode=refuse)
    assert isinstance(outcome, Undecodable)
    (span,) = world.spans
    assert span.attributes["error.type"] == "ValueError"


def test_the_setup_of_a_handler_has_no_span(world):
    async def scenario():
        handler = Handler(name="handler", call=lambda _: None, setup=lambda: None)
        executor = Executor(handler, lambda d: d, FakeFlightRecorder(1), traces=world.tracing)
        await executor.setup()
        executor.close()

    asyncio.run(scenario())
    assert world.spans == ()


def published():
    message = Message(topic="sample.done", body={})
    return outgoing(message, exchange="amq.topic", now=1.0).headers


def test_a_message_that_a_handler_publishes_names_its_trace(world, monkeypatch):
    monkeypatch.setattr(trace, "get_tracer", world.provider.get_tracer)
    headers = []
    world.run(Handler(name="handler", call=lambda _: headers.append(published())), delivered())
    run, publish = world.span("process builds"), world.span("publish amq.topic")
    assert publish.parent is not None
    assert publish.parent.span_id == run.context.span_id
    assert publish.kind is SpanKind.PRODUCER
    assert publish.attributes["messaging.rabbitmq.destination.routing_key"] == "sample.done"
    trace_id, span_id = publish.context.trace_id, publish.context.span_id
    assert headers[0]["traceparent"].startswith(f"00-{trace_id:032x}-{span_id:016x}-")


def test_a_header_of_the_publishers_own_stays(world, monkeypatch):
    monkeypatch.setattr(trace, "get_tracer", world.provider.get_tracer)
    message = Message(topic="sample.done", body={}, headers={"traceparent": PUBLISHER})
    assert outgoing(message, exchange="e", now=1.0).headers["traceparent"] == PUBLISHER
    assert world.spans == ()


def test_a_tracer_that_fails_stops_no_message(monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("no tracer")

    monkeypatch.setattr(trace, "get_tracer", fail)
    assert "traceparent" not in published()


def test_a_program_that_does_not_trace_imports_no_opentelemetry():
    program = (
        "import sys\n"
        "from fedora_messaging.message import Message\n"
        "from consumer_framework.publishing.message import outgoing\n"
        "made = outgoing(Message(topic='a', body={}), exchange='e', now=1.0)\n"
        "assert 'traceparent' not in made.headers\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_traces_without_their_packages_are_refused_with_the_command_that_installs_them(
    monkeypatch,
):
    check_traces(Framework(traces=True))
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError) as refused:
        check_traces(Framework(traces=True))
    (problem,) = refused.value.problems
    assert problem.path == "consumer_config.framework.traces"
    assert "pip install 'consumer-framework[otel]'" in problem.cure
    check_traces(Framework())


def test_a_batch_is_one_span_with_a_link_for_each_message_and_a_settle_for_each(world):
    deliveries = [delivered(1, traceparent=PUBLISHER), delivered(2), delivered(3)]

    async def scenario():
        handler = Handler(name="handler", call=lambda _: None, call_batch=lambda _batch: None)
        executor = Executor(
            handler,
            lambda delivery: SimpleNamespace(id=delivery.message_id),
            FakeFlightRecorder(8),
            Limits(batch_size=3),
            traces=world.tracing,
        )
        await asyncio.gather(*map(executor.run, deliveries))
        executor.close()

    asyncio.run(scenario())
    for delivery in deliveries:
        world.tracing.notify(settled(delivery))
    run = world.span("process builds")
    assert run.attributes["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in run.attributes
    assert len(run.links) == 1
    settles = [span for span in world.spans if span.name == "settle builds"]
    assert [span.attributes["messaging.message.id"] for span in settles] == ["id-1", "id-2", "id-3"]


def test_runs_whose_settles_never_come_do_not_fill_the_memory(world, monkeypatch):
    monkeypatch.setattr("consumer_framework.adapters.tracing._MOST_RUNS", 2)
    deliveries = [delivered(number) for number in range(5)]
    world.run(Handler(name="handler", call=lambda _: None), *deliveries)
    for delivery in deliveries:
        world.tracing.notify(settled(delivery))
    settles = [span for span in world.spans if span.name == "settle builds"]
    assert [span.attributes["messaging.message.id"] for span in settles] == ["id-3", "id-4"]


@pytest.mark.parametrize(
    ("environment", "service"),
    [({}, "fm-consumer@sample"), ({"OTEL_SERVICE_NAME": "builds"}, "builds")],
)
def test_the_service_is_the_instance_unless_the_environment_names_it(
    monkeypatch, environment, service
):
    provided: list[TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", provided.append)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exporter = InMemorySpanExporter()
    tracing = start("sample", exporter)
    (provider,) = provided
    assert provider.resource.attributes["service.name"] == service
    begun = tracing.begin([delivered()])
    tracing.leave(begun)
    tracing.end(begun, None)
    tracing.close()
    assert [span.name for span in exporter.get_finished_spans()] == ["process builds"]


def test_a_provider_of_the_authors_gets_the_spans_and_is_not_ended(world, monkeypatch):
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: world.provider)
    for _ in range(2):
        tracing = start("sample")
        begun = tracing.begin([delivered()])
        tracing.leave(begun)
        tracing.end(begun, None)
        tracing.close()
    assert [span.name for span in world.spans] == ["process builds"] * 2


class Broken(SpanProcessor):
    """A span processor of somebody else's."""

    def __init__(self, method):
        setattr(self, method, self.fail)

    def fail(self, *_args, **_kwargs):
        raise RuntimeError("a defect")


@pytest.mark.parametrize("method", ["on_start", "on_end"])
def test_a_span_processor_with_a_defect_costs_traces_and_no_messages(world, method, caplog):
    world.provider.add_span_processor(Broken(method))
    first, second = delivered(1), delivered(2)
    handler = Handler("handler", call=lambda _message: None)
    assert world.run(handler, first, second) == [Succeeded(), Succeeded()]
    world.tracing.notify(settled(first))
    assert [each.getMessage() for each in caplog.records] == ["a message cannot be traced"]
