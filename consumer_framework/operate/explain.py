# SPDX-License-Identifier: GPL-2.0-or-later
"""Predicts the fate of a message whose handler fails, and names the settings that decide it.

The prediction has no knowledge of the policy: it plays a delivery through :func:`.decide`, with a
handler that raises the same exception at every attempt.
"""

from __future__ import annotations

import builtins
import difflib
import importlib
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from fedora_messaging import exceptions as upstream

from consumer_framework.adapters import config
from consumer_framework.adapters.executor import signal_of
from consumer_framework.core import errors
from consumer_framework.core.delivery import Delivery, Failed
from consumer_framework.core.disposition import Ack, Defer, Hold, Requeue, rule_for
from consumer_framework.core.recovery import Policy, Situation, Then, decide
from consumer_framework.core.settler import REQUEUE_PAUSE
from consumer_framework.runtime.assembly.access import from_outside
from consumer_framework.runtime.assembly.configuration import RunOptions
from consumer_framework.runtime.assembly.plan import make_plan, policy_of
from consumer_framework.settings import Recovery, StoreKind

if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.core.delivery import Properties
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.errors import Signal
    from consumer_framework.core.recovery import Rule

TABLE = "consumer_config.framework.recovery"
_NO_JITTER = 0.5
# The answers after which a message that goes back to its queue runs again.
_RUNS_AGAIN = {Then.RETRY.value, Then.DEFER.value, Then.DEPENDENCY.value}


class By(Enum):
    """The origin of a decision."""

    SIGNAL = "signal"
    RULE = "rule"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Context:
    """The policy of an instance, and the places where its settings are written.

    Attributes:
        policy: The policy.
        written: The recovery settings of the file.
        merged: All the recovery settings in force.
        file: The file's name, "" for none.
        handler: The consumer's name, "" for none.
        has_store: False with ``store = "memory"``.
    """

    policy: Policy
    written: Recovery
    merged: Recovery
    file: str = ""
    handler: str = ""
    has_store: bool = True

    def where(self, setting: str) -> str:
        """Name the place where a recovery setting is written."""
        if setting in self.written.model_fields_set:
            return f"{self.file}: {TABLE}.{setting}"
        if setting in self.merged.model_fields_set:
            return f"{self.handler}: recovery.{setting}"
        return "the default"

    def where_rule(self, index: int) -> str:
        """Name the place where the rule with this number in the policy is written."""
        if index >= len(self.merged.rules):
            return "the default"
        own = index - len(self.written.rules)
        if own < 0:
            return f"{self.file}: {TABLE}.rules[{index}]"
        return f"{self.handler}: recovery.rules[{own}]"


def context_of(file: Path | None, callback: str, callback_file: str) -> Context:
    """Find the policy that an instance would have.

    Args:
        file: Its configuration; None for the defaults.
        callback: The value of ``--callback``, "" for none.
        callback_file: The value of ``--callback-file``, "" for none.

    Raises:
        ConfigurationError: It could not start.
    """
    instance = file.stem if file else ""
    access = from_outside(file, instance)
    settings = config.load(file, access=access)
    written = settings.framework.recovery if file else Recovery()
    has_store = settings.framework.store is not StoreKind.MEMORY
    options = RunOptions(file, callback, callback_file, access=access)
    if not (options.names_callback or settings.callback):
        policy, merged = policy_of(written, Recovery(), options.source, "")
        return Context(policy, written, merged, options.source, has_store=has_store)
    plan = make_plan(options, settings, config.substituted(file, access).absent)
    merged = plan.framework.recovery
    return Context(plan.policy, written, merged, options.source, plan.name, has_store)


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """One more attempt.

    Attributes:
        attempt: Its number; the same as before where the last one did not count.
        after: Seconds after the one before, jitter left out.
        waits: The disposition of the message until then.
    """

    attempt: int
    after: float
    waits: Disposition

    @property
    def held(self) -> bool:
        """Tell whether the message waits in memory."""
        return isinstance(self.waits, Hold)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The predicted fate of a message.

    Attributes:
        name: The exception, with its module.
        by: The origin of the decision.
        where: The place where that is written.
        matched: The exception that the rule names, "" if no rule decides.
        answer: One of :class:`.Then`, or ``succeed``.
        steps: The further attempts, if the handler fails at each.
        end: The disposition after the last attempt; None if the last step repeats without end.
        is_counted: True if the breaker counts the failure.
        lacks_store: True if an instance with a store would end it in another way.
    """

    name: str
    by: By
    where: str
    matched: str
    answer: str
    steps: tuple[ExplainedStep, ...]
    end: Disposition | None
    is_counted: bool
    lacks_store: bool

    @property
    def is_endless(self) -> bool:
        """Tell whether the last step repeats without end."""
        return self.end is None


def find_exception(name: str) -> type[BaseException]:
    """Find ``package.module.Class``, or a built-in exception or one of ours by its bare name.

    Raises:
        LookupError: One line with the problem of the name, and a cure.
    """
    found = _find_dotted(name) if "." in name else _find_bare(name)
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    if found is not None:
        raise LookupError(f"{name} is no exception; name a class that can be raised")
    known = [n for space in _NAMESPACES for n in dir(space) if _is_exception(getattr(space, n))]
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]}? If not, " if close else ""
    raise LookupError(f"there is no built-in exception {name}; {guess}write package.module.{name}")


_NAMESPACES = (builtins, errors, upstream)


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _find_bare(name: str) -> object:
    return next((getattr(space, name) for space in _NAMESPACES if hasattr(space, name)), None)


def _find_dotted(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        cure = "write package.module.Class, and install the package where fm-consumer runs"
        raise LookupError(f"{name} cannot be imported ({why}); {cure}") from error


def explain(kind: type[BaseException], context: Context) -> Explanation:
    """Predict the fate of a message whose handler raises *kind* at every attempt."""
    error = signal_of(_make_exception(kind))
    by, where, matched, answer = _decider(error, context)
    steps, end, is_counted, lacks_store = _play(error, answer, context)
    return Explanation(
        name=qualified(kind),
        by=by,
        where=where,
        matched=matched,
        answer=answer,
        steps=steps,
        end=end,
        is_counted=is_counted,
        lacks_store=lacks_store,
    )


def qualified(kind: type) -> str:
    """Name a class, as a rule in a file names it."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    # Its public name, which authors write.
    module = "consumer_framework" if kind.__module__ == errors.__name__ else kind.__module__
    return f"{module}.{kind.__qualname__}"


def _make_exception(kind: type[BaseException]) -> BaseException:
    try:
        return errors.Defer(0.0) if kind is errors.Defer else kind()
    except Exception:  # noqa: BLE001 -- it needs arguments, which are nobody's business here
        return kind.__new__(kind)


_ANSWERS_OF_SIGNALS: dict[type[Signal], str] = {
    errors.Skip: "succeed",
    errors.Retry: "retry",
    errors.Defer: "defer",
    errors.Drop: "drop",
    errors.Quarantine: "quarantine",
    errors.DependencyFault: "dependency",
    errors.Halt: "halt",
}


def _decider(error: BaseException, context: Context) -> tuple[By, str, str, str]:
    for signal, answer in _ANSWERS_OF_SIGNALS.items():
        if isinstance(error, signal):
            return By.SIGNAL, "the handler itself, by raising it", "", answer
    for index, rule in enumerate(context.policy.rules):
        if isinstance(error, rule.exceptions):
            return By.RULE, context.where_rule(index), _matched(error, rule), rule.then.value
    return By.DEFAULT, "the default", "", "retry"


def _matched(error: BaseException, rule: Rule) -> str:
    return next(qualified(kind) for kind in rule.exceptions if isinstance(error, kind))


def _play(
    error: BaseException, answer: str, context: Context
) -> tuple[tuple[ExplainedStep, ...], Disposition | None, bool, bool]:
    """Return the steps, the end, and whether the breaker counts it and a store would matter."""
    if isinstance(error, errors.Skip):
        return (), Ack(), False, False
    policy, failed = context.policy, Failed(error)
    no_properties = cast("Properties", SimpleNamespace(message_id="", headers=None))
    delivery = Delivery("", 0, 0, False, "", "", no_properties, b"")  # noqa: FBT003 -- as received
    may_hold = context.merged.hold_slots > 0
    steps: list[ExplainedStep] = []
    now = arrived = 0.0
    while True:
        situation = Situation(now, _NO_JITTER, may_hold, now - arrived, context.has_store)
        decision = decide(delivery, failed, policy, situation)
        waits, used = decision.disposition, len(decision.history.attempts)
        if isinstance(waits, Hold | Defer):
            until = waits.until
        elif isinstance(waits, Requeue) and answer in _RUNS_AGAIN and used <= len(policy.schedule):
            until = now + REQUEUE_PAUSE
        else:
            with_store = decide(delivery, failed, policy, situation._replace(may_store=True))
            lacks_store = type(with_store.disposition) is not type(waits)
            return tuple(steps), waits, decision.dependency_fault, lacks_store
        steps.append(ExplainedStep(used + 1, until - now, waits))
        if used == len(delivery.history.attempts):
            # It did not count, and so repeats without end.
            return tuple(steps), None, decision.dependency_fault, False
        now = until
        if not isinstance(waits, Hold):
            arrived = now
        delivery = delivery._replace(history=decision.history, row=int(isinstance(waits, Defer)))


def document(explanation: Explanation, context: Context) -> dict[str, Any]:
    """Return the explanation as JSON has it; times in seconds."""
    end = explanation.end
    counts = explanation.answer == "retry"
    return {
        "exception": explanation.name,
        "store": context.has_store,
        "answer": explanation.answer,
        "decided_by": {
            "kind": explanation.by.value,
            "where": explanation.where,
            "exception": explanation.matched or None,
        },
        "schedule": [
            {
                "attempt": step.attempt,
                "after": step.after,
                "held": step.held,
                "disposition": rule_for(step.waits).words.field,
            }
            for step in explanation.steps
        ],
        "schedule_from": {name: context.where(name) for name in ("immediate", "delays")}
        if counts
        else None,
        "forever": explanation.is_endless,
        "end": None
        if end is None
        else {
            "disposition": rule_for(end).words.field,
            "exit_code": getattr(end, "exit_code", None),
            "where": context.where("on_exhausted") if counts else explanation.where,
        },
        "breaker": {
            "counts": explanation.is_counted,
            "consecutive": context.merged.breaker.consecutive,
            "probe": list(context.merged.breaker.probe),
            "where": context.where("breaker"),
        },
    }
