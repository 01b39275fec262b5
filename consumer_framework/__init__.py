# SPDX-License-Identifier: GPL-2.0-or-later
"""Host fedora-messaging consumers as systemd services that do not lose messages.

For authors of consumers: the base class, and what a handler may raise besides errors. The
exceptions of the same meaning in ``fedora_messaging.exceptions`` (``Nack``, ``Drop``,
``HaltConsumer``) are understood as well.

For a ``[log_config]`` of one's own: a handler that sends records to systemd's journal.
"""

from .adapters.journald import JournalHandler
from .core.batch import Batch
from .core.consumer import BatchConsumer, Consumer
from .core.errors import (
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
from .core.heartbeat import heartbeat
from .core.helpers import on, translate
from .core.settings import Recovery

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
