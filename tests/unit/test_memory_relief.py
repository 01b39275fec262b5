# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory pressure: its signs, and the lower slots and prefetch that follow."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock as ReactorClock

from consumer_framework.adapters.systemd import cgroup
from consumer_framework.adapters.systemd.cgroup import PressureWatch
from consumer_framework.author.handler import Handler
from consumer_framework.core.gate import Gate
from consumer_framework.core.limits import (
    CALM,
    LONGEST_CALM,
    STEP,
    UNLIMITED,
    Capacity,
    CapacityReduction,
)
from consumer_framework.core.recovery import Policy
from consumer_framework.runtime.assembly.plan import Plan
from consumer_framework.runtime.memory_relief import MemoryRelief
from consumer_framework.settings import Framework

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20
FULL = Capacity(slots=8, prefetch_count=100)

capacities = st.builds(Capacity, st.integers(1, 64), st.integers(0, 65535))


# How much less.


def test_each_step_halves_the_slots_and_the_prefetched_messages():
    assert FULL.halved(0) == FULL
    assert FULL.halved(1) == Capacity(4, 50)
    assert FULL.halved(3) == Capacity(1, 12)
    assert FULL.halved(10) == Capacity(1, 1)


def test_an_unlimited_prefetch_gets_a_limit():
    assert Capacity(2, 0).halved(1) == Capacity(1, UNLIMITED // 2)


@given(capacities, st.integers(1, 20))
def test_a_halved_capacity_is_positive_and_never_larger(full, times):
    now = full.halved(times)
    assert 1 <= now.slots <= full.slots
    # 0 would be no limit.
    assert 1 <= now.prefetch_count <= (full.prefetch_count or UNLIMITED)


# When.


@pytest.fixture
def squeeze() -> CapacityReduction:
    return CapacityReduction()


def test_pressure_halves_at_most_once_in_a_step(squeeze):
    assert squeeze.press(FULL, 100.0)
    assert not squeeze.press(FULL, 100.0 + STEP / 2)
    assert squeeze.press(FULL, 100.0 + STEP)
    assert squeeze.times == 2


def test_where_nothing_is_left_to_halve_nothing_changes(squeeze):
    smallest = Capacity(1, 1)
    assert not squeeze.press(smallest, 100.0)
    assert squeeze.times == 0
    presses = [squeeze.press(FULL, 100.0 + n * STEP) for n in range(20)]
    assert sum(presses) == squeeze.times
    assert FULL.halved(squeeze.times) == smallest


def test_the_capacity_doubles_step_by_step_without_pressure(squeeze):
    squeeze.press(FULL, 100.0)
    squeeze.press(FULL, 101.0)
    assert squeeze.due == 101.0 + CALM
    assert not squeeze.look(101.0 + CALM - 0.1)
    assert squeeze.look(101.0 + CALM)
    assert squeeze.times == 1
    assert not squeeze.look(101.0 + 2 * CALM - 0.1)
    assert squeeze.look(101.0 + 2 * CALM)
    assert squeeze.times == 0
    assert not squeeze.look(1000.0)


def test_pressure_that_changes_nothing_still_puts_growing_off(squeeze):
    squeeze.press(FULL, 100.0)
    squeeze.press(FULL, 100.1)
    assert squeeze.due == 100.1 + CALM


def test_where_pressure_comes_back_at_once_the_next_wait_is_twice_as_long(squeeze):
    now, waits = 100.0, []
    for _ in range(8):
        squeeze.press(FULL, now)
        waits.append(squeeze.due - now)
        now = squeeze.due
        squeeze.look(now)
    assert waits == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 320.0, 320.0]
    assert waits[-1] == LONGEST_CALM


def test_the_wait_is_short_again_after_long_without_pressure(squeeze):
    squeeze.press(FULL, 100.0)
    squeeze.look(squeeze.due)
    squeeze.press(FULL, 111.0)
    assert squeeze.due == 111.0 + 2 * CALM
    squeeze.look(squeeze.due)
    squeeze.press(FULL, 1000.0)
    assert squeeze.due == 1000.0 + CALM


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 50.0)), max_size=60))
def test_after_any_events_the_capacity_becomes_whole_again(events):
    squeeze, now = CapacityReduction(), 1.0
    for is_pressure, later in events:
        now += later
        squeeze.press(FULL, now) if is_pressure else squeeze.look(now)
        assert 0 <= squeeze.times <= 7
    for _ in range(7):
        squeeze.look(max(now, squeeze.due))
    assert squeeze.times == 0


# The signs.


class Watched:
    """A file to watch, and the reports of the watch."""

    def __init__(self) -> None:
        self.pressed = threading.Semaphore(0)
        self.lost = threading.Event()
        self.watch = PressureWatch(self.pressed.release, self.lost.set)

    def is_pressed(self, seconds: float = PATIENCE) -> bool:
        return self.pressed.acquire(timeout=seconds)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(cgroup, "PAUSE", 0.01)
    found = Watched()
    yield found
    found.watch.stop()


@pytest.mark.parametrize("environment", [{}, {"MEMORY_PRESSURE_WATCH": "/dev/null"}])
def test_where_nothing_is_named_nothing_is_watched(watched, environment):
    assert not watched.watch.start(environment)
    assert not any(thread.name == "memory-pressure" for thread in threading.enumerate())


def test_each_write_to_a_fifo_reports_pressure(watched, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    trigger = base64.b64encode(b"some 200000 2000000").decode()
    environment = {"MEMORY_PRESSURE_WATCH": str(fifo), "MEMORY_PRESSURE_WRITE": trigger}
    assert watched.watch.start(environment)
    for _ in range(2):
        fifo.write_bytes(b"x" * 100)
        assert watched.is_pressed()
    assert not watched.lost.is_set()


def test_a_socket_gets_the_trigger_and_reports_pressure_until_it_is_closed(watched, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        trigger = base64.b64encode(b"some 1 2").decode()
        watched.watch.start({"MEMORY_PRESSURE_WATCH": path, "MEMORY_PRESSURE_WRITE": trigger})
        listening.settimeout(PATIENCE)
        theirs, _ = listening.accept()
    with theirs:
        assert theirs.recv(100) == b"some 1 2"
        theirs.send(b"x")
        assert watched.is_pressed()
        assert not watched.lost.is_set()
    assert watched.lost.wait(PATIENCE)


def test_a_missing_file_and_a_trigger_that_is_no_base64_are_errors(watched, tmp_path):
    with pytest.raises(OSError, match="no-such"):
        watched.watch.start({"MEMORY_PRESSURE_WATCH": str(tmp_path / "no-such")})
    environment = {"MEMORY_PRESSURE_WATCH": str(tmp_path), "MEMORY_PRESSURE_WRITE": "!"}
    with pytest.raises(ValueError, match=r"\$MEMORY_PRESSURE_WRITE"):
        watched.watch.start(environment)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_trigger_that_is_refused_is_an_error_and_leaves_nothing_open(watched, tmp_path):
    before = open_descriptors()
    trigger = base64.b64encode(b"nonsense").decode()
    environment = {"MEMORY_PRESSURE_WATCH": "/dev/full", "MEMORY_PRESSURE_WRITE": trigger}
    with pytest.raises(OSError, match="No space"):
        watched.watch.start(environment)
    assert open_descriptors() == before


def test_a_stopped_watch_leaves_no_thread_and_no_open_file(tmp_path):
    before = open_descriptors()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    watch = PressureWatch(lambda: None)
    watch.start({"MEMORY_PRESSURE_WATCH": str(fifo)})
    watch.stop()
    watch.stop()
    assert open_descriptors() == before
    assert not any(thread.name == "memory-pressure" for thread in threading.enumerate())


def test_freeing_memory_does_no_harm():
    cgroup.free_memory()


# The kernel's own word.

THRASH = """
import mmap, os, sys, tempfile, time
group, seconds = sys.argv[1], float(sys.argv[2])
with open(group + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
with tempfile.TemporaryFile(dir="/var/tmp") as file:
    for _ in range(64):
        file.write(os.urandom(1 << 20))
    file.flush()
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for offset in range(0, len(mapped), 4096):
            mapped[offset]
"""


@pytest.fixture
def thrash() -> Iterator[Callable[[], None]]:
    """Makes memory short for a process of its own, whose control group has too little."""
    group = Path("/sys/fs/cgroup/memory") / f"fm-consumer-test-{os.getpid()}"
    try:
        os.close(os.open("/proc/pressure/memory", os.O_RDWR))
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(16 << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory pressure can be made here: {error}")
    started = []

    def start() -> None:
        command = [sys.executable, "-c", THRASH, str(group), str(2 * PATIENCE)]
        started.append(subprocess.Popen(command))

    yield start
    for process in started:
        process.kill()
        process.wait()
    group.rmdir()


def test_the_kernels_pressure_file_reports_pressure(watched, thrash):
    trigger = base64.b64encode(b"some 1000 2000000\0").decode()
    environment = {
        "MEMORY_PRESSURE_WATCH": "/proc/pressure/memory",
        "MEMORY_PRESSURE_WRITE": trigger,
    }
    assert watched.watch.start(environment)
    thrash()
    assert watched.is_pressed(2 * PATIENCE)
    assert not watched.lost.is_set()


# The reaction of an instance.


class FakeInstance:
    """The parts of an instance that :class:`.MemoryRelief` uses."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.reactor = self.clock = self.session = self.dispatcher = self.read_ahead = (
            self.status
        ) = self
        self.time = ReactorClock()
        # So that nothing is pressed at 0, which the first moment of no clock is.
        self.time.advance(1000)
        policy = Policy(schedule=())
        self.plan = Plan("test", lambda: HANDLER, policy, Framework(slots=4), prefetch_count=40)
        self.calls: list[object] = []

    def monotonic(self) -> float:
        return self.time.seconds()

    def callLater(self, seconds: float, function: Callable[[], None]) -> object:  # noqa: N802
        return self.time.callLater(seconds, function)

    def resize(self, slots: int) -> None:
        self.calls.append(slots)

    def bounded(self, count: int) -> int:
        return count

    def set_prefetch(self, count: int) -> list[str]:
        self.calls.append(("ahead", count))
        return ["kept"]

    def give_back_old(self) -> int:
        self.calls.append("back")
        return 7

    def announce(self) -> None:
        self.calls.append("said")


HANDLER = Handler("test", lambda _message: None)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 -- threads make it true
        await asyncio.sleep(0.01)


@pytest.fixture
def instance() -> FakeInstance:
    return FakeInstance()


@pytest.fixture
def play(instance, monkeypatch, tmp_path):
    """Run a scenario with a relief of *instance* and a function that makes pressure."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("MEMORY_PRESSURE_WATCH", str(fifo))
    monkeypatch.setattr(cgroup, "PAUSE", 0.01)

    def run(scenario) -> None:
        async def with_relief() -> None:
            relief = MemoryRelief(instance)
            relief.start()

            async def press() -> None:
                before = len(instance.calls)
                fifo.write_bytes(b"x")
                await until(lambda: len(instance.calls) > before)

            try:
                await scenario(relief, press)
            finally:
                if not instance.gate.is_closed:
                    instance.gate.close()

        asyncio.run(asyncio.wait_for(with_relief(), PATIENCE))

    return run


def test_pressure_shrinks_the_capacity_and_gives_back_waiting_messages(instance, play, caplog):
    async def scenario(relief, press):
        await press()
        assert relief.remark == "memory is short: 2 of 4 slots"

    play(scenario)
    assert instance.calls == [2, ("ahead", 20), "said", "back"]
    said = "memory is short: 2 of 4 slots from now on, and 20 of 40 messages ahead; 7 given back"
    assert caplog.messages == [said]


def test_the_capacity_grows_step_by_step_and_is_logged(instance, play, caplog):
    caplog.set_level("INFO")

    async def scenario(relief, press):
        await press()
        instance.time.advance(STEP)
        await press()
        del instance.calls[:]
        instance.time.advance(CALM)
        assert instance.calls == [2, ("ahead", 20), "said"]
        assert relief.remark == "memory is short: 2 of 4 slots"
        instance.time.advance(CALM)
        assert instance.calls[3:] == [4, ("ahead", 40), "said"]
        assert relief.remark == ""
        assert instance.time.getDelayedCalls() == []

    play(scenario)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "memory is short",
        "memory is short",
        "memory is less short",
        "memory suffices",
    ]


def test_other_settings_keep_the_squeeze(instance, play):
    async def scenario(relief, press):
        await press()
        framework = Framework(slots=16)
        instance.plan = replace(instance.plan, framework=framework, prefetch_count=0)
        del instance.calls[:]
        assert relief.apply() == ["kept"]
        assert relief.remark == "memory is short: 8 of 16 slots"

    play(scenario)
    assert instance.calls == [8, ("ahead", UNLIMITED // 2), "said"]


def test_a_stopping_instance_grows_no_more(instance, play):
    async def scenario(relief, press):
        await press()
        instance.gate.close()
        del instance.calls[:]
        instance.time.advance(10 * CALM)

    play(scenario)
    assert instance.calls == []


def test_a_watch_that_is_gone_is_logged_once(instance, monkeypatch, tmp_path, caplog):
    path = str(tmp_path / "socket")
    monkeypatch.setenv("MEMORY_PRESSURE_WATCH", path)

    async def scenario() -> None:
        relief = MemoryRelief(instance)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(path)
            listening.listen()
            relief.start()
        await until(lambda: caplog.messages)
        instance.gate.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert caplog.messages == [
        "memory pressure is not watched for any more: $MEMORY_PRESSURE_WATCH is gone"
    ]
