# SPDX-License-Identifier: GPL-2.0-or-later
"""The two kinds of run: from a full queue, for throughput, and at a fixed rate, for latency."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import messages, queues
from .catalogue import Task
from .measure import BenchError, Figures, running
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .catalogue import Peer
    from .messages import Sample, Template

TICK = 0.001
"""Seconds between two writes of the paced sender, at most."""
WARM_UP = 100
"""Messages whose latency is not counted: a consumer's first ones."""


@dataclass(frozen=True)
class Load:
    """The messages of a run.

    Attributes:
        count: Messages to handle.
        skip: Messages of these before the clock starts.
        backlog: More messages, which stay in the queue.
        fails: True if some fail, and are held at the end.
        rows: Messages that come from the store, and not from the queue.
        samples: The originals that the messages are copies of.
    """

    count: int
    samples: list[Sample]
    skip: int = 0
    backlog: int = 0
    rows: int = 0
    fails: bool = False


def throughput(
    url: str,
    peer: Peer,
    load: Load,
    prepare: Callable[[Task], Mapping[str, str] | None] = lambda _: None,
    watch: Callable[[int], None] = lambda _: None,
) -> Figures:
    """Let *peer* handle a queue that was filled before it started.

    Args:
        url: The broker's URL.
        peer: The peer to measure.
        load: The messages of the run.
        prepare: Called before the start; may return more variables for the process.
        watch: Called with the process's id once it runs.

    Raises:
        BenchError: Not exactly the expected messages were handled.
    """
    name = queue_name(peer)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        queues.queue(url, name, peer.arguments(name)),
    ):
        task = Task(url, name, load.count, Path(directory), load.skip)
        queues.fill(
            url, queues.templates_for(peer, load.samples), load.count + load.backlog - load.rows
        )
        task = replace(task, environment=prepare(task) or {})
        with running(peer, task) as process:
            watch(process.pid)
            figures = process.figures(process.wait())
        if not load.backlog and not load.fails:
            check(peer, figures, load.count, queues.state(url, name)[0])
    return figures


def latency(url: str, peer: Peer, given: list[Sample], rate: float, seconds: float) -> Figures:
    """Send messages to *peer* at a fixed *rate* per second, and measure their age in its handler.

    Raises:
        BenchError: Not exactly the expected messages were handled.
    """
    name, count = queue_name(peer), int(rate * seconds) + WARM_UP
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        queues.queue(url, name, peer.arguments(name)),
    ):
        task = Task(url, name, count, Path(directory), skip=WARM_UP, latency=True)
        with running(peer, task) as process:
            queues.await_consumer(url, name)
            made = queues.templates_for(peer, given)
            send(url, made, WARM_UP, 100)
            send(url, made, count - WARM_UP, rate, first=WARM_UP)
            figures = process.figures(process.wait())
        check(peer, figures, count, queues.state(url, name)[0])
    return figures


def send(url: str, made: list[Template], count: int, rate: float, first: int = 0) -> None:
    """Publish *count* messages, *rate* a second, each stamped right before it is sent."""
    with Wire(url) as wire:
        stream = iter(messages.copies(made, count, first))
        begin, sent = time.monotonic(), 0
        while sent < count:
            due = min(count, int((time.monotonic() - begin) * rate) + 1)
            wire.send(b"".join(next(stream) for _ in range(due - sent)))
            sent = max(sent, due)
            time.sleep(max(TICK, begin + sent / rate - time.monotonic()))
        time.sleep(0.1)  # before the connection closes with messages on the way


def check(peer: Peer, figures: Figures, count: int, left: int) -> None:
    """Refuse figures of a run that handled messages twice, or not at all."""
    if figures.handled != count or left:
        raise BenchError(f"{peer.name}: {figures.handled} of {count} handled, {left} left")


def queue_name(peer: Peer) -> str:
    """Return the name of the queue: the same for all peers but dramatiq, whose envelope has it."""
    return "bench.dramatiq" if peer.name == "dramatiq" else "bench"
