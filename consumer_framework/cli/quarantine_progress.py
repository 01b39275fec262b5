# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows the progress of ``fm-consumer quarantine replay``, for people and as lines of JSON."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import click

from consumer_framework.core.ramp import SUCCEEDED
from consumer_framework.core.text import plural

from . import terminal

if TYPE_CHECKING:
    from consumer_framework.runtime.control.replays import Answer
    from consumer_framework.runtime.control.schema import RampEnded, Replayed, Stage

    from .options import Where

# With more rows there is no line for each: a terminal shows a bar, a file gets the failures.
_MANY = 20

_RESULTS = {
    "succeeded": "succeeded",
    "failed": "failed again",
    "skipped": "skipped",
    "defer": "deferred by the handler",
    "reject": "dropped by the handler",
    "halt": "halted the instance",
}


@dataclass(slots=True)
class ReplayProgress:
    """Shows the result of each replayed row, and counts.

    Args:
        total: The number of rows that are to run.
        as_json: Print a JSON object on each line.
        resume: The command that goes on with it; "" if none does.
    """

    total: int
    as_json: bool
    resume: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    running: int | None = None
    ended: RampEnded | None = None
    _bar: Any = None
    # The stage that runs, and the counts at its beginning.
    _stage: Stage | None = None
    _before: tuple[int, int] = 0, 0

    def __enter__(self) -> Self:
        if sys.stdout.isatty() and self._is_long:
            self._bar = click.progressbar(length=self.total, show_pos=True).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def tell(self, answer: Answer) -> None:
        """Show an answer of a replay."""
        from consumer_framework.runtime.control import schema  # noqa: PLC0415

        match answer:
            case schema.Step(step):
                click.echo(f"\nfm-consumer: {step}", err=True)
            case schema.Selected(selected):
                self.total = selected
            case schema.Stage():
                self._stage_ends()
                self._stage_begins(answer)
            case schema.Begun(row):
                self.running = row
            case schema.RampEnded():
                self.running = None
                self._stage_ends()
                self.ended = answer
            case _:
                self.running = None
                self._count(answer)

    def interrupted(self) -> None:
        """Say that the command ends now, and how many rows are left."""
        goes_on = f"; go on: {self.resume}" if self.resume else ""
        click.echo(f"\nfm-consumer: interrupted: {self.left}{goes_on}", err=True)

    def cut_short(self) -> None:
        """Say that the process exits in the middle of a row, which is quarantined again."""
        self.running = None
        self.interrupted()

    @property
    def _is_long(self) -> bool:
        return self.total > _MANY and not self.as_json

    def _stage_begins(self, stage: Stage) -> None:
        self._stage, self._before = stage, (self.done, self.counts.total())
        if self.as_json:
            terminal.print_json(asdict(stage), indent=None)
        elif self._bar is not None:
            self._bar.label = _named(stage)
            self._bar.render_progress()
        elif not self._is_long:
            click.echo(terminal.title(f"{_named(stage)}: {plural(stage.rows, 'message')}"))

    def _stage_ends(self) -> None:
        if self._stage is not None and self._is_long and self._bar is None:
            done, ran = self._before
            result = f"{self.done - done:,} of {self.counts.total() - ran:,} succeeded"
            click.echo(f"{_named(self._stage)}: {result}")

    def _count(self, answer: Replayed) -> None:
        result, reason = answer.result, answer.reason
        self.counts[result] += 1
        if reason:
            self.reasons[f"{_RESULTS.get(result, result)}: {reason}"] += 1
        if self.as_json:
            terminal.print_json(asdict(answer), indent=None)
        elif self._bar is not None:
            self._bar.update(1)
        elif not self._is_long or result not in SUCCEEDED:
            click.echo(self._line(answer.row, result, reason))

    def _line(self, row: int, result: str, reason: str) -> str:
        colour = terminal.good if result in SUCCEEDED else terminal.bad
        because = f": {terminal.safe(reason)}" if reason else ""
        return f"row {row} {colour(_RESULTS.get(result, result))}{because}"

    @property
    def done(self) -> int:
        """The number of rows that are done with."""
        return sum(self.counts[result] for result in SUCCEEDED)

    @property
    def is_good(self) -> bool:
        """Tell whether every row that was to run is done with."""
        if self.ended is not None:
            return self.ended.ended == "done" and self.done == self.counts.total()
        return self.done == self.total

    @property
    def left(self) -> str:
        """Describe the rows without a result, for an operator who ends the command."""
        left = self.total - self.counts.total()
        if self.running is None:
            return f"{plural(left, 'message')} left in quarantine"
        goes_on = f"row {self.running} goes on in the instance, whose log says how it ends"
        return f"{goes_on}; {plural(left - 1, 'other message')} left in quarantine"

    def sum_up(self, at: Where) -> None:
        """Show how many rows succeeded, and a command to look at the others."""
        if self.as_json:
            total = {"done": True, "rows": self.total, "results": dict(self.counts)}
            terminal.print_json(total | (asdict(self.ended) if self.ended else {}), indent=None)
            return
        if self._bar is not None:
            for reason, count in self.reasons.most_common(5):
                click.echo(f"{count:,} {terminal.safe(reason)}")
        colour = terminal.good if self.is_good else terminal.bad
        if not self.total:
            click.echo("nothing is quarantined")
        elif self.total != 1:
            click.echo(colour(f"{self.done:,} of {self.total:,} succeeded"))
        if self.ended is not None and self.ended.left:
            self._sum_up_ramp(self.ended)
        if not self.is_good:
            click.echo(f"See: {terminal.faint(at.command('list'))}")

    def _sum_up_ramp(self, ended: RampEnded) -> None:
        left = f"not run: {plural(ended.left, 'message')}"
        if ended.ended == "done":
            click.echo(left)
            return
        click.echo(terminal.bad(f"{ended.ended}: {terminal.safe(ended.reason)}"))
        click.echo(f"{left}; go on: {terminal.faint(self.resume)}")


def _named(stage: Stage) -> str:
    return f"stage {stage.stage} of {stage.stages}, up to {stage.percent:g}%"
