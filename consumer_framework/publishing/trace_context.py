# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives a published message the context of the trace that it belongs to, in its headers.

A program that traces with OpenTelemetry has imported its API. Only then is there anything to do, so
this module never imports it by itself. The headers are ``traceparent`` and ``tracestate`` (W3C
Trace Context). Baggage stays here: a message bus is public.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_log = logging.getLogger(__name__)

_API = "opentelemetry.trace"
_HEADERS = ("traceparent", "tracestate")


def trace_headers(message_id: str, exchange: str, topic: str) -> Mapping[str, Any]:
    """Trace the publication of a message.

    Args:
        message_id: The id of the message.
        exchange: The exchange that it goes to.
        topic: Its topic.

    Returns:
        The headers that let its consumers find this trace; none if the program does not trace.
    """
    if _API not in sys.modules:
        return {}
    try:
        return _traced(message_id, exchange, topic)
    except Exception:  # noqa: BLE001 -- a message is more important than its trace
        _log.debug("a publication cannot be traced", exc_info=True)
        return {}


def _traced(message_id: str, exchange: str, topic: str) -> Mapping[str, Any]:
    from opentelemetry import trace  # noqa: PLC0415 -- it is imported already
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    attributes = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "create",
        "messaging.destination.name": exchange,
        "messaging.rabbitmq.destination.routing_key": topic,
        "messaging.message.id": message_id,
    }
    found: dict[str, str] = {}
    tracer = trace.get_tracer("consumer_framework")
    kind = trace.SpanKind.PRODUCER
    with tracer.start_as_current_span(f"publish {exchange}", kind=kind, attributes=attributes):
        TraceContextTextMapPropagator().inject(found)
    return {name: found[name] for name in _HEADERS if name in found}
