# SPDX-License-Identifier: GPL-2.0-or-later
"""What an instance is going to run.

From recovery settings, of a file and of a consumer's class, to the policy that decides.

Whether a consumer and its settings agree about batches.

Where the ordering key of messages comes from: the file, or the consumer's own method.

Finds the lanes of deliveries.

A key may be in the body, and a body may be large, or deadly. It is decoded in a thread, once for
the key and for the handler, and the flight recorder knows of it meanwhile.

Whether there may be as many threads as the slots need.
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
from consumer_framework.author.consumer import BatchConsumer, Consumer
from consumer_framework.core.errors import Collector, ConfigurationError, Problem
from consumer_framework.core.limits import limit_of
from consumer_framework.core.ordering import FORMS, source_from, source_of
from consumer_framework.core.recovery import Policy, Rule, Then
from consumer_framework.settings import Batch, Ordering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer_framework.author.handler import Handler
    from consumer_framework.core.ordering import Source
    from consumer_framework.settings import Framework, Recovery, Settings

    from .loader import Target

    SourceOf: TypeAlias = Callable[[Handler], Source]

# After all others. A broker that does not take what a handler publishes is no fault of the message.
DEFAULT_RULES = (Rule((PublishTimeout, ConnectionException), Then.DEPENDENCY, "the default"),)

RULES = "consumer_config.framework.recovery.rules"


def policy_of(written: Recovery, own: Recovery, source: str, name: str) -> tuple[Policy, Recovery]:
    """Put a policy together.

    Args:
        written: What the file says.
        own: What the consumer's class says; the file's word stands before it.
        source: The file, for ``fm-consumer explain`` and for errors.
        name: The consumer, likewise.

    Returns:
        The policy, and all the settings in force.

    Raises:
        ConfigurationError: Rules name what is no exception; with every such name.
    """
    found = Collector()
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


def _rules(recovery: Recovery, source: str, where: str, found: Collector) -> Iterator[Rule]:
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
    found = _find(name, path)
    if _is_exception(found):
        return cast("type[BaseException]", found)
    raise ConfigurationError(Problem(path, f'"{name}" is no exception', "correct the name"))


def _find(name: str, path: str) -> object:
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name or "builtins"), attribute)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        what = f'"{name}" cannot be imported ({why})'
        raise ConfigurationError(Problem(path, what, _rule_cure(name, module_name))) from error


def _rule_cure(name: str, module_name: str) -> str:
    if not module_name:
        known = [n for n, value in vars(builtins).items() if _is_exception(value)]
        near = difflib.get_close_matches(name, known, 1)
        if near:
            return f'did you mean "{near[0]}"?'
    return "write package.module.Class, and install the package where fm-consumer runs"


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


_BATCH_PATH = "consumer_config.framework.batch"


def check_batch(framework: Framework, value: Any) -> None:
    """Refuse batches for what takes none.

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
    """Return *framework* with the defaults of a batch where the consumer takes batches."""
    if framework.batch is not None or not takes_batches(value):
        return framework
    # Where nothing may overtake anything there is never a second message.
    batch = Batch(size=1) if framework.ordering is Ordering.STRICT else Batch()
    return framework.model_copy(update={"batch": batch})


def takes_batches(value: Any) -> bool:
    """Whether *value* is the class of a consumer that gets several messages at once."""
    return inspect.isclass(value) and issubclass(value, BatchConsumer)


_ORDERING_PATH = "consumer_config.framework.ordering_key"


def source_for(framework: Framework, value: Any) -> SourceOf | None:
    """Say where the ordering key of a message is.

    Args:
        framework: The settings; a key that they name stands before the consumer's method.
        value: The author's object (:attr:`.Target.value`).

    Returns:
        What gives the source, once the handler is made; None where there is no order by key.

    Raises:
        ConfigurationError: ``ordering = "key"``, and nothing says what the key is.
    """
    if framework.ordering is not Ordering.KEY:
        return None
    if framework.ordering_key is not None:
        source = source_of(framework.ordering_key)
        return lambda _handler: source
    problem = _method_problem(value)
    if problem:
        raise ConfigurationError(problem)
    return _from_handler


def _from_handler(handler: Handler) -> Source:
    assert handler.ordering_key is not None  # noqa: S101 -- its class was looked at
    return source_from(handler.ordering_key)


def _method_problem(value: Any) -> Problem | None:
    method = getattr(value, "ordering_key", None) if _is_consumer(value) else None
    if method is None:
        what = 'is required with ordering = "key"; it is ' + FORMS
        return Problem(_ORDERING_PATH, what, _ordering_cure(value))
    if not callable(method) or inspect.iscoroutinefunction(method):
        what = f"the consumer's ordering_key must be a plain method; it is {_kind(method)} now"
        return Problem(_ORDERING_PATH, what, "write def ordering_key(self, message)")
    return None


def _ordering_cure(value: Any) -> str:
    if _is_consumer(value):
        return "add it, or a method ordering_key(self, message) to the consumer"
    return "add it, or let a consumer_framework.Consumer have a method ordering_key(self, message)"


def _is_consumer(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Consumer)


def _kind(method: Any) -> str:
    return "a coroutine method" if callable(method) else f"a {type(method).__name__}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A handler to be made, and how it is run.

    Attributes:
        name: How logs call the handler.
        factory: Makes it, on the event loop's thread; raises what the author's code raises.
        policy: Decides what becomes of its failures.
        framework: The settings in force, those of the author's class included.
        source_of: Gives what finds the ordering key of a message, once the handler is made; None
            where there is no order by key.
        prefetch_count: How many messages the broker sends ahead, per queue; 0 for no limit.
        target: What the handler is made of; None where nobody makes another one.
        usual_timeout: Seconds that a run may take where the file does not say: infinite for a
            callback as fedora-messaging runs it, which sets no limit.
    """

    name: str
    factory: Callable[[], Handler]
    policy: Policy
    framework: Framework
    source_of: SourceOf | None = None
    prefetch_count: int = 0
    target: Target | None = None
    usual_timeout: float = math.inf

    @property
    def most_behind(self) -> int | None:
        """How many messages may wait behind failed ones of their keys; None for no limit.

        They use up half of what the broker sends ahead, and leave the rest to other keys.
        """
        if self.policy.strict or not self.prefetch_count:
            return None
        return self.prefetch_count // 2

    @property
    def tidy_interval(self) -> float:
        """Seconds between two looks for deliveries that wait for too long."""
        return self.framework.recovery.ack_timeout / 20

    def patience(self, longest: float) -> float:
        """Seconds that a delivery may wait for a slot, so that its run ends within ack_timeout.

        Args:
            longest: Seconds that a run takes.
        """
        ack_timeout = self.framework.recovery.ack_timeout
        left = ack_timeout - longest - 2 * self.tidy_interval
        return min(self.policy.hold_ceiling, max(left, ack_timeout / 4))

    @property
    def limits(self) -> Limits:
        """How much of the handler runs at once, and for how long."""
        limits = Limits(self.framework.slots, self.framework.handler_limit(self.usual_timeout))
        batch = self.framework.batch
        if batch is None:
            return limits
        return Limits(limits.slots, limits.timeout, batch.size, batch.seconds)


def fitted(plan: Plan, settings: Settings, recovery: Recovery) -> Plan:
    """Return *plan* with numbers that fit together.

    Args:
        plan: What is to be run.
        settings: What the file says.
        recovery: The recovery settings in force, those of the author's class included.
    """
    framework = plan.framework
    # A batch that fails is held whole, to be tried again message by message.
    batch = framework.batch.size if framework.batch else 0
    wanted = max(recovery.hold_slots, batch)
    holding = recovery.model_copy(update={"hold_slots": wanted})
    framework = framework.model_copy(update={"recovery": holding})
    written = settings.qos.prefetch_count
    prefetch_count = _derived(framework, settings) if written is None else written
    if prefetch_count:
        # What is held counts against it, and the slots need something to take.
        room = max(prefetch_count - framework.at_once, 0)
        holding = recovery.model_copy(update={"hold_slots": min(wanted, room)})
        framework = framework.model_copy(update={"recovery": holding})
    policy = replace(plan.policy, strict=framework.ordering is Ordering.STRICT)
    return replace(plan, policy=policy, framework=framework, prefetch_count=prefetch_count)


def _derived(framework: Framework, settings: Settings) -> int:
    """Return how many messages the broker sends ahead where the file does not say.

    A crash counts against the delivery limit of a queue, for each message that was sent ahead.
    """
    limits = [limit_of(queue.arguments, None) for queue in settings.queues.values()]
    smallest = min((limit for limit in limits if limit is not None), default=None)
    if smallest is None:
        return framework.prefetch_count
    return min(framework.prefetch_count, framework.at_once + max(smallest, 1))


# Threads besides those of the slots: the event loop's, the store's, those that resolve names.
RESERVE = 12


def tasks_problem(framework: Framework, most: int | None) -> Problem | None:
    """Say what is wrong where no more than *most* processes and threads are allowed.

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
