# SPDX-License-Identifier: GPL-2.0-or-later
"""The gate of an instance: its table, the entries that reasons shut, and their meetings."""

import asyncio
from itertools import product

import pytest
from fedora_messaging.message import Message

from consumer_framework import DependencyFault, Quarantine
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.errors import StoreError
from consumer_framework.core.gate import (
    SHUTS,
    TABLE,
    Gate,
    GateEntry,
    GateEvent,
    GateState,
    IllegalGateEventError,
    Reason,
)
from consumer_framework.core.intake import Intake
from consumer_framework.testing import Harness, make_delivery


def entries(gate):
    """Return the entries that *gate* leaves open."""
    found = GateEntry(0)
    for may, entry in (
        (gate.may_consume, GateEntry.CONSUME),
        (gate.may_recall, GateEntry.RECALL),
        (gate.may_begin, GateEntry.BEGIN),
    ):
        found |= entry if may else GateEntry(0)
    return found


ALL = GateEntry.CONSUME | GateEntry.RECALL | GateEntry.BEGIN


def in_state(state):
    gate = Gate()
    if state is GateState.SUSPENDED:
        gate.suspend(Reason.STORE)
    elif state is GateState.CLOSED:
        gate.close()
    return gate


def happen(gate, event):
    if event is GateEvent.SUSPEND:
        gate.suspend(Reason.STORE)
    elif event is GateEvent.RESUME:
        gate.resume(Reason.STORE)
    else:
        gate.close()


@pytest.mark.parametrize(("state", "event"), list(product(GateState, GateEvent)))
def test_the_gate_keeps_to_its_table_and_refuses_everything_else(state, event):
    gate = in_state(state)
    if state is GateState.CLOSED and event is GateEvent.RESUME:
        gate.suspend(Reason.STORE)
    if (state, event) in TABLE:
        happen(gate, event)
        assert gate.state is TABLE[state, event]
    else:
        with pytest.raises(IllegalGateEventError):
            happen(gate, event)
        assert gate.state is state


def test_a_new_gate_is_open_and_lets_everything_in():
    gate = Gate()
    assert gate.state is GateState.OPEN
    assert entries(gate) == ALL
    assert gate.why_not_consuming == ""


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_shuts_its_entries_and_no_others(reason):
    gate = Gate()
    gate.suspend(reason, "why")
    assert gate.state is GateState.SUSPENDED
    assert entries(gate) == ALL & ~SHUTS[reason]
    gate.resume(reason)
    assert gate.state is GateState.OPEN
    assert entries(gate) == ALL


@pytest.mark.parametrize(("first", "second"), list(product(Reason, Reason)))
def test_an_entry_opens_again_when_the_last_reason_that_shuts_it_is_gone(first, second):
    gate = Gate()
    gate.suspend(first, "first")
    gate.suspend(second, "second")
    gate.resume(first)
    if first is second:
        assert gate.state is GateState.OPEN
        return
    assert gate.state is GateState.SUSPENDED
    assert entries(gate) == ALL & ~SHUTS[second]
    gate.resume(second)
    assert gate.state is GateState.OPEN


def test_the_text_names_the_reasons_for_which_nothing_is_consumed():
    gate = Gate()
    gate.suspend(Reason.RECONNECTION)
    assert gate.why_not_consuming == ""
    gate.suspend(Reason.DEPENDENCY, "no database")
    gate.suspend(Reason.STORE, "no space")
    assert gate.why_not_consuming == "no database; no space"
    gate.suspend(Reason.DEPENDENCY, "still no database")
    assert gate.why_not_consuming == "still no database; no space"
    gate.resume(Reason.DEPENDENCY)
    assert gate.why_not_consuming == "no space"


@pytest.mark.parametrize("state", GateState)
def test_a_reason_that_does_not_stand_cannot_end(state):
    with pytest.raises(IllegalGateEventError, match="nothing is suspended for ORDER"):
        in_state(state).resume(Reason.ORDER)


def test_a_closed_gate_stays_closed_whatever_reasons_end():
    gate = Gate()
    gate.suspend(Reason.RECONNECTION)
    gate.close()
    assert gate.is_closed
    gate.suspend(Reason.STORE, "no space")
    gate.resume(Reason.RECONNECTION)
    assert gate.why_not_consuming == "no space"
    gate.resume(Reason.STORE)
    assert gate.state is GateState.CLOSED
    assert entries(gate) == GateEntry(0)


def test_listeners_hear_of_each_event_in_order_and_see_the_gate_as_it_is():
    gate, heard = Gate(), []
    gate.listen(lambda event, reason: heard.append((1, event, reason, gate.may_consume)))
    gate.listen(lambda event, reason: heard.append((2, event, reason, gate.may_consume)))
    gate.suspend(Reason.ORDER)
    gate.resume(Reason.ORDER)
    gate.close()
    assert heard == [
        (1, GateEvent.SUSPEND, Reason.ORDER, False),
        (2, GateEvent.SUSPEND, Reason.ORDER, False),
        (1, GateEvent.RESUME, Reason.ORDER, True),
        (2, GateEvent.RESUME, Reason.ORDER, True),
        (1, GateEvent.CLOSE, None, False),
        (2, GateEvent.CLOSE, None, False),
    ]


# Its meetings, in an intake and with everything around it.


def test_a_probe_waits_for_the_end_of_a_reconnection_and_not_for_the_end_of_the_pause():
    async def scenario():
        gate = Gate()
        intake = Intake(SystemClock(), gate=gate)
        gate.suspend(Reason.DEPENDENCY, "no database")
        gate.suspend(Reason.RECONNECTION)
        slot = asyncio.create_task(intake.take())
        intake.put_first(make_delivery())
        await asyncio.sleep(0)
        assert not slot.done()
        gate.resume(Reason.RECONNECTION)
        assert await asyncio.wait_for(slot, 5) == make_delivery()
        assert gate.state is GateState.SUSPENDED

    asyncio.run(scenario())


def test_a_stop_ends_the_wait_of_a_slot_whatever_suspends_the_gate():
    async def scenario():
        gate = Gate()
        intake = Intake(SystemClock(), gate=gate)
        gate.suspend(Reason.RECONNECTION)
        slot = asyncio.create_task(intake.take())
        await asyncio.sleep(0)
        gate.close()
        assert await asyncio.wait_for(slot, 5) is None
        gate.resume(Reason.RECONNECTION)
        assert await asyncio.wait_for(intake.take(), 5) is None

    asyncio.run(scenario())


def message(n=1):
    return Message(topic="org.example.test", body={"n": n})


BREAKER = {"recovery": {"breaker": {"consecutive": 1, "probe": ["30s"]}}}


def test_a_store_that_fails_while_the_dependency_is_broken_keeps_the_instance_paused():
    faults = [DependencyFault("the database is gone")]

    async def handle(message):
        await asyncio.sleep(1 / message.body["n"])
        if message.body["n"] == 2:
            raise Quarantine("poison")
        if faults:
            raise faults.pop()

    with Harness(handle, settings={"slots": 2, **BREAKER}) as harness:
        first, second = message(1), message(2)
        harness.store.error = StoreError("no space left on device")
        harness.deliver(first)
        harness.deliver(second)
        harness.advance(2)
        assert "the database is gone" in harness.paused
        assert "no space left on device" in harness.paused
        harness.advance(31)
        assert harness.acked == [first]
        assert harness.paused == "no space left on device"
        harness.store.error = None
        harness.advance(10)
        assert harness.paused == ""
        assert harness.quarantined == [second]
