# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries get into the slots and out of them, in real threads and in tasks."""

import asyncio
import logging
import random
import threading
from contextvars import ContextVar

import pytest
from twisted.internet import defer

from consumer_framework.adapters.executor import Executor, Limits
from consumer_framework.author.handler import Handler
from consumer_framework.core.delivery import Failed, Succeeded, Undecodable, Withdrawn
from consumer_framework.core.errors import HandlerTimeoutError
from consumer_framework.core.ports import FlightRecorder
from consumer_framework.testing import make_delivery

PATIENCE = 30


class Flight(FlightRecorder):
    """Counts the deliveries in the handler; any thread may call it."""

    def __init__(self):
        self._lock = threading.Lock()
        self.in_flight = 0

    def crashes_of(self, delivery):
        return 0

    def has_hung(self, delivery):
        return False

    def route_of(self, delivery):
        return ""

    def forget(self, delivery):
        pass

    def took_off(self, delivery):
        with self._lock:
            self.in_flight += 1
        return 1

    def landed(self, place):
        with self._lock:
            self.in_flight -= 1


def play(scenario):
    """Run *scenario*; one that would wait for ever fails."""
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


class Slots:
    """An executor whose handler takes the number of a delivery for the message."""

    def __init__(self, call, *, slots=1, batch=None, decode=None, setup=None, **limits):
        handler = Handler("test", call or batch, setup=setup, teardown=setup, call_batch=batch)
        self.flight = Flight()
        self.executor = Executor(
            handler, decode or (lambda d: d.delivery_tag), self.flight, Limits(slots, **limits)
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.executor.close()
        assert not self.executor.is_busy
        assert self.executor.running == ()
        assert self.flight.in_flight == 0

    def run(self, number, received_at=0.0):
        delivery = make_delivery(delivery_tag=number, received_at=received_at)
        return asyncio.create_task(self.executor.run(delivery))

    def run_all(self, numbers):
        return [self.run(number) for number in numbers]


async def turns():
    for _ in range(10):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():  # noqa: ASYNC110 -- threads know no events of asyncio's
        await asyncio.sleep(0.001)


def plain(call):
    return call


def coroutine(call):
    async def handle(message):
        await asyncio.sleep(0)
        call(message)

    return handle


def awaitable(call):
    """Return a plain function that returns an awaitable."""

    async def work(message):
        await asyncio.sleep(0)
        call(message)

    return lambda message: work(message)  # noqa: PLW0108 -- is the case


FORMS = pytest.mark.parametrize("form", [plain, coroutine, awaitable])


# Order, and how many at once.


@FORMS
def test_one_slot_keeps_the_order_of_hundreds_of_messages(form):
    seen: list[int] = []

    async def scenario():
        async with Slots(form(seen.append)) as slots:
            outcomes = await asyncio.gather(*slots.run_all(range(500)))
        assert outcomes == [Succeeded()] * 500

    play(scenario())
    assert seen == list(range(500))


@FORMS
def test_one_slot_keeps_the_order_while_messages_fail_and_others_come(form):
    seen = []

    def handle(number):
        seen.append(number)
        if number % 3 == 0:
            raise ValueError(number)

    async def scenario():
        async with Slots(form(handle)) as slots:
            tasks = []
            for start in range(0, 300, 30):
                tasks += slots.run_all(range(start, start + 30))
                await asyncio.sleep(0.0005)
            outcomes = await asyncio.gather(*tasks)
        assert [isinstance(o, Failed) for o in outcomes] == [n % 3 == 0 for n in range(300)]

    play(scenario())
    assert seen == list(range(300))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_so_many_threads_run_at_once_and_no_more(count):
    lock, together = threading.Lock(), threading.Barrier(count, timeout=PATIENCE)
    running, most = 0, 0

    def handle(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1

    async def scenario():
        async with Slots(handle, slots=count) as slots:
            assert await asyncio.gather(*slots.run_all(range(6 * count))) == [Succeeded()] * (
                6 * count
            )

    play(scenario())
    assert most == count


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("fails", [False, True])
def test_so_many_coroutines_run_at_once_and_no_more(count, fails):
    running, most = 0, 0
    together = asyncio.Barrier(count)

    async def handle(number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await together.wait()
        running -= 1
        if fails:
            raise ValueError(number)

    async def scenario():
        async with Slots(handle, slots=count) as slots:
            outcomes = await asyncio.gather(*slots.run_all(range(6 * count)))
            assert all(isinstance(o, Failed if fails else Succeeded) for o in outcomes)

    play(scenario())
    assert most == count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_awaitable_that_a_plain_function_returns_occupies_its_slot(count):
    async def scenario():
        began, gate = [], asyncio.Event()

        async def work(number):
            began.append(number)
            await gate.wait()

        async with Slots(lambda number: work(number), slots=count) as slots:  # noqa: PLW0108
            tasks = []
            # One after the other: each has begun before the next comes.
            for number in range(count):
                tasks.append(slots.run(number))
                await until(lambda: len(began) == number + 1)
            tasks.append(slots.run(count))
            await asyncio.sleep(0.02)
            assert began == list(range(count))
            assert len(slots.executor.running) == count
            gate.set()
            assert await asyncio.gather(*tasks) == [Succeeded()] * (count + 1)
            assert began == list(range(count + 1))

    play(scenario())


def test_a_slot_that_waits_for_an_awaitable_leaves_the_others_free():
    async def scenario():
        gate = asyncio.Event()
        threads = []

        def handle(number):
            threads.append(threading.current_thread())
            return gate.wait() if number == 0 else None

        async with Slots(handle, slots=2) as slots:
            first = slots.run(0)
            await until(lambda: slots.executor.running and threads)
            assert await asyncio.gather(*slots.run_all(range(1, 20))) == [Succeeded()] * 19
            assert not first.done()
            assert len(set(threads)) == 2
            gate.set()
            assert await first == Succeeded()

    play(scenario())


def test_a_deferred_occupies_its_slot_as_well():
    async def scenario():
        waiting: list[defer.Deferred[None]] = []

        def handle(number):
            waiting.append(defer.Deferred())
            return waiting[-1]

        async with Slots(handle) as slots:
            tasks = slots.run_all(range(2))
            await until(lambda: waiting)
            await asyncio.sleep(0.01)
            assert len(waiting) == 1
            waiting[0].errback(ValueError("boom"))
            assert isinstance(await tasks[0], Failed)
            await until(lambda: len(waiting) == 2)
            waiting[1].callback(None)
            assert await tasks[1] == Succeeded()

    play(scenario())


# The end of a failure.


@FORMS
@pytest.mark.parametrize("round_number", range(10))
def test_after_a_failure_the_slot_runs_nothing_before_the_waiter_has_seen_it(form, round_number):
    """The receiver of the outcome may stop the instance, or pause it."""
    bad, seen = random.Random(round_number).randrange(10), []  # noqa: S311 -- reproducible

    def handle(number):
        seen.append(number)
        if number == bad:
            raise ValueError("stop")

    async def scenario():
        async with Slots(form(handle)) as slots:

            async def worker(number):
                delivery = make_delivery(delivery_tag=number)
                outcome = await slots.executor.run(delivery)
                if isinstance(outcome, Failed):
                    slots.executor.withdraw()
                return outcome

            outcomes = await asyncio.gather(*(worker(n) for n in range(20)))
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [Succeeded] * bad + [Failed] + [Withdrawn] * (19 - bad)

    play(scenario())
    assert seen == list(range(bad + 1))


def test_after_bytes_that_are_no_message_the_slot_waits_too():
    def decode(delivery):
        if delivery.delivery_tag == 1:
            raise ValueError("no message")
        return delivery.delivery_tag

    seen: list[int] = []

    async def scenario():
        async with Slots(seen.append, decode=decode) as slots:

            async def worker(number):
                outcome = await slots.executor.run(make_delivery(delivery_tag=number))
                if isinstance(outcome, Undecodable):
                    slots.executor.withdraw()
                return type(outcome)

            kinds = await asyncio.gather(*(worker(n) for n in range(4)))
        assert kinds == [Succeeded, Undecodable, Withdrawn, Withdrawn]

    play(scenario())
    assert seen == [0]


# Taking back.


def blocking(form, seen):
    """Return a handler that waits in its first message, and the event that lets it go on."""
    if form is coroutine:
        go = asyncio.Event()

        async def handle_on_the_loop(number):
            seen.append(number)
            await go.wait()

        return handle_on_the_loop, go
    gate = threading.Event()

    def handle(number):
        seen.append(number)
        gate.wait(PATIENCE)

    return handle, gate


BLOCKING = pytest.mark.parametrize("form", [plain, coroutine])


@BLOCKING
@pytest.mark.parametrize("count", [1, 3])
def test_exactly_the_runs_that_no_slot_has_begun_are_taken_back(form, count):
    async def scenario():
        seen: list[int] = []
        handle, go = blocking(form, seen)
        async with Slots(handle, slots=count) as slots:
            tasks = slots.run_all(range(count + 4))
            await until(lambda: len(seen) == count)
            assert slots.executor.withdraw() == 4
            assert await asyncio.gather(*tasks[count:]) == [Withdrawn()] * 4
            assert slots.executor.withdraw() == 0
            go.set()
            assert await asyncio.gather(*tasks[:count]) == [Succeeded()] * count
            assert sorted(seen) == list(range(count))
            assert await slots.run(99) == Succeeded(), "and what comes later runs"

    play(scenario())


@BLOCKING
def test_only_the_runs_that_are_too_old_are_taken_back_and_the_rest_keeps_its_order(form):
    async def scenario():
        seen: list[int] = []
        handle, go = blocking(form, seen)
        async with Slots(handle) as slots:
            tasks = [slots.run(n, received_at=at) for n, at in enumerate([0, 5, 20, 6, 21, 22])]
            await until(lambda: seen == [0])
            assert slots.executor.withdraw(lambda delivery: delivery.received_at < 10.0) == 2
            go.set()
            outcomes = await asyncio.gather(*tasks)
        assert [n for n, o in enumerate(outcomes) if o == Withdrawn()] == [1, 3]
        assert seen == [0, 2, 4, 5]

    play(scenario())


@BLOCKING
@pytest.mark.parametrize("seed", range(5))
def test_a_message_is_either_seen_once_or_withdrawn(form, seed):
    luck = random.Random(seed)  # noqa: S311 -- reproducible
    seen: list[int] = []

    async def scenario():
        async with Slots(form(seen.append), slots=luck.choice([1, 2, 4])) as slots:
            tasks = []
            for start in range(0, 400, 20):
                tasks += slots.run_all(range(start, start + 20))
                await asyncio.sleep(luck.choice([0, 0, 0.0002, 0.001]))
                slots.executor.withdraw()
            return await asyncio.gather(*tasks)

    outcomes = play(scenario())
    assert sorted(seen) == [n for n, outcome in enumerate(outcomes) if outcome == Succeeded()]
    assert {type(outcome) for outcome in outcomes} <= {Succeeded, Withdrawn}


# Deadlines.


def test_a_coroutine_handler_that_takes_too_long_is_cancelled_and_has_failed():
    async def scenario():
        cancelled = []

        async def handle(number):
            if number == 1:
                try:
                    await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    cancelled.append(number)
                    raise

        async with Slots(handle, timeout=0.02) as slots:
            outcomes = await asyncio.gather(*slots.run_all(range(3)))
        assert cancelled == [1]
        assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded]
        assert isinstance(outcomes[1].error, HandlerTimeoutError)
        assert "cancelled after" in str(outcomes[1].error)

    play(scenario())


def test_an_awaitable_that_takes_too_long_is_cancelled_and_has_failed():
    async def scenario():
        async with Slots(lambda _: asyncio.sleep(PATIENCE), timeout=0.02) as slots:
            outcomes = await asyncio.gather(*slots.run_all(range(2)))
        assert all(isinstance(outcome.error, HandlerTimeoutError) for outcome in outcomes)

    play(scenario())


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(None, Succeeded), (ValueError("in its cleanup"), Failed)],
    ids=["returns", "raises"],
)
def test_a_cancelled_handler_that_returns_has_succeeded_and_one_that_raises_was_too_late(
    ending, kind
):
    async def scenario():
        async def handle(number):
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                if ending is not None:
                    raise ending from None

        async with Slots(handle, timeout=0.02) as slots:
            outcome = await slots.run(1)
        assert type(outcome) is kind
        assert kind is Succeeded or isinstance(outcome.error, HandlerTimeoutError)

    play(scenario())


def test_an_awaitable_that_is_cancelled_before_it_begins_has_failed_and_is_in_no_handler():
    async def scenario():
        async with Slots(lambda _: defer.Deferred()) as slots:
            run = slots.run(1)
            # In each turn of the loop: one of them is before the task's first step.
            while not slots.executor.cancel():  # noqa: ASYNC110 -- likewise
                await asyncio.sleep(0)
            outcome = await run
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, asyncio.CancelledError)
            assert slots.flight.in_flight == 0

    play(scenario())


@pytest.mark.parametrize(("form", "kind"), [(coroutine, Succeeded), (awaitable, Failed)])
def test_a_handler_that_cancels_its_task_with_its_last_step_leaves_the_slot_in_order(form, kind):
    def cancel(number):
        if number == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async def scenario():
        async with Slots(form(cancel)) as slots:
            outcomes = await asyncio.gather(*slots.run_all(range(3)))
        assert [type(outcome) for outcome in outcomes] == [Succeeded, kind, Succeeded]

    play(scenario())


def test_an_awaitable_that_ends_soon_makes_the_handler_a_quick_one():
    async def scenario():
        async with Slots(lambda _: asyncio.sleep(0)) as slots:
            assert not slots.executor.is_quick
            await slots.run(1)
            assert slots.executor.is_quick

    play(scenario())


def test_a_handler_that_cancels_itself_has_failed_but_not_of_its_time():
    async def scenario():
        async def handle(number):
            raise asyncio.CancelledError

        async with Slots(handle, timeout=0.02) as slots:
            outcome = await slots.run(1)
        assert isinstance(outcome.error, asyncio.CancelledError)

    play(scenario())


def test_a_plain_function_that_takes_too_long_is_reported_once(caplog):
    async def scenario():
        gate = threading.Event()
        async with Slots(lambda _: gate.wait(PATIENCE), timeout=0.01) as slots:
            task = slots.run(1)
            await until(lambda: caplog.records)
            # Looks again, several times.
            await asyncio.sleep(0.1)
            assert not task.done()
            gate.set()
            assert await task == Succeeded()

    with caplog.at_level(logging.ERROR):
        play(scenario())
    (record,) = caplog.records
    assert "test has had message 1 for more than" in record.getMessage()
    assert "cannot be interrupted" in record.getMessage()


def test_each_of_several_that_take_too_long_is_reported(caplog):
    async def scenario():
        gate = threading.Event()
        async with Slots(lambda _: gate.wait(PATIENCE), slots=3, timeout=0.01) as slots:
            tasks = slots.run_all(range(5))
            await until(lambda: len(caplog.records) == 3)
            gate.set()
            await asyncio.gather(*tasks)

    with caplog.at_level(logging.ERROR):
        play(scenario())
    assert len(caplog.records) == 3, "those that wait for a slot are in no handler"


# Exceptions of handlers.


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit(), StopAsyncIteration()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("batched", [False, True])
@FORMS
def test_any_exception_of_a_handler_is_its_outcome_and_the_slot_goes_on(form, batched, error):
    def handle(message):
        if message == 1 or (batched and 1 in message):
            raise error

    async def scenario():
        call = form(handle)
        more = {"batch": call, "batch_size": 1} if batched else {}
        async with Slots(None if batched else call, **more) as slots:
            return await asyncio.gather(*slots.run_all(range(3)))

    outcomes = play(scenario())
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded]
    raised = outcomes[1].error
    # Python itself turns a StopIteration that leaves a coroutine into a RuntimeError.
    assert raised is error or raised.__cause__ is error


@FORMS
def test_any_exception_of_setup_is_raised_to_its_caller(form):
    def setup(*_):
        raise SystemExit(3)

    made = form(setup)

    async def scenario():
        async with Slots(lambda _: None, setup=lambda: made(None)) as slots:
            with pytest.raises(SystemExit):
                await slots.executor.setup()

    play(scenario())


# Context variables.

VARIABLE: ContextVar[int | None] = ContextVar("variable", default=None)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_coroutine_handler_does_not_see_the_variables_of_other_runs(count, fails):
    seen = []

    async def handle(number):
        seen.append(VARIABLE.get())
        VARIABLE.set(number)
        if fails:
            raise ValueError(number)

    async def scenario():
        async with Slots(handle, slots=count) as slots:
            await asyncio.gather(*slots.run_all(range(5)))

    play(scenario())
    assert seen == [None] * 5


@pytest.mark.parametrize("count", [1, 2])
def test_an_awaitable_sees_the_variables_of_the_function_that_returned_it(count):
    seen = []

    async def work(number):
        await asyncio.sleep(0)
        seen.append((number, VARIABLE.get()))

    def handle(number):
        VARIABLE.set(number)
        return work(number)

    async def scenario():
        async with Slots(handle, slots=count) as slots:
            await asyncio.gather(*slots.run_all(range(5)))

    play(scenario())
    assert sorted(seen) == [(number, number) for number in range(5)]


# Threads.


def test_with_one_slot_setup_handler_and_teardown_share_a_thread():
    threads = []

    def note(*_):
        threads.append(threading.current_thread())

    async def scenario():
        async with Slots(note, setup=note) as slots:
            await slots.executor.setup()
            await asyncio.gather(*slots.run_all(range(50)))
            await slots.executor.teardown()

    play(scenario())
    assert len(threads) == 52
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


def test_no_more_threads_are_made_than_work_needs():
    threads = set()

    async def scenario():
        async with Slots(lambda _: threads.add(threading.current_thread()), slots=8) as slots:
            for number in range(20):
                await slots.run(number)

    play(scenario())
    assert len(threads) == 1


def test_threads_end_when_the_executor_is_closed():
    threads = set()

    async def scenario():
        async with Slots(lambda _: threads.add(threading.current_thread()), slots=3) as slots:
            await asyncio.gather(*slots.run_all(range(30)))

    play(scenario())
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


# Batches; their fates are in test_batch.py.


@BLOCKING
def test_a_batch_that_gathers_is_taken_back_whole_and_the_next_one_begins_anew(form):
    seen: list[list[int]] = []

    async def scenario():
        call = form(lambda messages: seen.append(list(messages)))
        async with Slots(None, batch=call, batch_size=3, batch_seconds=PATIENCE * 2) as slots:
            tasks = slots.run_all(range(2))
            await turns()
            assert slots.executor.withdraw() == 2
            assert await asyncio.gather(*tasks) == [Withdrawn()] * 2
            assert await asyncio.gather(*slots.run_all([10, 11, 12])) == [Succeeded()] * 3

    play(scenario())
    assert seen == [[10, 11, 12]]


@BLOCKING
def test_full_batches_that_wait_for_a_slot_are_taken_back_as_well(form):
    async def scenario():
        seen: list[list[int]] = []
        handle, go = blocking(form, seen)
        async with Slots(None, batch=handle, batch_size=2, batch_seconds=PATIENCE * 2) as slots:
            tasks = slots.run_all(range(7))
            await until(lambda: seen)
            assert slots.executor.withdraw() == 5
            go.set()
            outcomes = await asyncio.gather(*tasks)
        assert outcomes == [Succeeded()] * 2 + [Withdrawn()] * 5
        assert [list(batch) for batch in seen] == [[0, 1]]

    play(scenario())
