# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``fm-consumer run`` would refuse to start with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer_framework.adapters import codec
from consumer_framework.core.collector import Collector
from consumer_framework.core.settings import Framework
from consumer_framework.host import app, loader
from consumer_framework.host.batching import with_batch

if TYPE_CHECKING:
    from consumer_framework.core.errors import Problem
    from consumer_framework.core.settings import Settings
    from consumer_framework.host.app import Request
    from consumer_framework.host.loader import Target


@dataclass(frozen=True, slots=True)
class Start:
    """How far a start would come.

    Attributes:
        settings: None where the file cannot be used.
        framework: The settings of the file, over those of the author's class.
        problems: Everything that would end it.
        target: The author's object; None where it cannot be had.
    """

    settings: Settings | None
    framework: Framework
    problems: tuple[Problem, ...]
    target: Target | None = None


def examine(request: Request, source: str, absent: frozenset[str] = frozenset()) -> Start:
    """Do what a start does before it connects, and leaves no trace.

    Args:
        request: What to start.
        source: How errors call its file.
        absent: The TOML paths of credentials that cannot be seen.
    """
    found = Collector(source)
    settings = found.call(app.load, request)
    found.call(codec.load_schemas)
    if settings is None:
        return Start(None, Framework(), found.problems)
    found.call(app.check_logging, settings, source)
    # It tells everything that is wrong with the callback and with what goes with it.
    found.call(app.make_plan, request, settings, source, absent)
    target = Collector().call(
        loader.target_of, request.callback, request.callback_file, settings.callback, source
    )
    framework = in_force(settings.framework, target) if target else settings.framework
    return Start(settings, framework, found.problems, target)


def in_force(framework: Framework, target: Target) -> Framework:
    """Return *framework* with what the class of *target* says of itself."""
    recovery = loader.recovery_of(target).overridden_by(framework.recovery)
    with_recovery = framework.model_copy(update={"recovery": recovery})
    return with_batch(with_recovery, target.value)
