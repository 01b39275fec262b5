# SPDX-License-Identifier: GPL-2.0-or-later
"""Several things that may each be wrong: all of them are tried, and all problems told at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import Problem

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Collector:
    """Calls one thing after the other, and keeps what they say is wrong.

    Args:
        source: Where problems are that name no place themselves.
    """

    def __init__(self, source: str = "") -> None:
        self._source = source
        self._problems: list[Problem] = []

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong so far, each with its place, and nothing twice."""
        return tuple(dict.fromkeys(self._problems))

    def call(
        self,
        function: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result | None:
        """Call *function*; returns None where it raised a :class:`.ConfigurationError`."""
        try:
            return function(*args, **kwargs)
        except ConfigurationError as error:
            located = ConfigurationError(*error.located, source=self._source)
            self._problems += located.located
            return None

    def error(self) -> ConfigurationError:
        """Everything that is wrong, as one error."""
        return ConfigurationError(*self.problems)
