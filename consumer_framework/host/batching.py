# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a consumer and its settings agree about batches."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from consumer_framework.core.consumer import Consumer, handles_singly
from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from consumer_framework.core.settings import Framework

_PATH = "consumer_config.framework.batch"


def check_batch(framework: Framework, value: Any) -> None:
    """Refuse batches for what takes none.

    Args:
        framework: The settings.
        value: The author's object (:attr:`.Target.value`).

    Raises:
        ConfigurationError: There is a ``batch`` table, and no method ``handle_batch``.
    """
    if framework.batch is None or takes_batches(value):
        return
    name = getattr(value, "__name__", type(value).__name__)
    what = f"{name} has no method handle_batch(self, messages)"
    cure = "add it to a subclass of consumer_framework.Consumer, or remove this table"
    raise ConfigurationError(Problem(_PATH, what, cure))


def idle_batch(framework: Framework, value: Any) -> Problem | None:
    """Say that the settings have no ``batch`` for a consumer that handles nothing but batches.

    It is no error: such a consumer gets batches of one message.
    """
    if framework.batch is not None or not takes_batches(value) or handles_singly(value):
        return None
    what = f"without this table {value.__name__}.handle_batch gets one message at a time"
    return Problem(_PATH, what, "set batch = { size = 100, seconds = 1 }")


def takes_batches(value: Any) -> bool:
    """Whether *value* is the class of a consumer with a method ``handle_batch``."""
    is_consumer = inspect.isclass(value) and issubclass(value, Consumer)
    return is_consumer and callable(getattr(value, "handle_batch", None))
