# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of ``fm-consumer check``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from consumer_framework.core.errors import ExitCode, Problem

if TYPE_CHECKING:
    from consumer_framework.settings import TomlLines

# The exit code for warnings with ``--strict``.
STRICT = 1


class Level(Enum):
    """The severity of a finding."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact that an operator should know before an instance starts.

    Attributes:
        level: An error keeps the instance from its work; a warning names a possible loss.
        problem: Its place, the fact and its cure.
        exit_code: The exit code of ``fm-consumer run`` for an error.
    """

    level: Level
    problem: Problem
    exit_code: int = ExitCode.CONFIGURATION

    def at(self, source: str, lines: TomlLines | None = None) -> Finding:
        """Return the finding with *source* as its place, unless it has one.

        Args:
            source: A file.
            lines: The lines of its keys; None if it has none.
        """
        problem = self.problem
        if problem.source not in {"", source}:
            return self
        line = problem.line or (lines.line_of(problem.path) if lines else 0)
        return replace(self, problem=replace(problem, source=source, line=line))


def error(problem: Problem, exit_code: int = ExitCode.CONFIGURATION) -> Finding:
    """Make an error: it keeps the instance from its work."""
    return Finding(Level.ERROR, problem, exit_code)


def warning(path: str, message: str, cure: str = "") -> Finding:
    """Make a warning: something may go wrong."""
    return Finding(Level.WARNING, Problem(path, message, cure))


def info(path: str, message: str, cure: str = "") -> Finding:
    """Make a note that is good to know."""
    return Finding(Level.INFO, Problem(path, message, cure))


@dataclass(frozen=True, slots=True)
class Report:
    """All findings of one check.

    Attributes:
        subject: The file, or the instance, that was checked.
        findings: The worst come first.
    """

    subject: str
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        """Count the findings of *level*."""
        return sum(finding.level is level for finding in self.findings)

    def exit_code(self, *, strict: bool) -> int:
        """Return the exit code of the command.

        It is that of ``fm-consumer run``, which checks the configuration before it connects.
        With *strict* and warnings alone it is :data:`STRICT`.
        """
        codes = [f.exit_code for f in self.findings if f.level is Level.ERROR]
        if codes:
            return ExitCode.CONFIGURATION if ExitCode.CONFIGURATION in codes else codes[0]
        return STRICT if strict and self.count(Level.WARNING) else ExitCode.OK


def report(subject: str, findings: tuple[Finding, ...]) -> Report:
    """Put findings in order, each once."""
    order = list(Level)
    unique = dict.fromkeys(findings)
    return Report(subject, tuple(sorted(unique, key=lambda f: order.index(f.level))))
