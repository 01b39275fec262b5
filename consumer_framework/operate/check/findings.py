# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``fm-consumer check`` finds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from consumer_framework.core.errors import ExitCode, Problem

# What ``--strict`` makes of warnings.
STRICT = 1


class Level(Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should know before an instance starts.

    Attributes:
        level: An error keeps the instance from its work; a warning names what may be lost.
        problem: Where it is, what it is, and what to do.
        exit_code: What ``fm-consumer run`` would exit with because of an error.
    """

    level: Level
    problem: Problem
    exit_code: int = ExitCode.CONFIGURATION

    def at(self, source: str) -> Finding:
        """Say where it was found, unless it says so itself."""
        return replace(self, problem=replace(self.problem, source=self.problem.source or source))


def error(problem: Problem, exit_code: int = ExitCode.CONFIGURATION) -> Finding:
    """Make a finding that keeps the instance from its work."""
    return Finding(Level.ERROR, problem, exit_code)


def warning(path: str, message: str, cure: str = "") -> Finding:
    """Make a finding of something that may go wrong."""
    return Finding(Level.WARNING, Problem(path, message, cure))


def info(path: str, message: str, cure: str = "") -> Finding:
    """Make a finding that is good to know."""
    return Finding(Level.INFO, Problem(path, message, cure))


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found.

    Attributes:
        subject: What was looked at: a file, or an instance.
        findings: The worst come first.
    """

    subject: str
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        """How many findings there are of *level*."""
        return sum(finding.level is level for finding in self.findings)

    def exit_code(self, *, strict: bool) -> int:
        """What the command exits with.

        The code of ``fm-consumer run``, which looks at the configuration before it connects;
        with *strict*, :data:`STRICT` where there are warnings alone.
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
