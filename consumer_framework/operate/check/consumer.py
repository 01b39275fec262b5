# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks the author's class about its ``[consumer_config]``, by its ``check_config``."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING

from consumer_framework.author.consumer import Consumer
from consumer_framework.core.errors import (
    ConfigurationError,
    ExitCode,
    Problem,
    TemporaryProblem,
)
from consumer_framework.runtime.assembly import loader

from .findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from .findings import Finding
    from .start import Start

_TABLE, _FRAMEWORK = "consumer_config", "consumer_config.framework."


def consumer_findings(start: Start, absent: Collection[str], *, connect: bool) -> Iterator[Finding]:
    """Yield the problems that the class of the consumer knows of.

    Args:
        start: Has the author's object. Only a subclass of ``Consumer`` is asked.
        absent: The TOML paths of the credentials that this process does not have.
        connect: Servers may be asked too.
    """
    target, settings = start.target, start.settings
    if target is None or settings is None:
        return
    kind = target.value
    if not (inspect.isclass(kind) and issubclass(kind, Consumer)):
        return
    if any(path.startswith(_TABLE) and not path.startswith(_FRAMEWORK) for path in absent):
        what = "was not checked: that takes a credential that is not to be had here"
        yield info(_TABLE, what)
        return
    try:
        config = loader.config_of(target, settings.consumer_config)
    except ConfigurationError:
        # The start found it too.
        return
    try:
        found = [_finding(problem) for problem in kind.check_config(config, connect=connect)]
    except Exception as raised:  # noqa: BLE001 -- anything, since it is the author's
        what = f"{kind.__name__}.check_config raised {type(raised).__name__}: {raised}"
        yield warning("callback", what, "mend the method")
        return
    yield from found


def _finding(problem: Problem) -> Finding:
    is_temporary = isinstance(problem, TemporaryProblem)
    path = f"{_TABLE}.{problem.path}" if problem.path else _TABLE
    code = ExitCode.TEMPORARY if is_temporary else ExitCode.CONFIGURATION
    return error(replace(problem, path=path), code)
