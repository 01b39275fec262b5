# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests to replay and to drop rows, also of commands that go away meanwhile."""

import asyncio
import contextlib
import json

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.core.disposition import Ack, GiveBack, Halt
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.operators import ORDERED_BY, Operator
from consumer_framework.runtime.control.requests import Responder
from consumer_framework.runtime.control.routes import Refusal
from consumer_framework.testing import make_delivery


class Bench:
    """Runs rows, each until the test ends it."""

    def __init__(self, store):
        self.store = store
        self.running = {}
        self.begun = []
        self.dropped: list[int] = []
        self.responder = Responder(store, self.run, self.dropped.extend)

    async def run(self, delivery):
        self.begun.append(delivery.row)
        end = self.running[delivery.row] = asyncio.get_running_loop().create_future()
        disposition = await end
        del self.running[delivery.row]
        if disposition == Ack():
            await self.store.remove(delivery.row)
        return disposition

    def replay(self, *rows):
        """Request a replay; returns the command's task, and the answers that it got, as JSON."""
        answers = []

        async def command():
            async with contextlib.aclosing(self.responder.replay(schema.Replay(rows))) as given:
                async for answer in given:
                    # Appended one by one: the test reads them meanwhile.
                    answers.append(json.loads(schema.encode_answer(answer)))  # noqa: PERF401

        return asyncio.create_task(command()), answers

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 -- the store writes in a thread
                await asyncio.sleep(0.001)

    async def end(self, row, disposition=Ack()):  # noqa: B008
        await self.until(lambda: row in self.running)
        self.running[row].set_result(disposition)

    @property
    def states(self):
        return {row.id: row.state for row in self.store.rows(state=None)}


@pytest.fixture
def play(tmp_path):
    def play(scenario, count=2, lanes=("", "")):
        async def run():
            with contextlib.closing(Store.open(tmp_path, limits=Limits())) as store:
                for number, lane in zip(range(count), lanes, strict=True):
                    delivery = make_delivery(message_id=str(number), lane=lane)
                    await store.quarantine(delivery, "poison")
                bench = Bench(store)
                await scenario(bench)

        asyncio.run(asyncio.wait_for(run(), 30))

    return play


def test_a_row_whose_command_goes_away_runs_to_its_end_and_the_next_rows_stay(play):
    async def scenario(bench):
        command, _ = bench.replay(1, 2)
        await bench.until(lambda: bench.running)
        command.cancel()
        await asyncio.wait([command])
        assert bench.states == {1: "replaying", 2: "quarantined"}, "nobody else may have it"
        await bench.end(1)
        await bench.responder.finish()
        assert bench.states == {2: "quarantined"}
        assert bench.begun == [1]

    play(scenario)


def test_a_command_that_goes_away_while_a_row_is_claimed_leaves_no_claim(play):
    async def scenario(bench):
        command, _ = bench.replay(1)
        await asyncio.sleep(0)
        command.cancel()
        await asyncio.wait([command])
        await bench.until(lambda: bench.running or bench.responder.is_idle)
        if bench.running:
            await bench.end(1, GiveBack())
        await bench.responder.finish()
        assert bench.states == {1: "quarantined", 2: "quarantined"}

    play(scenario)


@pytest.mark.parametrize("lanes", [("", ""), ("a key", "a key")])
def test_replays_do_not_overlap(play, lanes):
    async def scenario(bench):
        first, _ = bench.replay(1)
        await bench.until(lambda: bench.running)
        first.cancel()
        second, answers = bench.replay(2, 1)
        await bench.until(lambda: answers)
        await asyncio.sleep(0.05)
        assert list(bench.running) == [1]
        await bench.end(1)
        await bench.end(2)
        await second
        gone = {"row": 1, "result": "skipped", "reason": "not, or no longer, there"}
        done = {"row": 2, "result": "succeeded", "reason": ""}
        waiting, *others = answers
        assert waiting == {"step": "waiting for the replay that is under way"}
        assert [a for a in others if "begun" not in a] in ([gone, done], [done, gone])

    play(scenario, lanes=lanes)


@pytest.mark.parametrize(
    ("disposition", "answer"),
    [
        (
            GiveBack(),
            {"row": 1, "result": "skipped", "reason": "the instance stops or pauses"},
        ),
        (Halt(3, requeue=True, reason="enough"), {"row": 1, "result": "halt", "reason": "enough"}),
    ],
)
def test_where_the_instance_stops_or_pauses_rows_go_back_to_quarantine_and_it_is_said(
    play, disposition, answer
):
    async def scenario(bench):
        command, answers = bench.replay(1, 2)
        await bench.end(1, disposition)
        await command
        assert answers == [{"begun": 1}, answer]
        assert bench.states == {1: "quarantined", 2: "quarantined"}

    play(scenario)


def test_an_error_in_a_replay_is_reported_to_its_command(play):
    async def scenario(bench):
        command, _ = bench.replay(1)
        await bench.until(lambda: bench.running)
        bench.running[1].set_exception(RuntimeError("a defect"))
        with pytest.raises(RuntimeError, match="a defect"):
            await command
        assert bench.states == {1: "quarantined", 2: "quarantined"}

    play(scenario)


def test_an_error_in_a_replay_whose_command_is_gone_is_logged(play, caplog):
    async def scenario(bench):
        command, _ = bench.replay(1)
        await bench.until(lambda: bench.running)
        command.cancel()
        await asyncio.wait([command])
        bench.running[1].set_exception(RuntimeError("a defect"))
        await bench.responder.finish()
        assert "a replay that nobody waits for has failed" in caplog.text

    play(scenario)


def test_a_replay_that_is_to_stop_ends_after_the_row_that_runs(play):
    async def scenario(bench):
        command, answers = bench.replay(1, 2)
        await bench.until(lambda: bench.running)
        bench.responder.stop_replays()
        await bench.end(1)
        await command
        assert answers == [{"begun": 1}, {"row": 1, "result": "succeeded", "reason": ""}]

    play(scenario)


def test_a_replay_that_is_given_up_leaves_its_rows_in_quarantine(play):
    async def scenario(bench):
        command, _ = bench.replay(1, 2)
        await bench.until(lambda: bench.running)
        bench.responder.cancel()
        await bench.responder.finish()
        assert bench.states == {1: "quarantined", 2: "quarantined"}
        await asyncio.wait([command])

    play(scenario)


def test_a_row_in_a_replay_is_not_dropped(play):
    async def scenario(bench):
        command, _ = bench.replay(1)
        await bench.until(lambda: bench.running)
        answers = [answer async for answer in bench.responder.drop(schema.Drop((1, 2)))]
        assert answers == [schema.Dropped((2,))]
        assert bench.dropped == [2]
        await bench.end(1)
        await command

    play(scenario)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_edited_body_takes_only_the_numbers_of_json(play, number):
    async def script(bench):
        with pytest.raises(Refusal, match="body: ") as refused:
            _ = [answer async for answer in bench.responder.edit(schema.Edit(2, {"n": number}))]
        assert refused.value.status == 400
        assert set(bench.states.values()) == {"quarantined"}

    play(script)


def test_a_row_names_the_operator_of_its_last_order(play):
    async def script(bench):
        ORDERED_BY.set(Operator(0, 42, "hazel"))
        task, _ = bench.replay(1)
        await bench.end(1, GiveBack())
        await task
        row = bench.store.row(1)
        assert row.ordered_by.startswith("replay by hazel (uid 0, pid 42) at 2")
        assert row.ordered_by.endswith(" UTC")
        assert bench.store.row(2).ordered_by == ""
        (edited,) = [answer async for answer in bench.responder.edit(schema.Edit(2, {"n": 1}))]
        for number in (2, edited.row):
            assert bench.store.row(number).ordered_by.startswith("edit by hazel")

    play(script)
