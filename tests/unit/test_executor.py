# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the author's code, on a real event loop and in real threads."""

import asyncio
import functools
import subprocess
import sys
import threading
from typing import Any

import pytest
from fedora_messaging import exceptions as upstream
from twisted.internet import defer

from consumer_framework.adapters.executor import Executor, Limits, signal_of
from consumer_framework.adapters.executor.run import INLINE
from consumer_framework.author import heartbeat
from consumer_framework.author.handler import Handler
from consumer_framework.core.delivery import Failed, Skipped, Succeeded, Undecodable
from consumer_framework.core.errors import (
    Defer,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Retry,
    Skip,
)
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

PATIENCE = 20
DELIVERY = make_delivery()


def play(scenario):
    """Run *scenario*; one that would wait for ever fails."""
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


def executor_of(handler, slots=1):
    """Make an executor on the running event loop."""
    flight = FakeFlightRecorder(places=slots)
    return Executor(handler, lambda _delivery: "message", flight, Limits(slots))


def run(call):
    """Return the outcome of one run of *call*."""

    async def scenario():
        executor = executor_of(Handler("test", call))
        try:
            return await executor.run(DELIVERY)
        finally:
            executor.close()

    return play(scenario())


def raising(error):
    def handle(message):
        raise error

    return handle


def raising_later(error):
    async def handle(message):
        await asyncio.sleep(0)
        raise error

    return handle


BOTH = pytest.mark.parametrize("make", [raising, raising_later])


def test_a_plain_handler_runs_in_a_thread_of_its_own():
    seen = []
    outcome = run(lambda message: seen.append((message, threading.current_thread())))
    assert outcome == Succeeded()
    ((message, thread),) = seen
    assert message == "message"
    assert thread is not threading.main_thread()
    assert not thread.daemon


def test_a_coroutine_handler_runs_on_the_event_loop():
    seen = []

    async def handle(message):
        await asyncio.sleep(0)
        seen.append((message, threading.current_thread()))

    assert run(handle) == Succeeded()
    assert seen == [("message", threading.main_thread())]


def test_an_object_with_a_coroutine_call_runs_on_the_event_loop():
    seen = []

    class Handle:
        async def __call__(self, message):
            seen.append(threading.current_thread())

    assert run(Handle()) == Succeeded()
    assert run(functools.partial(Handle().__call__)) == Succeeded()
    assert seen == [threading.main_thread()] * 2


@pytest.mark.parametrize("fails", [False, True])
def test_an_awaitable_that_a_plain_handler_returns_is_awaited(fails):
    async def work(message):
        await asyncio.sleep(0)
        if fails:
            raise ValueError("boom")

    outcome = run(lambda message: work(message))  # noqa: PLW0108 -- is the case
    assert isinstance(outcome, Failed if fails else Succeeded)


@pytest.mark.parametrize("fails", [False, True])
def test_a_deferred_that_a_handler_returns_is_waited_for(fails):
    error = ValueError("boom")
    outcome = run(lambda _: defer.fail(error) if fails else defer.succeed(None))
    assert outcome == (Failed(error) if fails else Succeeded())


@pytest.mark.parametrize(
    "error", [ValueError("boom"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]
)
@BOTH
def test_any_exception_of_a_handler_is_its_outcome(make, error):
    assert run(make(error)) == Failed(error)


@BOTH
def test_a_handler_that_raises_stop_iteration_fails(make):
    outcome = run(make(StopIteration()))
    assert isinstance(outcome, Failed)
    # A coroutine cannot let StopIteration out (PEP 479).
    causes = (outcome.error, outcome.error.__cause__)
    assert any(isinstance(cause, StopIteration) for cause in causes)


@BOTH
def test_a_cancellation_that_comes_out_of_a_handler_is_its_failure(make):
    error = asyncio.CancelledError("a query was canceled")
    outcome = run(make(error))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, asyncio.CancelledError)


def test_a_run_that_the_host_cancels_is_canceled():
    async def scenario():
        ended = asyncio.Event()

        async def handle(message):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        task = asyncio.create_task(executor_of(Handler("test", handle)).run(DELIVERY))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ended.wait()

    play(scenario())


@BOTH
def test_a_handler_that_skips_has_not_failed(make):
    assert run(make(Skip("not ours"))) == Skipped("not ours")


@BOTH
@pytest.mark.parametrize(
    "signal",
    [
        Retry("busy", after="5m"),
        Defer(5.0, "later"),
        Drop("old"),
        Quarantine("odd"),
        DependencyFault("the database"),
        Halt(3, "enough"),
    ],
)
def test_every_other_signal_of_an_author_is_the_outcome_as_it_was_raised(make, signal):
    outcome = run(make(signal))
    assert isinstance(outcome, Failed)
    assert outcome.error is signal


@BOTH
@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (upstream.Nack("busy"), Retry, "busy"),
        (upstream.Drop("old"), Drop, "old"),
        (Retry("busy"), Retry, "busy"),
        (Halt(3, "enough"), Halt, "enough"),
    ],
)
def test_upstreams_signals_become_ours(make, error, kind, reason):
    outcome = run(make(error))
    assert isinstance(outcome, Failed)
    assert type(outcome.error) is kind
    assert getattr(outcome.error, "reason", None) == reason


@BOTH
@pytest.mark.parametrize("requeue", [False, True])
def test_upstreams_halt_keeps_its_exit_code_reason_and_requeue(make, requeue):
    outcome = run(make(upstream.HaltConsumer(5, "enough", requeue=requeue)))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Halt)
    halt = outcome.error
    assert (halt.exit_code, halt.reason, halt.requeue) == (5, "enough", requeue)


def test_upstreams_halt_without_arguments_is_a_plain_stop():
    halt = signal_of(upstream.HaltConsumer())
    assert isinstance(halt, Halt)
    assert (halt.exit_code, halt.reason, halt.requeue) == (0, "", False)


def test_upstreams_nack_is_a_retry_after_the_configured_delays():
    retry = signal_of(upstream.Nack("busy"))
    assert isinstance(retry, Retry)
    assert retry.after is None


@pytest.mark.parametrize("error", [ValueError(), Retry(), upstream.ValidationError(ValueError())])
def test_other_errors_are_unchanged(error):
    assert signal_of(error) is error


def test_with_one_slot_setup_handle_and_teardown_share_a_thread():
    threads = []

    def note(*_):
        threads.append(threading.current_thread())

    async def scenario():
        executor = executor_of(Handler("test", note, setup=note, teardown=note))
        await executor.setup()
        for _ in range(3):
            await executor.run(DELIVERY)
        await executor.teardown()
        executor.close()

    play(scenario())
    assert len(threads) == 5
    assert len(set(threads)) == 1


def test_setup_and_teardown_may_be_coroutines_and_may_be_missing():
    seen = []

    async def note():
        seen.append(threading.current_thread())

    async def scenario():
        await executor_of(Handler("test", print)).setup()
        await executor_of(Handler("test", print)).teardown()
        executor = executor_of(Handler("test", print, setup=note, teardown=note))
        await executor.setup()
        await executor.teardown()

    play(scenario())
    assert seen == [threading.main_thread()] * 2


@pytest.mark.parametrize("part", ["setup", "teardown"])
def test_an_exception_of_setup_or_teardown_is_raised(part):
    def fail():
        raise OSError("no database")

    async def scenario():
        parts: dict[str, Any] = {part: fail}
        executor = executor_of(Handler("test", print, **parts))
        try:
            await getattr(executor, part)()
        finally:
            executor.close()

    with pytest.raises(OSError, match="no database"):
        play(scenario())


def test_two_slots_run_two_plain_handlers_at_once_and_reuse_their_threads():
    both = threading.Barrier(2, timeout=PATIENCE)
    threads = []

    def handle(message):
        threads.append(threading.current_thread())
        both.wait()

    async def scenario():
        executor = executor_of(Handler("test", handle), slots=2)
        for _ in range(5):
            outcomes = await asyncio.gather(*(executor.run(DELIVERY) for _ in range(2)))
            assert outcomes == [Succeeded(), Succeeded()], "neither waited for the other's end"
        executor.close()

    play(scenario())
    assert len(set(threads)) == 2


@pytest.mark.parametrize(
    "deliveries",
    [
        [make_delivery(delivery_tag=tag) for tag in (1, 2)],
        [make_delivery(generation=generation) for generation in (1, 2)],
        [make_delivery(generation=0, delivery_tag=0, row=row) for row in (2, 1)],
    ],
    ids=["tags", "channels", "rows"],
)
def test_deliveries_in_the_handler_are_known_longest_first(deliveries):
    async def scenario():
        ends: list[asyncio.Event] = []

        async def handle(message):
            ends.append(asyncio.Event())
            await ends[-1].wait()

        executor = executor_of(Handler("test", handle), slots=2)
        runs = [asyncio.create_task(executor.run(delivery)) for delivery in deliveries]
        await asyncio.sleep(0.01)
        assert executor.running == tuple(deliveries)
        ends[0].set()
        await runs[0]
        assert executor.running == tuple(deliveries[1:])
        ends[1].set()
        await runs[1]
        assert executor.running == ()
        executor.close()

    play(scenario())


def test_a_second_thread_is_made_only_when_two_handlers_run_at_once():
    threads = []

    async def scenario():
        executor = executor_of(
            Handler("test", lambda _: threads.append(threading.current_thread())), slots=2
        )
        for _ in range(4):
            await executor.run(DELIVERY)
        executor.close()

    play(scenario())
    assert len(set(threads)) == 1


def test_the_loop_goes_on_while_a_plain_handler_blocks():
    release = threading.Event()

    async def scenario():
        executor = executor_of(Handler("test", lambda _: release.wait(PATIENCE)))
        task = asyncio.create_task(executor.run(DELIVERY))
        await asyncio.sleep(0.01)
        assert not task.done()
        release.set()
        assert await task == Succeeded()
        executor.close()

    play(scenario())


def test_closing_ends_the_threads():
    threads = []

    async def scenario():
        executor = executor_of(
            Handler("test", lambda _: threads.append(threading.current_thread())), slots=3
        )
        await executor.run(DELIVERY)
        executor.close()

    play(scenario())
    (thread,) = threads
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_handler_that_outlives_the_event_loop_ends_in_peace():
    release = threading.Event()
    threads = []
    hooked: list[Any] = []
    former, threading.excepthook = threading.excepthook, hooked.append

    async def scenario():
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def handle(message):
            threads.append(threading.current_thread())
            loop.call_soon_threadsafe(started.set)
            release.wait(PATIENCE)

        executor = executor_of(Handler("test", handle))
        task = asyncio.create_task(executor.run(DELIVERY))
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        executor.close()

    try:
        play(scenario())
        release.set()
        threads[0].join(PATIENCE)
    finally:
        threading.excepthook = former
    assert not threads[0].is_alive()
    assert hooked == []


def test_every_run_of_a_coroutine_gives_the_loop_a_turn():
    async def scenario():
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)

        async def handle(message):
            assert turns, "the loop ran before the handler did"

        return await executor_of(Handler("test", handle)).run(DELIVERY)

    assert play(scenario()) == Succeeded()


# The deliveries of the current run.


def noted_by(noting):
    """Return a handler, and the list of the message ids that it finds."""
    seen = []

    def note():
        seen.append([delivery.message_id for delivery in heartbeat.deliveries()])

    return noting(note), seen


def plain(note):
    return lambda message: note()


def coroutine(note):
    async def handle(message):
        await asyncio.sleep(0)
        await asyncio.create_task(asyncio.to_thread(note))

    return handle


def begun(note):
    async def later():
        await asyncio.sleep(0)
        note()

    return lambda message: later()


@pytest.mark.parametrize("kind", [plain, coroutine, begun])
def test_code_that_a_handler_calls_can_tell_its_message(kind):
    handle, seen = noted_by(kind)

    async def scenario():
        executor = executor_of(Handler("test", handle))
        outcomes = [await executor.run(make_delivery(message_id=str(n))) for n in range(3)]
        executor.close()
        return outcomes, heartbeat.deliveries()

    outcomes, after = play(scenario())
    assert outcomes == [Succeeded()] * 3
    assert seen == [["0"], ["1"], ["2"]]
    assert after == ()


def test_a_callback_on_the_loop_after_a_handler_has_no_message():
    found = []

    async def scenario():
        executor = executor_of(Handler("test", lambda message: None))
        loop = asyncio.get_running_loop()
        run = loop.create_task(executor.run(DELIVERY))
        run.add_done_callback(lambda _: found.append(heartbeat.deliveries()))
        await run
        await asyncio.sleep(0)
        executor.close()

    play(scenario())
    assert found == [()]


def test_the_deadline_of_several_runs_is_the_latest():
    gates = [threading.Event(), threading.Event()]
    started = [threading.Event(), threading.Event()]

    def handle(message):
        started[message].set()
        assert gates[message].wait(PATIENCE)

    async def scenario():
        loop = asyncio.get_running_loop()
        numbers = iter([0, 1])
        flight, limits = FakeFlightRecorder(places=2), Limits(slots=2, timeout=100.0)
        executor = Executor(Handler("test", handle), lambda _: next(numbers), flight, limits)
        assert executor.deadline is None
        runs, before = [], []
        for number in (0, 1):
            before.append(loop.time())
            runs.append(asyncio.ensure_future(executor.run(DELIVERY)))
            await loop.run_in_executor(None, started[number].wait, PATIENCE)
        latest: Any = executor.deadline
        assert before[1] + 100 <= latest <= loop.time() + 100
        gates[1].set()
        await runs[1]
        earlier: Any = executor.deadline
        assert before[0] + 100 <= earlier < latest
        gates[0].set()
        await runs[0]
        assert executor.deadline is None
        executor.close()

    play(scenario())


def test_the_setup_is_no_run_with_a_deadline():
    async def scenario():
        seen = []
        handler = Handler("test", print, setup=lambda: seen.append(executor.deadline))
        executor = executor_of(handler)
        await executor.setup()
        executor.close()
        return seen

    assert play(scenario()) == [None]


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_only_a_coroutine_can_be_cancelled_and_only_once(is_coroutine):
    gate = threading.Event()
    cancelled = []

    async def wait_later(message):
        while not gate.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                cancelled.append(message)

    def wait(message):
        assert gate.wait(PATIENCE)

    async def scenario():
        executor = executor_of(Handler("test", wait_later if is_coroutine else wait))
        running = asyncio.ensure_future(executor.run(DELIVERY))
        while not executor.running:  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0)
        assert executor.cancel() == ((DELIVERY,) if is_coroutine else ())
        assert executor.cancel() == ()
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait([running])
        assert executor.running == (DELIVERY,), "it does as it likes"
        gate.set()
        while executor.running:  # noqa: ASYNC110 -- likewise
            await asyncio.sleep(0.01)
        executor.close()

    play(scenario())
    assert cancelled == ["message"] * is_coroutine


# Decoding.

LARGE = make_delivery(body=b" " * (INLINE + 1))


class Decoding:
    """Runs a handler with a decoder that notes its thread, and the deliveries in flight then."""

    def __init__(self, call, *, is_batch: bool, error: Exception | None = None, slots: int = 2):
        self.flight = FakeFlightRecorder(places=slots)
        self.threads: list[threading.Thread] = []
        self.flying: list[int] = []
        self.error = error
        handler = Handler("test", call, call_batch=call if is_batch else None)
        limits = Limits(slots, batch_size=slots if is_batch else 1, batch_seconds=0.01)
        self.executor = Executor(handler, self.decode, self.flight, limits)

    def decode(self, delivery):
        self.threads.append(threading.current_thread())
        self.flying.append(len(self.flight.in_flight))
        if self.error is not None:
            raise self.error
        return "message"

    async def run(self, *deliveries):
        try:
            return await asyncio.gather(*map(self.executor.run, deliveries))
        finally:
            self.executor.close()


async def decoded_later(_message):
    pass


def decoded_here(_message):
    pass


@pytest.mark.parametrize("error", [None, ValueError("no message")])
@pytest.mark.parametrize("is_batch", [False, True])
@pytest.mark.parametrize("call", [decoded_here, decoded_later])
@pytest.mark.parametrize("delivery", [DELIVERY, LARGE])
def test_the_flight_recorder_knows_of_a_message_while_it_is_decoded(
    delivery, call, is_batch, error
):
    async def scenario():
        decoding = Decoding(call, is_batch=is_batch, error=error)
        outcomes = await decoding.run(delivery, delivery)
        assert all(decoding.flying)
        assert not decoding.flight.in_flight
        assert outcomes == [Undecodable(error) if error else Succeeded()] * 2

    play(scenario())


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_large_body_is_not_decoded_on_the_event_loop_and_a_small_one_needs_no_thread(is_batch):
    async def scenario():
        here = threading.current_thread()
        large, small = (
            Decoding(decoded_later, is_batch=is_batch),
            Decoding(decoded_later, is_batch=is_batch),
        )
        await large.run(LARGE)
        await small.run(DELIVERY)
        assert here not in large.threads
        assert small.threads == [here]

    play(scenario())


def test_a_large_body_is_decoded_even_where_no_thread_can_be_started(monkeypatch):
    async def scenario():
        decoding = Decoding(decoded_later, is_batch=False)
        monkeypatch.setattr(threading.Thread, "start", refused)
        assert await decoding.run(LARGE) == [Succeeded()]

    def refused(_thread):
        raise RuntimeError("can't start new thread")

    play(scenario())


def test_a_run_that_is_cancelled_while_its_body_is_decoded_is_in_flight_to_the_end():
    async def scenario():
        go_on = threading.Event()
        decoding = Decoding(handler, is_batch=False)
        decode = decoding.decode

        def slow(delivery):
            go_on.wait(PATIENCE)
            return decode(delivery)

        executor = Executor(Handler("test", handler), slow, decoding.flight, Limits())
        run = asyncio.ensure_future(executor.run(LARGE))
        while not executor.running:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0)
        executor.cancel()
        await asyncio.sleep(0)
        assert decoding.flight.in_flight
        go_on.set()
        outcome = await run
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, asyncio.CancelledError)
        assert not decoding.flight.in_flight
        executor.close()

    async def handler(_message):
        await asyncio.sleep(PATIENCE)

    play(scenario())


# The objects that handlers return.


def generator(message):
    yield message


async def async_generator(message):
    yield message


async def returns_a_generator(message):
    return generator(message)


class Yielding:
    def __call__(self, message):
        yield message


NEVER_RUN = {
    "a generator": lambda message: generator(message),  # noqa: PLW0108 -- is the case
    "an async generator": lambda message: async_generator(message),  # noqa: PLW0108 -- is the case
    "a callable object with yield": Yielding(),
    "a coroutine that returns one": returns_a_generator,
    "a plain function that returns that": lambda message: returns_a_generator(message),  # noqa: PLW0108
    "a map": lambda message: map(print, [message]),
}


@pytest.mark.parametrize("what", NEVER_RUN)
def test_a_handler_that_returns_code_that_never_runs_has_failed(what):
    outcome = run(NEVER_RUN[what])
    assert isinstance(outcome, Failed)
    assert "whose code was never run" in str(outcome.error)


@pytest.mark.parametrize("make", [lambda f: f, lambda f: lambda m: f(m)])  # noqa: PLW0108
def test_a_coroutine_that_returns_a_coroutine_runs_both(make):
    seen = []

    async def inner(message):
        seen.append(message)

    async def outer(message):
        return inner(message)

    assert run(make(outer)) == Succeeded()
    assert seen == ["message"]


@pytest.mark.parametrize("is_batch", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_object_that_a_handler_returns_is_logged_once(caplog, is_async, is_batch):
    async def handle_later(message):
        return True

    handle = handle_later if is_async else lambda message: True
    handler = Handler("test", handle, call_batch=handle if is_batch else None)

    async def scenario():
        executor = Executor(
            handler, lambda _: "message", FakeFlightRecorder(places=1), Limits(batch_seconds=0.0)
        )
        outcomes = [await executor.run(DELIVERY) for _ in range(3)]
        executor.close()
        return outcomes

    assert play(scenario()) == [Succeeded()] * 3
    (record,) = caplog.records
    assert record.getMessage().startswith("test returned an object of type bool, which is ignored")


@pytest.mark.parametrize("function", [generator, async_generator, returns_a_generator])
@pytest.mark.parametrize("name", ["setup", "teardown"])
def test_a_setup_or_teardown_that_never_runs_has_failed(name, function):
    async def scenario():
        more = {name: functools.partial(function, None)}
        executor = executor_of(Handler("test", print, **more))
        try:
            with pytest.raises(TypeError, match="never run"):
                await getattr(executor, name)()
        finally:
            executor.close()

    play(scenario())


@pytest.mark.parametrize("function", [generator, async_generator])
@pytest.mark.parametrize("is_later", [False, True])
def test_a_batch_that_never_runs_has_failed(function, is_later):
    async def later(batch):
        return function(batch)

    handler = Handler("test", print, call_batch=later if is_later else function)

    async def scenario():
        flight, limits = FakeFlightRecorder(places=1), Limits(batch_seconds=0.0)
        executor = Executor(handler, lambda _: "message", flight, limits)
        try:
            return await executor.run(DELIVERY)
        finally:
            executor.close()

    outcome = play(scenario())
    assert isinstance(outcome, Failed)
    assert "never run" in str(outcome.error)


# Threads.


def test_the_threads_of_slots_are_no_daemons_and_end_when_it_is_closed():
    """A thread that the handler starts is a daemon where its own one is."""
    started = []

    def handle(message):
        started.append(threading.current_thread())
        raise ValueError

    async def scenario():
        executor = executor_of(Handler("test", handle))
        run = asyncio.ensure_future(executor.run(DELIVERY))
        loop = asyncio.get_running_loop()
        await run
        executor.close()
        await loop.run_in_executor(None, started[0].join, PATIENCE)

    play(scenario())
    assert not started[0].daemon
    assert not started[0].is_alive()


def test_a_thread_ends_although_its_result_is_not_collected_any_more():
    started, gate = [], threading.Event()

    def handle(message):
        started.append(threading.current_thread())
        assert gate.wait(PATIENCE)
        raise ValueError

    async def scenario():
        executor = executor_of(Handler("test", handle))
        task = asyncio.ensure_future(executor.run(DELIVERY))
        while not started:  # noqa: ASYNC110 -- threads know no events of asyncio's
            await asyncio.sleep(0.001)
        executor.close()
        task.cancel()

    play(scenario())
    gate.set()
    started[0].join(PATIENCE)
    assert not started[0].is_alive()


def test_a_process_ends_although_its_executor_was_not_closed():
    script = """
import asyncio
from consumer_framework.adapters.executor import Executor
from consumer_framework.author.handler import Handler
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

async def scenario():
    executor = Executor(Handler("test", print), str, FakeFlightRecorder(places=1))
    await executor.run(make_delivery())

asyncio.run(scenario())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)


def test_a_halt_without_an_exit_code_is_a_good_end():
    signal = signal_of(upstream.HaltConsumer(exit_code=None))  # type: ignore[arg-type]
    assert isinstance(signal, Halt)
    assert signal.exit_code == 0
