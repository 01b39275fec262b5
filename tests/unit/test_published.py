# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages that a handler publishes belong to its delivery."""

import asyncio
import contextvars
import os
import threading

import pytest

from consumer_framework.adapters.executor import Executor, Limits
from consumer_framework.author.handler import Handler
from consumer_framework.author.heartbeat import CURRENT_RUN, collect, deliveries, heartbeat
from consumer_framework.core import disposition as to
from consumer_framework.core import settler
from consumer_framework.core.delivery import Failed, Published, Skipped, Succeeded
from consumer_framework.core.disposition import SETTLE_RULES, rule_for
from consumer_framework.core.errors import (
    Defer,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Retry,
    Skip,
    StoreError,
)
from consumer_framework.core.intake import Holds
from consumer_framework.core.memory import Histories, LostAcks, UnsettledRuns, source_key
from consumer_framework.core.recovery import Decision, Policy, Situation, decide
from consumer_framework.core.settler import Decided, Settler
from consumer_framework.testing import FakeAcknowledger, FakeClock, FakeObserver, make_delivery
from consumer_framework.testing.fake_store import FakeStore
from consumer_framework.testing.fakes import FakeFlightRecorder, FakeOutbox

PATIENCE = 20
DELIVERY = make_delivery()
ENDINGS = [
    (None, True),
    (Skip("not ours"), True),
    (Halt(4, "done"), True),
    (Halt(4, "done", requeue=True), False),
    (Retry("busy"), False),
    (Defer(5000), False),
    (Drop("old"), False),
    (Quarantine("odd"), False),
    (DependencyFault("the database"), False),
    (ValueError("boom"), False),
]


class Message:
    """As the outbox has it; the core reads nothing of it."""

    def __init__(self, name):
        self.id = self.topic = name


def entry(name="answer"):
    return Message(name), "spool"


def play(scenario):
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


def outcomes_of(call=None, deliveries=(DELIVERY,), *, call_batch=None, setup=None):
    """Run a handler, and return the outcomes."""

    async def scenario():
        size = len(deliveries)
        flight = FakeFlightRecorder(places=size)
        handler = Handler("test", call, setup, call_batch=call_batch)
        executor = Executor(handler, lambda d: d, flight, Limits(1, batch_size=size))
        await executor.setup()
        try:
            return await asyncio.gather(*(executor.run(one) for one in deliveries))
        finally:
            executor.close()

    return play(scenario())


def names(published):
    return [] if published is None else [message.id for message, _ in published.messages]


def plain(ending):
    def handler(_message):
        assert collect([entry("first"), entry("second")])
        if ending is not None:
            raise ending

    return handler


def coroutine(ending):
    async def handler(_message):
        assert collect([entry("first")])
        await asyncio.sleep(0)
        assert collect([entry("second")])
        if ending is not None:
            raise ending

    return handler


def begun(ending):
    """A plain handler that returns a coroutine: it begins in a thread."""

    def handler(message):
        assert collect([entry("first")])

        async def rest(_message):
            await asyncio.sleep(0)
            assert collect([entry("second")])
            if ending is not None:
                raise ending

        return rest(message)

    return handler


@pytest.mark.parametrize("kind", [plain, coroutine, begun])
@pytest.mark.parametrize(("ending", "is_published"), ENDINGS, ids=repr)
def test_an_outcome_has_the_published_messages_only_if_the_handler_is_done(
    kind, ending, is_published
):
    (outcome,) = outcomes_of(kind(ending))
    assert names(outcome.published) == (["first", "second"] if is_published else [])
    if is_published:
        assert outcome.published.deliveries == (DELIVERY,)


def test_a_run_that_publishes_nothing_has_an_outcome_without_messages():
    (outcome,) = outcomes_of(lambda _message: None)
    assert outcome == Succeeded()


def test_a_thread_with_the_handlers_context_publishes_for_its_delivery():
    async def handler(_message):
        await asyncio.to_thread(collect, [entry("thread")])
        task = asyncio.create_task(asyncio.to_thread(collect, [entry("task")]))
        assert await task

    (outcome,) = outcomes_of(handler)
    assert names(outcome.published) == ["thread", "task"]


def test_many_threads_of_one_handler_lose_none_of_its_messages():
    def handler(_message):
        def publish(number):
            for each in range(200):
                assert collect([entry(f"{number}.{each}")])

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(publish, n))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    (outcome,) = outcomes_of(handler)
    assert set(names(outcome.published)) == {f"{n}.{each}" for n in range(8) for each in range(200)}


def test_a_thread_that_outlives_the_handler_does_not_publish_for_its_delivery():
    is_over, told = threading.Event(), []

    def late():
        assert is_over.wait(PATIENCE)
        told.append(collect([entry("late")]))

    def handler(_message):
        collect([entry("in time")])
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(late,)))
        threads[0].start()

    threads: list[threading.Thread] = []
    (outcome,) = outcomes_of(handler)
    is_over.set()
    threads[0].join()
    assert told == [False]
    assert names(outcome.published) == ["in time"]


def test_nothing_is_collected_outside_a_handler_and_in_its_setup():
    told = []
    outcomes_of(lambda _message: None, setup=lambda: told.append(collect([entry()])))
    told.append(collect([entry()]))
    assert told == [False, False]


def batch_of(count):
    return tuple(make_delivery(delivery_tag=n, message_id=str(n)) for n in range(1, count + 1))


class Collecting:
    """A run that takes each message."""

    deliveries = (DELIVERY,)
    steps = None

    def delivery_of(self, _message):
        return None

    def heartbeat(self):
        raise AssertionError("the parent's run, in the child")

    def collect(self, _messages):
        return True


def test_a_process_that_the_handler_forks_stores_its_messages_by_itself():
    token = CURRENT_RUN.set(Collecting())
    try:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                heartbeat()
                status = 0 if deliveries() == (DELIVERY,) and not collect([entry()]) else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert collect([entry()])
    finally:
        CURRENT_RUN.reset(token)


def test_the_messages_of_a_batch_belong_to_all_of_its_deliveries_that_did_not_fail():
    deliveries = batch_of(3)

    def handle_batch(messages):
        collect([entry("of the batch")])
        messages.fail(messages[1], ValueError("boom"))

    first, second, third = outcomes_of(deliveries=deliveries, call_batch=handle_batch)
    assert isinstance(second, Failed)
    assert second.published is None
    assert first.published is third.published
    assert first.published.deliveries == (deliveries[0], deliveries[2])
    assert names(first.published) == ["of the batch"]


@pytest.mark.parametrize("raises", [True, False])
def test_a_batch_without_a_success_publishes_nothing(raises):
    def handle_batch(messages):
        collect([entry()])
        if raises:
            raise ValueError("boom")
        for message in messages:
            messages.fail(message, ValueError("boom"))

    outcomes = outcomes_of(deliveries=batch_of(2), call_batch=handle_batch)
    assert [outcome.published for outcome in outcomes] == [None, None]


# The table.


def test_only_a_message_that_is_done_and_acknowledged_publishes():
    assert {kind for kind, rule in SETTLE_RULES.items() if rule.publishes} == {to.Ack, to.Halt}
    assert not rule_for(to.Halt(4, requeue=True)).publishes
    assert rule_for(to.Halt(4, requeue=False)).publishes


# The settle.


class Settles:
    """A settler between fakes."""

    def __init__(self):
        self.acknowledger, self.outbox = FakeAcknowledger(), FakeOutbox()
        self.store, self.observer = FakeStore(), FakeObserver()
        self.clock = FakeClock()
        self.troubles: list[str] = []
        self.settler = Settler(
            self.acknowledger,
            self.store,
            FakeFlightRecorder(),
            self.observer,
            Holds(4, self.clock),
            Histories(),
            UnsettledRuns(self.clock),
            LostAcks(self.clock),
            store_failed=self.troubles.append,
            store_works=lambda: self.troubles.append("works"),
            done=lambda _decided, _told: None,
            clock=self.clock,
            spawn=asyncio.create_task,
            outbox=self.outbox,
        )

    def settle(self, delivery, outcome):
        run = self.settler.unsettled.begin(delivery)
        run.end(outcome)
        decision = decide(delivery, outcome, Policy(), Situation(1000.0, 0.5, may_hold=True))
        self.settler.settle(Decided(delivery, run, outcome, decision))

    async def turns(self):
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def stored(self):
        return [name for run in self.outbox.runs for name in names(run)]


def published(*deliveries):
    return Published((entry(),), deliveries or (DELIVERY,))


def test_a_message_is_acknowledged_after_its_messages_are_stored():
    async def scenario():
        path = Settles()
        path.settle(DELIVERY, Succeeded(published()))
        assert path.acknowledger.told == [], "the commit is under way"
        await path.settler.commits()
        assert path.stored == ["answer"]
        assert path.acknowledger.of(DELIVERY) == "ack"

    play(scenario())


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [(Skipped("not ours", published()), "ack"), (Failed(Halt(4), published()), "ack")],
)
def test_a_message_that_is_done_publishes_however_it_ended(outcome, answer):
    async def scenario():
        path = Settles()
        path.settle(DELIVERY, outcome)
        await path.settler.commits()
        assert (path.stored, path.acknowledger.of(DELIVERY)) == (["answer"], answer)

    play(scenario())


def test_messages_of_an_outcome_that_does_not_publish_are_not_stored():
    async def scenario():
        path = Settles()
        outcome = Failed(Quarantine("odd"), published())
        path.settle(DELIVERY, outcome)
        await path.settler.commits()
        assert (path.stored, path.acknowledger.of(DELIVERY)) == ([], "ack")

    play(scenario())


def test_a_row_of_the_store_is_removed_after_its_messages_are_stored():
    async def scenario():
        path = Settles()
        await path.store.defer(DELIVERY, 0.0)
        (row,) = path.store.due(1000.0, 1)
        path.outbox.error = StoreError("disk full")
        path.settle(row, Succeeded(published(row)))
        await path.turns()
        assert len(path.store.due(1000.0, 1)) == 1
        path.outbox.error = None
        path.clock.advance(settler.COMMIT_RETRY)
        await path.turns()
        assert (path.stored, path.store.due(1000.0, 1)) == (["answer"], [])

    play(scenario())


def test_nothing_is_acknowledged_while_the_outbox_takes_nothing():
    async def scenario():
        path = Settles()
        path.outbox.error = StoreError("the outbox: disk full")
        path.settle(DELIVERY, Succeeded(published()))
        await path.turns()
        assert (path.troubles, path.acknowledger.told) == (["the outbox: disk full"], [])
        path.outbox.error = None
        path.clock.advance(settler.COMMIT_RETRY)
        await path.turns()
        assert path.troubles[-1] == "works"
        assert (path.stored, path.acknowledger.of(DELIVERY)) == (["answer"], "ack")

    play(scenario())


def test_a_drain_gives_the_message_back_if_the_outbox_takes_nothing():
    async def scenario():
        path = Settles()
        path.outbox.error = StoreError("disk full")
        path.settle(DELIVERY, Succeeded(published()))
        await path.turns()
        await path.settler.commits()
        assert (path.stored, path.acknowledger.of(DELIVERY)) == ([], "give_back")

    play(scenario())


class HangingOutbox(FakeOutbox):
    """An outbox whose database does not answer."""

    def store(self, _published):
        return asyncio.get_running_loop().create_future()


def test_a_drain_gives_the_message_back_if_another_one_failed_and_the_outbox_hangs():
    async def scenario():
        path = Settles()
        path.outbox.error = StoreError("disk full")
        path.settle(DELIVERY, Succeeded(published()))
        await path.turns()
        other = make_delivery(delivery_tag=2, message_id="2")
        path.settler.outbox = HangingOutbox()
        path.settle(other, Succeeded(published(other)))
        await path.settler.commits()
        assert path.acknowledger.of(DELIVERY) == path.acknowledger.of(other) == "give_back"

    play(scenario())


def test_nothing_is_stored_for_a_channel_that_is_gone():
    async def scenario():
        path = Settles()
        path.acknowledger.close(DELIVERY.generation)
        path.settle(DELIVERY, Succeeded(published()))
        await path.settler.commits()
        assert (path.stored, path.acknowledger.told) == ([], [])

    play(scenario())


def test_a_defect_in_the_settle_after_the_messages_are_stored_is_told():
    async def scenario():
        path = Settles()
        told: list[asyncio.Task[None]] = []

        def fail(_decided, _told):
            raise ZeroDivisionError

        path.settler.watch = told.append
        path.settler.done = fail
        path.settle(DELIVERY, Succeeded(published()))
        await path.settler.commits()
        (task,) = told
        assert isinstance(task.exception(), ZeroDivisionError)
        assert path.stored == ["answer"]

    play(scenario())


def test_a_redelivery_that_is_settled_with_an_earlier_run_stores_its_messages_once():
    async def scenario():
        path = Settles()
        outcome = Succeeded(published())
        path.settle(DELIVERY, outcome)
        await asyncio.sleep(0)
        assert path.stored == [], "the write has begun"
        path.acknowledger.close(DELIVERY.generation)
        await path.settler.commits()
        assert path.stored == ["answer"]
        again = make_delivery(generation=path.acknowledger.open(), redelivered=True)
        run = path.settler.unsettled.claim(again)
        assert run is not None
        assert run.outcome is outcome
        decision = Decision(to.Ack(), again.history)
        path.settler.settle(Decided(again, run, outcome, decision))
        await path.settler.commits()
        assert (path.stored, path.acknowledger.of(again)) == (["answer"], "ack")

    play(scenario())


def test_a_message_that_ran_again_after_a_crash_stores_its_messages_once():
    async def scenario():
        path = Settles()
        path.settle(DELIVERY, Succeeded(published()))
        await path.settler.commits()
        later = Settles()
        later.settler.outbox = path.outbox
        again = make_delivery(redelivered=True)
        later.settle(again, Succeeded(published(again)))
        await later.settler.commits()
        assert (path.stored, later.acknowledger.of(again)) == (["answer"], "ack")

    play(scenario())


@pytest.mark.parametrize(
    "change",
    [
        {"message_id": "2"},
        {"body": b"{}x"},
        {"queue": "other"},
        {"routing_key": "other"},
        {"row": 7},
    ],
)
def test_the_source_of_other_messages_is_another_one(change):
    assert source_key(DELIVERY) == source_key(make_delivery(redelivered=True, generation=9))
    assert source_key(make_delivery(**change)) != source_key(DELIVERY)


def test_a_message_without_an_id_is_no_known_source_unless_it_is_a_row():
    assert source_key(make_delivery(message_id=None)) == ""
    assert source_key(make_delivery(message_id=None, row=3)) != ""
