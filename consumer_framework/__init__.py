# SPDX-License-Identifier: GPL-2.0-or-later
"""Host fedora-messaging consumers as systemd services that do not lose messages.

For authors of consumers: the base class, and what a handler may raise besides errors. The
exceptions of the same meaning in ``fedora_messaging.exceptions`` (``Nack``, ``Drop``,
``HaltConsumer``) are understood as well.

For a ``[log_config]`` of one's own: a handler that sends records to systemd's journal.
"""

from consumer_framework.adapters.systemd.journald import JournalHandler
from consumer_framework.author.batch import Batch
from consumer_framework.author.consumer import BatchConsumer, Consumer
from consumer_framework.author.heartbeat import heartbeat
from consumer_framework.author.translate import on, translate
from consumer_framework.core.errors import (
    ConsumerFrameworkError,
    Defer,
    DependencyFault,
    Drop,
    Halt,
    HandlerTimeoutError,
    Quarantine,
    Retry,
    Skip,
)

from .settings import Recovery

__all__ = [
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
    "Quarantine",
    "Recovery",
    "Retry",
    "Skip",
    "heartbeat",
    "on",
    "translate",
]
