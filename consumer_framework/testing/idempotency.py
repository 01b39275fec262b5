# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the effects that a handler has twice when the process dies in the middle of it.

:func:`assert_idempotent` first runs the messages undisturbed, and notes each moment before and
after an effect. Then it runs them again for each of these moments, in a new instance that is killed
there, and compares the effects.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from consumer_framework.author.consumer import Consumer
from consumer_framework.author.heartbeat import CURRENT_RUN, CURRENT_STEP
from consumer_framework.author.steps import is_any_under_way
from consumer_framework.core.disposition import Quarantine
from consumer_framework.core.errors import Signal

from .effects import FUNCTIONS, Effect, EffectWatch, Function, named_functions, places_of
from .harness import Harness
from .sql_effects import SqlalchemyWatch, SqliteWatch
from .virtual_instance import Killed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fedora_messaging.message import Message

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition

    _Fresh = Callable[[], contextlib.AbstractContextManager[object]]

# Waiting messages run again after each of these, at most so often.
_WHILE = "1h"
_WHILES = 48


class Moment(NamedTuple):
    """A moment at which the process may be killed."""

    side: Literal["before", "after"]
    effect: Effect

    def __str__(self) -> str:
        return f"right {self.side} {self.effect}"


@dataclass(slots=True)
class _Played:
    """The messages of a test, run once.

    Attributes:
        effects: The effects that happened, in order.
        moments: The moments at which the process could have been killed, in order.
        killed_at: The moment at which it was killed; None for never.
        ends: The disposition of each message.
        attempts: The failed attempts at each message.
    """

    effects: list[Effect] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    killed_at: Moment | None = None
    ends: list[Disposition | None] = field(default_factory=list)
    attempts: list[tuple[Attempt, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Test:
    """The arguments of one call of :func:`assert_idempotent`."""

    consumer: Any
    messages: Sequence[Message]
    functions: tuple[Function, ...]
    fresh: _Fresh
    options: dict[str, Any]

    @property
    def package(self) -> str:
        consumer = self.consumer
        module = consumer if isinstance(consumer, str) else getattr(consumer, "__module__", "")
        return str(module).partition(":")[0].partition(".")[0]

    def play(self, kill_at: int | None = None) -> _Played:
        """Run the messages in a new instance, which is killed at the moment of that number."""
        with self.fresh():
            harness = Harness(self.consumer, **self.options)
            player = _Player(harness, self, kill_at)
            with player.watching(), harness:
                player.play()
            return player.played


def assert_idempotent(  # noqa: PLR0913 -- keyword arguments with defaults
    consumer: Any,
    messages: Iterable[Message],
    *,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    watch: Iterable[str] = (),
    allow: Callable[[Effect], bool] | None = None,
    fresh: _Fresh | None = None,
    patience: float = 1.0,
) -> tuple[Effect, ...]:
    """Check that a handler has no effect twice, and leaves none out, when the process dies.

    The process is killed right before and right after each effect of the handler, in a new
    :class:`.Harness` each time, and the message is delivered again. Effects are HTTP requests other
    than idempotent ones (``requests``, ``httpx``, ``treq``, ``urllib3``, ``urllib``,
    ``http.client``), commits of ``sqlite3`` and SQLAlchemy that changed rows, mail by ``smtplib``,
    messages that are published at once, and calls of the functions in *watch*. A stub that replaces
    the transport of an HTTP client is under the functions that are watched; one that replaces
    ``requests.post`` itself is not, so name ``"requests:post"`` in *watch* then.

    A handler passes whose effects are in steps (``self.once``), each in one of its own, or are
    published through the outbox. The effects of one step are taken for one: the moment between
    an effect and the record of its step is left out, since nothing but the other side can help
    there::

        def test_a_bug_is_filed_once(bugzilla):
            assert assert_idempotent(Triage, [build_failed], watch=["triage:Bugzilla.file"])

    Args:
        consumer: As for :class:`.Harness`.
        messages: Delivered in this order. The handler must succeed with them.
        config: ``[consumer_config]``.
        settings: ``[consumer_config.framework]``, as TOML has it.
        watch: Further functions that have effects, as ``"module:Class.method"``.
        allow: Tells of an effect that it may happen twice: a statement that only sets a value, a
            request that the other side recognises.
        fresh: Makes the context of each run; it puts the outside world back into its first state.
            Needed where the handler looks at the world, as by a ``SELECT``.
        patience: As for :class:`.Harness`.

    Returns:
        The effects of an undisturbed run. None seen means that nothing was tested: assert that
        there are some.

    Raises:
        AssertionError: An effect happened twice, or was left out: its message, the line of the
            handler, the moment of the kill, and the cure. Also if the handler fails without any
            kill, or has other effects the second time that it gets the messages.
        ValueError: *watch* names no function, or there are no messages.
    """
    __tracebackhide__ = True
    functions = (*FUNCTIONS, *named_functions(watch))
    options = {"config": config, "settings": settings, "patience": patience}
    test = _Test(consumer, list(messages), functions, fresh or contextlib.nullcontext, options)
    if not test.messages:
        raise ValueError("assert_idempotent needs a message")
    undisturbed = _undisturbed(test)
    for number in range(len(undisturbed.moments)):
        played = test.play(number)
        _compare(test, undisturbed, played, allow or (lambda _effect: False))
    return tuple(undisturbed.effects)


def _undisturbed(test: _Test) -> _Played:
    """Run the messages without any kill.

    Raises:
        AssertionError: The handler fails, or a second run has other effects.
    """
    __tracebackhide__ = True
    loaded = {function.module for function in test.functions} & set(sys.modules)
    first = test.play()
    if loaded != {function.module for function in test.functions} & set(sys.modules):
        # The handler has imported a client that is to be watched.
        first = test.play()
    _refuse_failures(test, first, "the handler fails without any kill")
    second = test.play()
    if _counts(first.effects) != _counts(second.effects):
        raise AssertionError(
            "the handler has other effects when the same messages come for the second time:\n\n"
            f"first:  {_listed(first.effects)}\nsecond: {_listed(second.effects)}\n\n"
            "Put the world back between the runs: assert_idempotent(..., fresh=a_context_manager)."
        )
    return first


def _refuse_failures(test: _Test, played: _Played, what: str) -> None:
    """Raise AssertionError for a message whose handler failed until its attempts were spent."""
    __tracebackhide__ = True
    for message, end, attempts in zip(test.messages, played.ends, played.attempts, strict=True):
        if isinstance(end, Quarantine) and attempts and not _is_signal(attempts[-1]):
            raise AssertionError(f"{what}; {_named(message)}:\n\n{attempts[-1].traceback}")


def _is_signal(attempt: Attempt) -> bool:
    signals = (kind.__name__ for kind in Signal.__subclasses__())
    return attempt.error.rpartition(".")[2] in signals


class _Player:
    """Runs the messages once: the witness of the effects.

    Args:
        harness: Not entered yet.
        test: The arguments of the call.
        kill_at: The number of the moment of the kill; None for no kill.
    """

    def __init__(self, harness: Harness, test: _Test, kill_at: int | None) -> None:
        self.played = _Played()
        self._harness = harness
        self._instance = harness._instance  # noqa: SLF001 -- this package's own
        self._test = test
        self._kill_at = kill_at
        self._lock = threading.Lock()
        self._watch = EffectWatch(self, test.functions)
        self._databases = SqliteWatch(self._watch), SqlalchemyWatch(self._watch)

    def play(self) -> None:
        """Deliver the messages, and let them come to their ends."""
        harness = self._harness
        for message in self._test.messages:
            killed_before = self.played.killed_at
            harness.deliver(message)
            if self.played.killed_at is not killed_before:
                # The broker delivers again.
                harness.advance(1)
        for _ in range(_WHILES):
            if not (harness.unsettled or harness.queued or harness.deferred) or harness.halted:
                break
            harness.advance(_WHILE)
        records = (self._instance.queue.latest(message) for message in self._test.messages)
        self.played.ends = [self._instance.dispositions.current(record) for record in records]
        self.played.attempts = [harness.attempts(m) for m in self._test.messages]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all effects while the block runs."""
        publishing = self._harness._publishing  # noqa: SLF001 -- this package's own
        store = self._harness.store
        collect, put, record = publishing.collect, publishing.store.put, store.record_step
        untyped: Any = store

        def record_step(delivery: Delivery, name: str, result: str) -> Any:
            begun = record(delivery, name, result)
            effect = self._effect("step", f"the step {name!r}")
            if effect is not None and begun.exception() is None:
                self._may_die("after", effect)
            return begun

        def collected(messages: Any) -> bool:
            effect = self.before("publish", _topics(messages))
            belongs = collect(messages)
            if belongs and effect is not None:
                # It happens with the acknowledgement.
                self._may_die("after", effect)
            return belongs

        def stored(messages: Any) -> None:
            entries = list(messages)
            self._watch.around("publish", _topics(entries), lambda: put(entries))

        publishing.collect, publishing.store.put = collected, stored
        untyped.record_step = record_step
        with contextlib.ExitStack() as stack:
            stack.enter_context(_threads_may_die())
            for watch in (self._watch, *self._databases):
                stack.enter_context(watch.installed())
            yield

    # As a witness.

    def before(self, kind: str, what: str) -> Effect | None:
        """Note that an effect is about to happen; it may be prevented by a kill."""
        effect = self._effect(kind, what)
        if effect is not None:
            self._may_die("before", effect)
        return effect

    def after(self, effect: Effect) -> None:
        """Note that an effect happened."""
        with self._lock:
            self.played.effects.append(effect)
        if not effect.in_step:
            self._may_die("after", effect)

    def _effect(self, kind: str, what: str) -> Effect | None:
        """Return the effect of the handler's message; None if no handler has one."""
        run = CURRENT_RUN.get()
        deliveries = self._instance.in_flight if run is None else run.deliveries
        if not deliveries:
            return None
        if self._instance.is_dying or not self._instance.is_alive(deliveries[0]):
            raise Killed
        # A thread without the handler's context belongs to the step that is under way.
        in_step = is_any_under_way() if run is None else bool(CURRENT_STEP.get())
        record = self._instance.queue.of(deliveries[0])
        message = None if self._instance.takes_batches else record.number
        places = places_of(sys._getframe(2), self._test.package)  # noqa: SLF001 -- as warnings do
        return Effect(kind, what, message, places, in_step)

    def _may_die(self, side: Literal["before", "after"], effect: Effect) -> None:
        moment = Moment(side, effect)
        with self._lock:
            number = len(self.played.moments)
            self.played.moments.append(moment)
        if number == self._kill_at:
            self.played.killed_at = moment
            try:
                self._instance.die()
            finally:
                for database in self._databases:
                    database.roll_back()


@contextlib.contextmanager
def _threads_may_die() -> Iterator[None]:
    """Report no thread of the handler's that ends with the process."""
    before = threading.excepthook

    def report(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, Killed):
            before(args)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


def _topics(entries: Iterable[Any]) -> str:
    return ", ".join(f"publish {message.topic}" for message, _ in entries)


def _counts(effects: Iterable[Effect]) -> Counter[tuple[object, ...]]:
    return Counter(effect.identity for effect in effects)


def _compare(
    test: _Test, undisturbed: _Played, played: _Played, allow: Callable[[Effect], bool]
) -> None:
    __tracebackhide__ = True
    if played.killed_at is None:
        return
    expected = _counts(e for e in undisturbed.effects if not allow(e))
    actual = [effect for effect in played.effects if not allow(effect)]
    twice = _first_beyond(actual, expected)
    if twice is not None:
        raise AssertionError(_report(test, played.killed_at, twice, "happens twice"))
    died = f"after the process died {played.killed_at}"
    _refuse_failures(test, played, f"the handler fails when the message comes again, {died}")
    found = _counts(actual)
    for effect in undisturbed.effects:
        is_done = found[effect.identity] >= expected[effect.identity]
        if not is_done and _ends_of(played, effect) == _ends_of(undisturbed, effect):
            raise AssertionError(_report(test, played.killed_at, effect, "never happens"))


def _ends_of(played: _Played, effect: Effect) -> list[type]:
    ends = played.ends if effect.message is None else [played.ends[effect.message]]
    return [type(end) for end in ends]


def _first_beyond(
    effects: Iterable[Effect], expected: Counter[tuple[object, ...]]
) -> Effect | None:
    seen: Counter[tuple[object, ...]] = Counter()
    for effect in effects:
        seen[effect.identity] += 1
        if seen[effect.identity] > expected[effect.identity]:
            return effect
    return None


_RUN = {
    False: ('with self.once("{name}") as step:', "    step.run(...)"),
    True: ('async with self.once("{name}") as step:', "    await step.run(...)"),
}


def _report(
    test: _Test, killed: Moment, effect: Effect, how: Literal["happens twice", "never happens"]
) -> str:
    messages = test.messages if effect.message is None else [test.messages[effect.message]]
    lines = "\n".join(f"    {place}" for place in reversed(effect.places)) or "    (unknown)"
    return (
        f"this effect {how} when the process dies {killed}:\n\n"
        f"    {effect}\n"
        f"    for {' or '.join(map(_named, messages))}\n\n"
        f"{lines}\n\n"
        f"{_cure(test, effect, how)}"
    )


def _cure(test: _Test, effect: Effect, how: str) -> str:
    if how == "never happens":
        return (
            "The handler remembers it as done before it is done. Remember it afterwards, or have "
            "both in one step:\n\n" + _step(test, effect)
        )
    if effect.kind == "publish":
        return (
            "Publish it from the handler, outside of its steps and threads, and through the outbox "
            '(publishing = "outbox"): then it is stored once, with the acknowledgement.'
        )
    is_consumer = inspect.isclass(test.consumer) and issubclass(test.consumer, Consumer)
    first = "" if is_consumer or isinstance(test.consumer, str) else "Make a Consumer of it. "
    return f"{first}Do it in a step, which a second run skips:\n\n{_step(test, effect)}"


def _step(test: _Test, effect: Effect) -> str:
    handle = getattr(test.consumer, "handle", test.consumer)
    lines = _RUN[inspect.iscoroutinefunction(handle)]
    name = _step_name(effect)
    return "\n".join(f"    {line.format(name=name)}" for line in lines)


def _step_name(effect: Effect) -> str:
    """Return a name like that of the method that the handler calls."""
    called = effect.places[:-1]
    if called:
        return called[-1].function.replace("_", "-")
    return effect.what.rpartition(".")[2].strip("()") if effect.kind == "call" else "effect"


def _named(message: Message) -> str:
    return f"the message {message.topic} (id {message.id})"


def _listed(effects: Iterable[Effect]) -> str:
    return "; ".join(str(effect) for effect in effects) or "none"
