# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a consumer and its settings agree about batches."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from consumer_framework.core.consumer import BatchConsumer
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.settings import Batch, Ordering

if TYPE_CHECKING:
    from consumer_framework.core.settings import Framework

_PATH = "consumer_config.framework.batch"


def check_batch(framework: Framework, value: Any) -> None:
    """Refuse batches for what takes none.

    Args:
        framework: The settings.
        value: The author's object (:attr:`.Target.value`).

    Raises:
        ConfigurationError: There is a ``batch`` table, and no :class:`.BatchConsumer`.
    """
    if framework.batch is None or takes_batches(value):
        return
    name = getattr(value, "__name__", type(value).__name__)
    what = f"{name} takes single messages"
    cure = "make it a subclass of consumer_framework.BatchConsumer, or remove this table"
    raise ConfigurationError(Problem(_PATH, what, cure))


def with_batch(framework: Framework, value: Any) -> Framework:
    """Return *framework* with the defaults of a batch where the consumer takes batches."""
    if framework.batch is not None or not takes_batches(value):
        return framework
    # Where nothing may overtake anything there is never a second message.
    batch = Batch(size=1) if framework.ordering is Ordering.STRICT else Batch()
    return framework.model_copy(update={"batch": batch})


def takes_batches(value: Any) -> bool:
    """Whether *value* is the class of a consumer that gets several messages at once."""
    return inspect.isclass(value) and issubclass(value, BatchConsumer)
