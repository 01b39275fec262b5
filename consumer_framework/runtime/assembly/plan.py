# SPDX-License-Identifier: GPL-2.0-or-later
"""Combines settings and an author's object into the plan of an instance.

The file and the author's class both have settings; the file's take precedence. A plan is complete:
prefetch, held messages and slots fit together in it, and the policy knows every exception that a
rule names.
"""

from __future__ import annotations

import builtins
import difflib
import importlib
import inspect
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fedora_messaging.exceptions import ConnectionException, PublishTimeout

from consumer_framework.adapters.executor import Limits
from consumer_framework.adapters.systemd.cgroup import most_tasks
from consumer_framework.author.consumer import BatchConsumer, Consumer, table_of
from consumer_framework.core.attempt import set_author_packages
from consumer_framework.core.errors import ConfigurationError, Problem, ProblemCollector
from consumer_framework.core.limits import delivery_limit
from consumer_framework.core.ordering import FORMS, source_from, source_of
from consumer_framework.core.recovery import Policy, Rule, Then
from consumer_framework.runtime.state_files import CONSUMER_FILES, state_directory
from consumer_framework.settings import (
    Batch,
    Ordering,
    OutboxSettings,
    Recovery,
    refuse_conflicts,
)

from . import loader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from consumer_framework.author.handler import Handler
    from consumer_framework.author.routing import RouteTable
    from consumer_framework.core.ordering import KeySource
    from consumer_framework.settings import Framework, Settings

    from .configuration import RunOptions
    from .loader import Target

    SourceOf: TypeAlias = Callable[[Handler], KeySource]

# After all others. A broker that does not take what a handler publishes is no fault of the message.
DEFAULT_RULES = (Rule((PublishTimeout, ConnectionException), Then.DEPENDENCY, "the default"),)

RULES = "consumer_config.framework.recovery.rules"
_BATCH_PATH = "consumer_config.framework.batch"
_TRACES_PATH = "consumer_config.framework.traces"
_ORDERING_PATH = "consumer_config.framework.ordering_key"
# Threads besides those of the slots: the event loop's, the store's, those that resolve names; and
# five of publishing: the writer, the relay, its messenger's, the count of rows, a direct sender.
RESERVE = 17


@dataclass(frozen=True, slots=True)
class Plan:
    """A handler to be made, and the settings to run it with.

    Attributes:
        name: The handler's name in logs.
        factory: Makes the handler, on the event loop's thread. The author's code may raise in it.
        policy: Decides the disposition of each failure.
        framework: The settings in force, those of the author's class included.
        source_of: Returns the function that finds the ordering key of a message, once the handler
            is made; None without an order by key.
        routes: Finds the routes of a message; None for a consumer without routes.
        prefetch_count: The number of messages that the broker sends ahead, per queue; 0 for no
            limit.
        target: The author's object; None where nobody makes another handler.
        usual_timeout: Seconds that a run may take where the file sets no limit. Infinite for a
            callback as fedora-messaging runs it, which has none.
    """

    name: str
    factory: Callable[[], Handler]
    policy: Policy
    framework: Framework
    source_of: SourceOf | None = None
    routes: RouteTable | None = None
    prefetch_count: int = 0
    target: Target | None = None
    usual_timeout: float = math.inf

    @property
    def most_behind(self) -> int | None:
        """Return how many messages may wait behind failed ones of their keys; None for no limit.

        They use up half of the messages that the broker sends ahead, and leave the rest to other
        keys.
        """
        if self.policy.strict or not self.prefetch_count:
            return None
        return self.prefetch_count // 2

    @property
    def tidy_interval(self) -> float:
        """Return the seconds between two searches for deliveries that have waited too long."""
        return self.framework.recovery.ack_timeout / 20

    def patience(self, longest: float) -> float:
        """Return the seconds that a delivery may wait for a slot, to finish within ack_timeout.

        Args:
            longest: Seconds that a run takes.
        """
        ack_timeout = self.framework.recovery.ack_timeout
        left = ack_timeout - longest - 2 * self.tidy_interval
        return min(self.policy.hold_ceiling, max(left, ack_timeout / 4))

    @property
    def limits(self) -> Limits:
        """Return how many runs there may be at once, and how long each may take."""
        limits = Limits(self.framework.slots, self.framework.handler_limit(self.usual_timeout))
        batch = self.framework.batch
        if batch is None:
            return limits
        return Limits(limits.slots, limits.timeout, batch.size, batch.seconds)


def plan_of_this_process(
    options: RunOptions, settings: Settings, target: Target | None = None
) -> Plan:
    """Make the plan of the instance that this process runs.

    Raises:
        ConfigurationError: As for :func:`make_plan`, or this process may not have enough threads.
    """
    plan = make_plan(options, settings, target=target)
    problem = tasks_problem(plan.framework, most_tasks())
    if problem:
        raise ConfigurationError(problem, source=options.source)
    return plan


def make_plan(
    options: RunOptions,
    settings: Settings,
    absent: frozenset[str] = frozenset(),
    target: Target | None = None,
) -> Plan:
    """Import the author's object, and plan how to run it.

    From here on tracebacks count its package as the author's code (:func:`.set_author_packages`).

    Args:
        options: The options of the command line.
        settings: The configuration.
        absent: The TOML paths of credentials that are missing; then the handler is not made.
        target: The author's object, to use again one that was imported before.

    Raises:
        ConfigurationError: With every problem there is: the object cannot be imported, does not
            fit its settings, or a rule names something that is no exception.
    """
    found = ProblemCollector(options.source)
    target = target or found.call(loader.target_of, options, settings.callback)
    if target is None:
        _checked_policy(found, settings.framework, Recovery(), options.source, "")
        raise found.error()
    set_author_packages(*loader.packages_of(target))
    files = state_directory(options.instance, options.state_directory) / CONSUMER_FILES
    return plan_of(target, settings, options.source, files, absent)


def plan_of(
    target: Target,
    settings: Settings,
    source: str,
    files: Path,
    absent: frozenset[str] = frozenset(),
) -> Plan:
    """Plan how to run the author's object.

    Args:
        target: That object.
        settings: The configuration.
        source: Its name in errors and explanations.
        files: The directory in which the consumer may keep files.
        absent: As for :func:`make_plan`.

    Raises:
        ConfigurationError: As for :func:`make_plan`.
    """
    found = ProblemCollector(source)
    factory = found.call(loader.factory, target, settings.consumer_config, absent, files)
    own = loader.recovery_of(target)
    policy = _checked_policy(found, settings.framework, own, source, target.name)
    found.call(check_batch, settings.framework, target.value)
    found.call(check_publishing, settings.framework)
    found.call(check_traces, settings.framework)
    source_of = found.call(source_for, settings.framework, target.value)
    if factory is None or policy is None or found.problems:
        raise found.error()
    framework = framework_in_force(settings.framework, target)
    usual = loader.usual_timeout(target)
    routes = table_of(target.value, settings.topic_prefix)
    plan = Plan(target.name, factory, policy, framework, source_of, routes, 0, target, usual)
    return fitted(plan, settings)


def check_traces(framework: Framework) -> None:
    """Check that traces can be made and sent, if the settings ask for them.

    Raises:
        ConfigurationError: A package is missing.
    """
    if not framework.traces:
        return
    try:
        importlib.import_module("consumer_framework.adapters.tracing").exporter()
    except ImportError as error:
        what = f"needs a package that is missing: {error}"
        cure = (
            "install it with `pip install 'consumer-framework[otel]'`"
            " or `dnf install python3-consumer-framework+otel`"
        )
        raise ConfigurationError(Problem(_TRACES_PATH, what, cure)) from error


def check_publishing(framework: Framework) -> None:
    """Check the settings of the outbox that only an instance has.

    Raises:
        ConfigurationError: The relay of an instance cannot send with the messenger.
    """
    path, messenger = "consumer_config.framework.outbox.messenger", framework.outbox.messenger
    if messenger == "fedora":
        what = (
            'the messenger "fedora" sends with fedora_messaging.api, which publishes to the outbox'
        )
        raise ConfigurationError(Problem(path, f"in an instance, {what}", 'use "amqp"'))
    if messenger != OutboxSettings().messenger:
        from consumer_framework.publishing import messengers  # noqa: PLC0415 -- it imports much

        messengers.find(messenger)


def framework_in_force(framework: Framework, target: Target) -> Framework:
    """Return *framework* over the settings of the author's class."""
    recovery = loader.recovery_of(target).overridden_by(framework.recovery)
    return with_batch(framework.model_copy(update={"recovery": recovery}), target.value)


def fitted(plan: Plan, settings: Settings) -> Plan:
    """Return *plan* with numbers that fit together.

    Args:
        plan: Has the recovery settings in force.
        settings: The configuration.
    """
    framework = plan.framework
    recovery = framework.recovery
    # A batch that fails is held whole, to be tried again message by message.
    batch = framework.batch.size if framework.batch else 0
    wanted = max(recovery.hold_slots, batch)
    holding = recovery.model_copy(update={"hold_slots": wanted})
    framework = framework.model_copy(update={"recovery": holding})
    written = settings.qos.prefetch_count
    prefetch_count = _derived_prefetch(framework, settings) if written is None else written
    if prefetch_count:
        # Held messages count against it, and the slots need something to take.
        room = max(prefetch_count - framework.at_once, 0)
        holding = recovery.model_copy(update={"hold_slots": min(wanted, room)})
        framework = framework.model_copy(update={"recovery": holding})
    policy = replace(plan.policy, strict=framework.ordering is Ordering.STRICT)
    return replace(plan, policy=policy, framework=framework, prefetch_count=prefetch_count)


def _derived_prefetch(framework: Framework, settings: Settings) -> int:
    # A crash counts against the delivery limit of a queue, for each message that was sent ahead.
    limits = [delivery_limit(queue.arguments, None) for queue in settings.queues.values()]
    smallest = min((limit for limit in limits if limit is not None), default=None)
    if smallest is None:
        return framework.prefetch_count
    return min(framework.prefetch_count, framework.at_once + max(smallest, 1))


# The policy.


def policy_of(written: Recovery, own: Recovery, source: str, name: str) -> tuple[Policy, Recovery]:
    """Make the policy from the recovery settings of a file and of a consumer's class.

    Args:
        written: The settings of the file.
        own: The settings of the consumer's class; the file's take precedence.
        source: The file, for ``fm-consumer explain`` and for errors.
        name: The consumer, likewise.

    Returns:
        The policy, and all the settings in force.

    Raises:
        ConfigurationError: Rules name something that is no exception; with every such name.
    """
    found = ProblemCollector()
    rules = (
        *_rules(written, source, RULES, found),
        *_rules(own, name, "recovery.rules", found),
    )
    if found.problems:
        raise found.error()
    settings = own.overridden_by(written)
    policy = Policy(
        schedule=(*(0.0 for _ in range(settings.immediate)), *settings.delays),
        hold_ceiling=settings.ack_timeout / 2,
        on_exhausted=settings.on_exhausted,
        on_invalid=settings.on_invalid,
        crash_attempts=settings.crash_attempts,
        rules=(*rules, *DEFAULT_RULES),
        dependency=settings.breaker.probe[0],
    )
    return policy, settings


def _checked_policy(
    found: ProblemCollector, framework: Framework, own: Recovery, source: str, name: str
) -> Policy | None:
    made = found.call(policy_of, framework.recovery, own, source, name)
    if made is None:
        return None
    policy, recovery = made
    found.call(refuse_conflicts, framework, recovery)
    return policy


def _rules(recovery: Recovery, source: str, where: str, found: ProblemCollector) -> Iterator[Rule]:
    for index, rule in enumerate(recovery.rules):
        path = f"{where}[{index}]"
        resolved = [found.call(exception, e, f"{path}.exceptions") for e in rule.exceptions]
        exceptions = tuple(e for e in resolved if e is not None)
        yield Rule(exceptions, rule.then, f"{source}: {path}")


def exception(name: str | type[BaseException], path: str) -> type[BaseException]:
    """Import the exception that a rule names.

    Args:
        name: ``package.module.Class``, the bare name of a built-in one, or the class itself.
        path: The TOML path of the rule's ``exceptions``, for errors.

    Raises:
        ConfigurationError: It cannot be imported, or is none.
    """
    if isinstance(name, type):
        return name
    found = _import_exception(name, path)
    if _is_exception(found):
        return cast("type[BaseException]", found)
    raise ConfigurationError(Problem(path, f'"{name}" is no exception', "correct the name"))


def _import_exception(name: str, path: str) -> object:
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name or "builtins"), attribute)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        what = f'"{name}" cannot be imported ({why})'
        raise ConfigurationError(Problem(path, what, _exception_cure(name, module_name))) from error


def _exception_cure(name: str, module_name: str) -> str:
    if not module_name:
        known = [n for n, value in vars(builtins).items() if _is_exception(value)]
        near = difflib.get_close_matches(name, known, 1)
        if near:
            return f'did you mean "{near[0]}"?'
    return "write package.module.Class, and install the package where fm-consumer runs"


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


# Batches.


def check_batch(framework: Framework, value: Any) -> None:
    """Refuse a ``batch`` table for a consumer of single messages.

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
    raise ConfigurationError(Problem(_BATCH_PATH, what, cure))


def with_batch(framework: Framework, value: Any) -> Framework:
    """Return *framework*, with the defaults of a batch for a consumer that takes batches."""
    if framework.batch is not None or not takes_batches(value):
        return framework
    # Where nothing may overtake anything there is never a second message.
    batch = Batch(size=1) if framework.ordering is Ordering.STRICT else Batch()
    return framework.model_copy(update={"batch": batch})


def takes_batches(value: Any) -> bool:
    """Tell whether *value* is the class of a consumer that gets several messages at once."""
    return inspect.isclass(value) and issubclass(value, BatchConsumer)


# Order by key: the file names the place of the key, or the consumer has a method that returns it.


def source_for(framework: Framework, value: Any) -> SourceOf | None:
    """Find the source of ordering keys.

    Args:
        framework: The settings; a key that they name takes precedence over the consumer's method.
        value: The author's object (:attr:`.Target.value`).

    Returns:
        A function that returns the source, once the handler is made; None without an order by key.

    Raises:
        ConfigurationError: ``ordering = "key"``, and neither the file nor the consumer names a key.
    """
    if framework.ordering is not Ordering.KEY:
        return None
    if framework.ordering_key is not None:
        source = source_of(framework.ordering_key)
        return lambda _handler: source
    problem = _ordering_key_problem(value)
    if problem:
        raise ConfigurationError(problem)
    return _source_from_handler


def _source_from_handler(handler: Handler) -> KeySource:
    assert handler.ordering_key is not None  # noqa: S101 -- its class was checked
    return source_from(handler.ordering_key)


def _ordering_key_problem(value: Any) -> Problem | None:
    is_consumer = inspect.isclass(value) and issubclass(value, Consumer)
    method = getattr(value, "ordering_key", None) if is_consumer else None
    if method is None:
        what = 'is required with ordering = "key"; it is ' + FORMS
        cure = "let a consumer_framework.Consumer have a method ordering_key(self, message)"
        if is_consumer:
            cure = "a method ordering_key(self, message) to the consumer"
        return Problem(_ORDERING_PATH, what, f"add it, or {cure}")
    if not callable(method) or inspect.iscoroutinefunction(method):
        kind = "a coroutine method" if callable(method) else f"a {type(method).__name__}"
        what = f"the consumer's ordering_key must be a plain method; it is {kind} now"
        return Problem(_ORDERING_PATH, what, "write def ordering_key(self, message)")
    return None


# Threads.


def tasks_problem(framework: Framework, most: int | None) -> Problem | None:
    """Return the problem of more slots than the allowed processes and threads, if it is there.

    Args:
        framework: The settings.
        most: ``TasksMax=`` of the unit, or ``pids.max`` of the control group; None for no limit.
    """
    needed = framework.slots + RESERVE
    if most is None or needed <= most:
        return None
    return Problem(
        "consumer_config.framework.slots",
        f"{framework.slots} slots need {needed} threads, and {most} tasks are allowed "
        "(TasksMax= of the unit, pids.max of the control group)",
        f"set TasksMax={4 * needed} or more with systemctl edit, or the container's limit of pids; "
        "or set fewer slots",
    )
