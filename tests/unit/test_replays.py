# SPDX-License-Identifier: GPL-2.0-or-later
"""Replays in stages, and orders on messages that fit conditions, where they meet other events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.memory import NoStore
from consumer_framework.core.disposition import Ack, GiveBack, Halt, Quarantine
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.requests import Responder
from consumer_framework.runtime.control.routes import Refusal
from consumer_framework.testing import make_delivery


def message(number, topic="org.build"):
    return make_delivery(
        message_id=str(number), routing_key=topic, body=json.dumps({"n": number}).encode()
    )


class Bench:
    """Runs rows at once; those in *broken* fail."""

    def __init__(self, store):
        self.store = store
        self.broken = set()
        self.given_back = set()
        self.halts = set()
        self.begun = []
        self.before = lambda _row: None
        self.responder = Responder(store, self.run)

    async def run(self, delivery):
        self.before(delivery.row)
        if delivery.row in self.given_back:
            return GiveBack()
        self.begun.append(delivery.row)
        if delivery.row in self.halts:
            return Halt(3, requeue=True, reason="enough")
        if delivery.row in self.broken:
            await self.store.quarantine(delivery, "still broken")
            return Quarantine("still broken")
        await self.store.remove(delivery.row)
        return Ack()

    async def asks(self, request):
        """Have *request* carried out; return its answers as they go over the socket."""
        return [json.loads(schema.encode_answer(a)) async for a in self.responder.respond(request)]

    async def ends(self, request):
        """Have a replay carried out; return the last answer."""
        return (await self.asks(request))[-1]

    @property
    def left(self):
        return [row.id for row in self.store.rows()]


@pytest.fixture
def play(tmp_path):
    """Return a function that plays a scenario on a store with quarantined messages."""

    def play(scenario, count=0):
        async def run():
            with contextlib.closing(Store.open(tmp_path, limits=Limits())) as store:
                writes = (store.quarantine(message(number), "poison") for number in range(count))
                await asyncio.gather(*writes)
                await scenario(Bench(store))

        asyncio.run(asyncio.wait_for(run(), 60))

    return play


def ramp(*rows, **more):
    return schema.Replay(rows=rows or tuple(range(1, 21)), ramp=(5.0, 25.0, 100.0), **more)


def test_a_replay_in_stages_announces_each_and_forgets_itself_at_its_end(play):
    async def scenario(bench):
        answers = await bench.asks(ramp())
        stages = [answer for answer in answers if "stage" in answer]
        assert stages == [
            {"stage": 1, "stages": 3, "percent": 5.0, "rows": 1},
            {"stage": 2, "stages": 3, "percent": 25.0, "rows": 4},
            {"stage": 3, "stages": 3, "percent": 100.0, "rows": 15},
        ]
        assert answers[0] == stages[0]
        assert answers[-1] == {"ended": "done", "reason": "", "left": 0}
        assert bench.begun == list(range(1, 21))
        assert bench.left == []
        assert bench.store.ramp() is None
        with pytest.raises(Refusal, match="no replay in stages to go on with") as caught:
            await bench.asks(schema.ShowReplay())
        assert caught.value.status == 404

    play(scenario, 20)


def test_a_stage_with_too_many_failures_stops_the_replay_and_it_goes_on_when_told(play):
    async def scenario(bench):
        bench.broken = {3, 4, 5}
        end = await bench.ends(ramp(stop_at=50.0))
        reason = "2 of 4 in stage 2 of 3 failed; the limit is 50%"
        assert end == {"ended": "stopped", "reason": reason, "left": 16}
        assert bench.begun == [1, 2, 3, 4]
        [report] = await bench.asks(schema.ShowReplay())
        assert report.pop("started") > 0
        assert report == {
            "rows": 20,
            "ran": 4,
            "succeeded": 2,
            "failed": 2,
            "ramp": [5.0, 25.0, 100.0],
            "rate": None,
            "stop_at": 50.0,
            "running": False,
        }
        bench.broken = set()
        answers = await bench.asks(schema.Replay(resume=True))
        assert answers[:2] == [
            {"selected": 16},
            {"stage": 2, "stages": 3, "percent": 25.0, "rows": 1},
        ]
        assert answers[-1] == {"ended": "done", "reason": "", "left": 0}
        assert bench.left == [3, 4], "those that failed wait for an operator"
        assert bench.begun == list(range(1, 21))

    play(scenario, 20)


def test_a_replay_that_stops_in_its_middle_leaves_nothing_claimed(play):
    async def scenario(bench):
        bench.broken = {1}
        await bench.ends(ramp(stop_at=0.0))
        assert bench.left == list(range(1, 21))

    play(scenario, 20)


@pytest.mark.parametrize(
    ("kind", "reason", "again"),
    [("given_back", "the instance stops or pauses", True), ("halts", "enough", False)],
)
def test_an_instance_that_stops_pauses_or_halts_interrupts_the_replay(play, kind, reason, again):
    async def scenario(bench):
        setattr(bench, kind, {7})
        end = await bench.ends(ramp())
        assert end == {"ended": "interrupted", "reason": reason, "left": 14 if again else 13}
        assert bench.left == list(range(7, 21))
        setattr(bench, kind, set())
        bench.begun.clear()
        assert (await bench.ends(schema.Replay(resume=True)))["ended"] == "done"
        assert bench.begun == list(range(7 if again else 8, 21))

    play(scenario, 20)


def test_a_replay_goes_on_after_its_process_died_and_no_message_is_left_out(play, tmp_path):
    class DiedError(BaseException):
        pass

    async def dies(bench):
        def die(row):
            if row == 6:
                # What a process that is killed leaves: a claimed row, and no result of it.
                raise DiedError

        bench.before = die
        bench.store.release = forgets
        with pytest.raises(DiedError):
            await bench.asks(ramp())

    async def forgets(_row):
        return True

    async def goes_on(bench):
        assert bench.store.row(6).state == "quarantined"
        stored = bench.store.ramp()
        assert (stored.progress.position, len(stored.rows)) == (5, 20)
        assert (await bench.ends(schema.Replay(resume=True)))["ended"] == "done"
        assert bench.begun == list(range(6, 21))
        assert bench.left == []

    play(dies, 20)
    play(goes_on)


class DiedError(BaseException):
    """The process ends here."""


class Mortal(Bench):
    """Has an event happen at the first run of each row; later runs succeed."""

    def __init__(self, store, events, happened, ran):
        super().__init__(store)
        self.events = events
        self.happened = happened
        self.ran = ran
        self.responder = Responder(store, self.live)
        if any(event.startswith("dies") for event in events):
            # What a process that is killed leaves: a claimed row, and no result of it.
            store.release = self.forgets

    async def forgets(self, _row):
        return True

    async def live(self, delivery):
        row = delivery.row
        event = "succeeds" if row in self.happened else self.events[row - 1]
        self.happened.add(row)
        if event == "dies before":
            raise DiedError
        if event == "is given back":
            return GiveBack()
        self.ran.append(row)
        self.broken = {row} if event == "fails" else set()
        disposition = await self.run(delivery)
        if event == "dies after":
            raise DiedError
        return disposition


EVENTS = st.sampled_from(["succeeds", "fails", "is given back", "dies before", "dies after"])


@settings(max_examples=12, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=12), st.sampled_from([None, 0.0, 50.0]))
def test_whatever_interrupts_a_replay_each_message_runs_once_and_none_is_lost(events, limit):
    happened: set[int] = set()
    ran: list[int] = []

    async def process(directory, request):
        with contextlib.closing(Store.open(directory, limits=Limits())) as store:
            try:
                return await Mortal(store, events, happened, ran).ends(request)
            except DiedError:
                return {"ended": "died"}

    async def scenario(directory):
        with contextlib.closing(Store.open(directory, limits=Limits())) as store:
            for number in range(len(events)):
                await store.quarantine(message(number), "poison")
        request = schema.Replay(everything=True, ramp=(30.0, 100.0), stop_at=limit)
        while (await process(directory, request))["ended"] != "done":
            request = schema.Replay(resume=True)
        with contextlib.closing(Store.open(directory, limits=Limits())) as store:
            left = [row.id for row in store.rows(state=None)]
        assert left == [row for row, event in enumerate(events, 1) if event == "fails"]
        assert ran == list(range(1, len(events) + 1))

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(asyncio.wait_for(scenario(Path(name)), 60))


def test_a_message_whose_result_was_not_written_is_skipped_as_gone(play):
    async def scenario(bench):
        bench.given_back = {5}
        await bench.ends(ramp())
        # It succeeded, and its process died before it wrote that.
        await bench.store.remove(5)
        bench.given_back = set()
        answers = await bench.asks(schema.Replay(resume=True))
        gone = {"row": 5, "result": "skipped", "reason": "not, or no longer, there"}
        assert gone in answers
        assert answers[-1]["ended"] == "done"
        assert bench.left == []

    play(scenario, 20)


def test_a_command_that_goes_away_ends_the_replay_after_its_message(play):
    async def scenario(bench):
        seen = asyncio.Event()
        bench.before = lambda row: seen.set() if row == 3 else None

        async def command():
            async with contextlib.aclosing(bench.responder.replay(ramp(rate="20/s"))) as answers:
                async for _ in answers:
                    pass

        task = asyncio.create_task(command())
        await seen.wait()
        task.cancel()
        await asyncio.wait([task])
        await bench.responder.finish()
        assert bench.begun == [1, 2, 3]
        assert bench.store.ramp().progress.position == 3
        assert bench.left == list(range(4, 21))

    play(scenario, 20)


def test_a_replay_that_waits_for_its_rate_ends_at_once_when_it_is_told(play):
    async def scenario(bench):
        answers = []

        async def command():
            async for answer in bench.responder.replay(schema.Replay(rows=(1, 2), rate="1/h")):
                answers.append(answer)  # noqa: PERF401 -- read meanwhile

        task = asyncio.create_task(command())
        async with asyncio.timeout(30):
            while bench.begun != [1] or bench.store.row(1):  # noqa: ASYNC110 -- a thread writes
                await asyncio.sleep(0.001)
        bench.responder.stop_replays()
        await asyncio.wait_for(task, 30)
        assert bench.begun == [1]
        assert answers[-1] == schema.RampEnded("interrupted", "nobody watches it any more", 1)

    play(scenario, 2)


def test_another_replay_waits_for_its_turn_and_a_new_one_in_stages_replaces_the_former(play):
    async def scenario(bench):
        bench.given_back = {2}
        await bench.ends(ramp())
        bench.given_back = set()
        seen = asyncio.Event()
        bench.before = lambda _row: seen.set()
        task = asyncio.create_task(bench.asks(ramp(5, 6, rate="5/s")))
        await seen.wait()
        second = await bench.asks(schema.Replay(rows=(7,)))
        first = await task
        assert first[-1]["ended"] == "done"
        assert second[0] == {"step": "waiting for the replay that is under way"}
        assert bench.begun == [1, 5, 6, 7]
        with pytest.raises(schema.ConflictError, match="no replay in stages to go on with"):
            await bench.asks(schema.Replay(resume=True))

    play(scenario, 20)


def test_messages_that_come_later_are_not_part_of_the_replay(play):
    async def scenario(bench):
        bench.given_back = {2}
        selected = schema.Replay(where=("topic=org.build",), ramp=(100.0,))
        assert (await bench.asks(selected))[0] == {"selected": 3}
        await bench.store.quarantine(message(99), "poison")
        bench.given_back = set()
        await bench.ends(schema.Replay(resume=True))
        assert bench.left == [4]

    play(scenario, 3)


def test_the_rows_of_a_request_may_be_those_that_fit_conditions(play):
    async def scenario(bench):
        await bench.store.quarantine(message(50, "org.other"), "poison")
        answers = await bench.asks(schema.Replay(where=("body.n>=2", "topic=org.build")))
        assert answers[0] == {"selected": 2}
        assert bench.begun == [3, 4]
        await bench.asks(schema.Replay(everything=True, first=1))
        assert bench.begun == [3, 4, 1]
        [dropped] = await bench.asks(schema.Drop(where=("topic~other$",), expect=1))
        assert dropped == {"dropped": [5]}
        assert bench.left == [2]
        assert await bench.asks(schema.Drop(where=("id=none",))) == [{"dropped": []}]

    play(scenario, 4)


def test_lists_and_causes_may_be_of_the_messages_that_fit_conditions(play):
    async def scenario(bench):
        await bench.store.quarantine(message(50, "org.other"), "another cause")
        [listed] = await bench.asks(schema.Quarantine(where=("body.n>=1",), limit=2))
        assert [row["id"] for row in listed["rows"]] == [2, 3]
        assert listed["next"] == 3
        [causes] = await bench.asks(schema.Causes(where=("topic=org.build", "body.n<2")))
        assert [(cause["fingerprint"], cause["count"]) for cause in causes["causes"]] == [
            ("poison", 2)
        ]
        with pytest.raises(schema.ProtocolError, match="no regular expression"):
            await bench.asks(schema.Causes(where=("topic~[",)))

    play(scenario, 3)


@pytest.mark.parametrize("kind", [schema.Drop, schema.Replay])
def test_a_request_on_another_number_of_rows_than_expected_changes_nothing(play, kind):
    async def scenario(bench):
        told = "the rows are 3 now, not 2; look again, nothing was done"
        with pytest.raises(schema.ConflictError, match=f"^{told}$"):
            await bench.asks(kind(everything=True, expect=2))
        assert bench.left == [1, 2, 3]
        assert bench.begun == []

    play(scenario, 3)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (schema.Drop(), "say which rows"),
        (schema.Drop(rows=(1,), everything=True), "say which rows"),
        (schema.Replay(where=("build=1",)), "write body.build for a key of the body"),
        (schema.Replay(rows=(1,), ramp=(5.0, 1.0)), "greater than the one before"),
        (schema.Replay(rows=(1,), rate="fast"), "must be a rate"),
        (schema.Replay(rows=(1,), stop_at=101.0), "from 0 to 100"),
        (schema.Replay(rows=(1,), resume=True), "send nothing but resume"),
        (schema.Replay(rate="1/s", resume=True), "send nothing but resume"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_changes_nothing(play, request_, told):
    async def scenario(bench):
        with pytest.raises(schema.ProtocolError, match=told):
            await bench.asks(request_)
        assert bench.left == [1]
        assert bench.store.ramp() is None

    play(scenario, 1)


def test_many_rows_are_dropped_and_each_is_named_in_the_log(play, caplog):
    caplog.set_level("INFO")

    async def scenario(bench):
        [dropped] = await bench.asks(schema.Drop(everything=True))
        assert dropped["dropped"] == list(range(1, 121))
        assert bench.left == []

    play(scenario, 120)
    assert sum("dropped by " in text for text in caplog.messages) == 120


def test_a_long_read_is_made_beside_the_event_loop(play):
    async def scenario(bench):
        thread = await bench.store.read_aside(lambda _reader: threading.get_ident())
        assert thread != threading.get_ident()

    play(scenario)


def test_an_instance_without_a_store_has_nothing_to_select():
    async def selected():
        return await NoStore().read_aside(lambda reader: reader.matching((), 0))

    assert asyncio.run(selected()) == []


def test_an_instance_without_a_store_answers_a_replay_in_stages():
    async def scenario():
        return await Bench(NoStore()).asks(ramp(1, 2))

    answers = asyncio.run(scenario())
    assert [each["result"] for each in answers if "row" in each] == ["skipped", "skipped"]
    assert answers[-1]["ended"] == "done"


def test_a_replay_whose_client_is_told_of_its_failure_is_no_error_in_the_log(play, caplog):
    async def scenario(bench):
        with pytest.raises(schema.ConflictError, match="look again"):
            await bench.asks(schema.Replay(everything=True, expect=7))
        await bench.responder.finish()
        await asyncio.sleep(0)

    play(scenario, 2)
    assert caplog.records == []


def test_a_replay_that_nobody_waits_for_any_more_does_not_replace_the_one_that_can_go_on(play):
    async def scenario(bench):
        begun, goes_on = asyncio.Event(), asyncio.Event()

        async def slow(delivery):
            begun.set()
            await goes_on.wait()
            return await bench.run(delivery)

        bench.responder = Responder(bench.store, slow)
        first = asyncio.create_task(bench.asks(ramp(1, 2, 3)))
        await begun.wait()
        async with contextlib.aclosing(bench.responder.respond(ramp(5, 6))) as second:
            assert "waiting" in (await anext(second)).step
        bench.responder.stop_replays()
        goes_on.set()
        assert (await first)[-1]["ended"] == "interrupted"
        await bench.responder.finish()
        assert bench.store.ramp().rows == (1, 2, 3)

    play(scenario, 20)
