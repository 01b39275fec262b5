# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer explain``: predicts the fate of a message, and names the line that decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from consumer_framework.core.text import duration_text

from . import terminal
from .exit_codes import epilog
from .options import CONF, JSON, complete_instance, instance_file, may_exist, no_such_instance
from .terminal import Command, Refusal

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.operate.explain import Context, Explanation


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer explain ValueError sample
  fm-consumer explain requests.exceptions.ConnectionError sample
  fm-consumer explain consumer_framework.Retry
  fm-consumer explain KeyError --callback mypackage.consumer:Consumer
"""
    + epilog("explain"),
)
@click.argument("exception")
@click.argument("instance", required=False, shell_complete=complete_instance)
@CONF
@click.option("--callback", default="", metavar="MODULE:OBJECT", help="As for 'run'.")
@click.option("--callback-file", default="", metavar="FILE.py:OBJECT", help="As for 'run'.")
@JSON
def explain(  # noqa: PLR0913 -- one for each option
    exception: str,
    instance: str | None,
    conf: Path | None,
    callback: str,
    callback_file: str,
    *,
    as_json: bool,
) -> None:
    """Predict the fate of a message whose handler raises EXCEPTION, and name the deciding lines.

    EXCEPTION is package.module.Class, or the bare name of a built-in exception, or of one of
    consumer_framework's or fedora_messaging's. Without INSTANCE and --conf the defaults answer.
    """
    if instance and conf:
        raise click.UsageError("give either INSTANCE or --conf, not both")
    file = instance_file(instance) if instance else conf
    if instance and file is not None and not may_exist(file):
        raise no_such_instance(instance, file)
    from consumer_framework.operate import explain as host  # noqa: PLC0415

    context = host.context_of(file, callback, callback_file)
    try:
        kind = host.find_exception(exception)
    except LookupError as error:
        raise Refusal(str(error.args[0])) from None
    explanation = host.explain(kind, context)
    if as_json:
        terminal.print_json(host.document(explanation, context))
        return
    for line in _lines(explanation, context):
        click.echo(line)
    if not file:
        click.echo(terminal.faint("\nThese are the defaults; name an INSTANCE to see its rules."))


def _lines(explanation: Explanation, context: Context) -> Iterator[str]:
    yield terminal.title(f"{explanation.name}: {_summary(explanation)}")
    yield from terminal.pairs(
        [
            ("decided by", _decided_by(explanation)),
            *_schedule(explanation),
            *_sources(explanation, context),
            ("in the end", _end(explanation, context)),
            ("breaker", _breaker(explanation, context)),
        ]
    )


_SUMMARIES = {
    "succeed": "counts as success that did nothing",
    "retry": "is tried again",
    "defer": "is no failure, and runs again later",
    "drop": "loses the message on purpose",
    "quarantine": "puts the message into quarantine at once",
    "dependency": "is the fault of a dependency, not of the message",
    "halt": "stops the instance",
}


def _summary(explanation: Explanation) -> str:
    if explanation.answer == "retry" and not explanation.steps:
        return "is not tried again"
    if explanation.answer == "quarantine" and explanation.lacks_store:
        return "asks for quarantine, which takes a store"
    return _SUMMARIES[explanation.answer]


def _decided_by(explanation: Explanation) -> str:
    from consumer_framework.operate.explain import By  # noqa: PLC0415

    match explanation.by:
        case By.SIGNAL:
            return "the handler itself, by raising it; no rule can change that"
        case By.RULE:
            matched = explanation.matched
            via = "" if matched == explanation.name else f", for it is a kind of {matched}"
            return f'then = "{explanation.answer}" in {explanation.where}{via}'
    return "the default, as no rule names it"


def _schedule(explanation: Explanation) -> Iterator[tuple[str, str]]:
    if explanation.is_endless:
        said = "when the handler says" if _is_deferred_by_handler(explanation) else ""
        yield (
            "again",
            said or f"after {duration_text(explanation.steps[-1].after)}, as often as it takes",
        )
        return
    for step in explanation.steps:
        place = _PLACES[type(step.waits).__name__]
        waits = (
            f"about {duration_text(step.after)}, {place} meanwhile"
            if step.after
            else "0 s: at once"
        )
        yield f"attempt {step.attempt}", f"after {waits}"


_PLACES = {
    "Hold": "held unacknowledged",
    "Defer": "kept in the store",
    "Requeue": "back in its queue",
}


def _is_deferred_by_handler(explanation: Explanation) -> bool:
    return explanation.answer == "defer" and explanation.by.value == "signal"


def _sources(explanation: Explanation, context: Context) -> Iterator[tuple[str, str]]:
    if explanation.answer != "retry":
        return
    for name in ("immediate", "delays"):
        yield name, context.where(name)


def _end(explanation: Explanation, context: Context) -> str:
    said = _end_text(explanation)
    if explanation.answer == "retry":
        return f"{said} (on_exhausted: {context.where('on_exhausted')})"
    return said


def _end_text(explanation: Explanation) -> str:
    from consumer_framework.core import disposition as to  # noqa: PLC0415

    match explanation.end:
        case None:
            return "there is none: it does not use up attempts"
        case to.Halt(code, requeue):
            given = "goes back to its queue" if requeue else "is acknowledged"
            if explanation.by.value == "signal":
                given = "is acknowledged, or requeued if it says so"
                return f"the instance stops with the exit code it names; the message {given}"
            return f"the instance stops with exit code {int(code)}; the message {given}"
        case to.Requeue() if explanation.lacks_store:
            return "back to its queue, again and again: without a store there is no quarantine"
        case end:
            return to.rule_for(end).words.explained


def _breaker(explanation: Explanation, context: Context) -> str:
    if not explanation.is_counted:
        return "does not hear of it"
    breaker = context.merged.breaker
    probes = ", ".join(duration_text(wait) for wait in breaker.probe)
    return (
        f"counts it: {breaker.consecutive} in a row pause the instance; probes after {probes} "
        f"({context.where('breaker')})"
    )
