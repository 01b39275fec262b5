# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether more than one worker of a configuration makes sense."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.queues import is_single_active

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.settings import Settings


def check(settings: Settings, source: str) -> None:
    """Refuse what workers cannot share.

    Raises:
        ConfigurationError: With every problem there is, each with its TOML path.
    """
    problems = list(_problems(settings))
    if problems:
        raise ConfigurationError(*problems, source=source)


def _problems(settings: Settings) -> Iterator[Problem]:
    for name, queue in settings.queues.items():
        if not name:
            what = "the broker names a queue for each worker, so each would get every message"
            yield Problem('queues.""', what, "give the queue a name, and exclusive = false")
        elif queue.exclusive:
            what = "the queue belongs to one connection, so a second worker is refused"
            yield Problem(f'queues."{name}".exclusive', what, "set it to false")
    if settings.monitoring is not None:
        what = f"only one worker can listen on port {settings.monitoring.port}"
        yield Problem("monitoring.port", what, "remove [monitoring]")


def standby_queues(settings: Settings) -> list[str]:
    """The queues that give their messages to one worker at a time, in the order of the file."""
    return [name for name, queue in settings.queues.items() if is_single_active(queue)]
