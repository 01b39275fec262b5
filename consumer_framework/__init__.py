# SPDX-License-Identifier: GPL-2.0-or-later
"""Host fedora-messaging consumers as systemd services that do not lose messages.

This package has the public names for authors of consumers, and nothing else: the base classes,
the exceptions that a handler raises on purpose, helpers for handlers, problems for ``fm-consumer
check``, and a log handler for a ``[log_config]`` that sends records to systemd's journal. A handler
may also raise ``Nack``, ``Drop`` and ``HaltConsumer`` of ``fedora_messaging.exceptions``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumer_framework.adapters.systemd.journald import JournalHandler
    from consumer_framework.author.batch import Batch
    from consumer_framework.author.consumer import BatchConsumer, Consumer
    from consumer_framework.author.heartbeat import heartbeat
    from consumer_framework.author.routing import on_message, on_topic
    from consumer_framework.author.steps import AsyncStep, Step
    from consumer_framework.author.translate import on, translate
    from consumer_framework.core.errors import (
        ConsumerFrameworkError,
        Defer,
        DependencyFault,
        Drop,
        Halt,
        HandlerTimeoutError,
        Problem,
        Quarantine,
        Retry,
        Skip,
        StepResultError,
    )
    from consumer_framework.settings import Recovery

__all__ = [
    "AsyncStep",
    "Batch",
    "BatchConsumer",
    "Consumer",
    "ConsumerFrameworkError",
    "Defer",
    "DependencyFault",
    "Drop",
    "Halt",
    "HandlerTimeoutError",
    "JournalHandler",
    "Problem",
    "Quarantine",
    "Recovery",
    "Retry",
    "Skip",
    "Step",
    "StepResultError",
    "heartbeat",
    "on",
    "on_message",
    "on_topic",
    "translate",
]

# Late: pytest imports this package for its plugin, in every project of its environment.
_MODULES = {
    "AsyncStep": ".author.steps",
    "Batch": ".author.batch",
    "BatchConsumer": ".author.consumer",
    "Consumer": ".author.consumer",
    "ConsumerFrameworkError": ".core.errors",
    "Defer": ".core.errors",
    "DependencyFault": ".core.errors",
    "Drop": ".core.errors",
    "Halt": ".core.errors",
    "HandlerTimeoutError": ".core.errors",
    "JournalHandler": ".adapters.systemd.journald",
    "Problem": ".core.errors",
    "Quarantine": ".core.errors",
    "Recovery": ".settings",
    "Retry": ".core.errors",
    "Skip": ".core.errors",
    "Step": ".author.steps",
    "StepResultError": ".core.errors",
    "heartbeat": ".author.heartbeat",
    "on": ".author.translate",
    "on_message": ".author.routing",
    "on_topic": ".author.routing",
    "translate": ".author.translate",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
