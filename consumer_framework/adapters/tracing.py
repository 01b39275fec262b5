# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces runs of the handler and settles with OpenTelemetry, and sends the spans.

::

    publish amq.topic     in the publisher; the headers of the message name it (W3C Trace Context)
          ▲ link
    process QUEUE         from the decoding of the message to the end of the handler
      └── settle QUEUE    the durable effect, and the answer to the broker

The span of a run is the current one while the handler runs: spans of libraries, and those of
messages that it publishes, are below it. Names and attributes are those of OpenTelemetry's semantic
conventions for messaging. Import this module only if traces are on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from opentelemetry import context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from consumer_framework.core.attempt import one_line
from consumer_framework.core.disposition import rule_for
from consumer_framework.core.errors import Signal
from consumer_framework.core.ports import Observer, Settled
from consumer_framework.core.secrets import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace.export import SpanExporter

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.ports import Observation

P = ParamSpec("P")

_log = logging.getLogger(__name__)

# Seconds that the end of the process waits for the last spans.
LAST_SPANS = 3.0
# Runs whose settle is waited for. More are possible only if settles got lost.
_MOST_RUNS = 20_000
_SYSTEM = "rabbitmq"
_NAMED = ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES")
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A run that is traced.

    Attributes:
        span: Its span.
        token: Brings back the context of before.
        deliveries: Its deliveries.
    """

    span: Span
    token: Any
    deliveries: Sequence[Delivery]


def _harmless(
    method: Callable[Concatenate[Tracing, P], object],
) -> Callable[Concatenate[Tracing, P], Any]:
    """Let *method* return None where it would raise: a message is more important than its trace.

    The provider's samplers and span processors may be anybody's. The first failure is logged.
    """

    @wraps(method)
    def guarded(self: Tracing, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception:  # noqa: BLE001 -- anybody's
            level = logging.DEBUG if self.has_failed else logging.WARNING
            self.has_failed = True
            _log.log(level, "a message cannot be traced", exc_info=True)
            return None

    return guarded


class Tracing(Observer):
    """Traces the runs of one instance. No failure of it reaches a message.

    Args:
        provider: Makes the tracer.
        owned: Whether this object ends the provider.

    Attributes:
        has_failed: Whether a message could not be traced.
    """

    def __init__(self, provider: trace.TracerProvider, *, owned: bool = False) -> None:
        self.has_failed = False
        self._provider = provider
        self._owned = owned
        self._tracer = provider.get_tracer("consumer_framework")
        # By delivery: the span of its run, and the end of that in nanoseconds since the epoch.
        self._ended: OrderedDict[tuple[int, int, int], tuple[SpanContext, int]] = OrderedDict()
        self._lock = threading.Lock()

    @_harmless
    def begin(self, deliveries: Sequence[Delivery]) -> Any:
        """Begin the span of a run, and let it be the current one in this context."""
        first = deliveries[0]
        attributes = _attributes(first, "process")
        attributes["messaging.operation.type"] = "process"
        if len(deliveries) > 1:
            attributes["messaging.batch.message_count"] = len(deliveries)
        else:
            attributes["messaging.message.id"] = first.message_id
            attributes["messaging.message.body.size"] = len(first.body)
        if first.route:
            attributes["fm.route"] = first.route
        span = self._tracer.start_span(
            f"process {first.queue}",
            context=context.Context(),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=[link for delivery in deliveries if (link := _link(delivery)) is not None],
        )
        return _Begun(span, context.attach(trace.set_span_in_context(span)), deliveries)

    @_harmless
    def leave(self, begun: _Begun) -> None:
        """Let the span not be the current one any more; call it in the context of its begin."""
        context.detach(begun.token)

    @_harmless
    def end(self, begun: _Begun, error: BaseException | None) -> None:
        """End the span of a run, with the exception that ended the run; in any context."""
        span = begun.span
        if error is not None:
            name = type(error).__name__
            span.set_attribute("error.type", name)
            if not isinstance(error, Signal):
                span.set_status(StatusCode.ERROR, str(redacted(one_line(error))))
        now = time.time_ns()
        span.end(now)
        with self._lock:
            for delivery in begun.deliveries:
                self._ended[_key(delivery)] = (span.get_span_context(), now)
            while len(self._ended) > _MOST_RUNS:
                self._ended.popitem(last=False)

    @_harmless
    def notify(self, event: Observation) -> None:
        """Trace a settle, below the run of its delivery."""
        if not isinstance(event, Settled):
            return
        with self._lock:
            run = self._ended.pop(_key(event.delivery), None)
        if run is None:
            # It did not run.
            return
        parent, ended = run
        disposition = event.decision.disposition
        word = "void" if event.is_void else rule_for(disposition).words.field
        attributes = _attributes(event.delivery, word)
        attributes["messaging.operation.type"] = "settle"
        attributes["messaging.message.id"] = event.delivery.message_id
        self._tracer.start_span(
            f"settle {event.delivery.queue}",
            context=trace.set_span_in_context(NonRecordingSpan(parent)),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=ended,
        ).end()

    def close(self) -> None:
        """Send the last spans, as far as that is quick."""
        if self._owned and isinstance(self._provider, TracerProvider):
            # It waits for a collector that does not answer.
            ending = threading.Thread(target=self._provider.shutdown, daemon=True)
            ending.start()
            ending.join(LAST_SPANS)


def exporter() -> SpanExporter:
    """Make the exporter of spans by OTLP over HTTP; it connects to nothing yet.

    Raises:
        ImportError: A package is missing.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 -- slow
        OTLPSpanExporter,
    )

    return OTLPSpanExporter()


def start(instance: str, to: SpanExporter | None = None) -> Tracing:
    """Trace from now on.

    The author's code, or ``opentelemetry-instrument``, may have set a provider: then that is used.

    Args:
        instance: The name of the instance, which is the name of the service if the environment
            has none.
        to: Sends the spans; None for OTLP over HTTP, as ``$OTEL_EXPORTER_OTLP_ENDPOINT``
            and its relatives say.

    Raises:
        ImportError: A package is missing.
    """
    if isinstance(trace.get_tracer_provider(), TracerProvider) and to is None:
        return Tracing(trace.get_tracer_provider())
    own = {} if any(map(os.environ.get, _NAMED)) else {"service.name": f"fm-consumer@{instance}"}
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(to or exporter()))
    trace.set_tracer_provider(provider)
    return Tracing(provider, owned=True)


def _attributes(delivery: Delivery, operation: str) -> dict[str, Any]:
    return {
        "messaging.system": _SYSTEM,
        "messaging.operation.name": operation,
        "messaging.destination.name": delivery.queue,
        "messaging.rabbitmq.destination.routing_key": str(delivery.routing_key),
    }


def _key(delivery: Delivery) -> tuple[int, int, int]:
    return delivery.generation, delivery.delivery_tag, delivery.row


def _link(delivery: Delivery) -> Link | None:
    """Return the link to the span that published *delivery*; None if its headers name none."""
    headers = delivery.properties.headers or {}
    carrier = {
        name: value
        for name in ("traceparent", "tracestate")
        if isinstance(value := headers.get(name), str)
    }
    if not carrier:
        return None
    found = trace.get_current_span(_propagator.extract(carrier, context.Context()))
    return Link(found.get_span_context()) if found.get_span_context().is_valid else None
