# SPDX-License-Identifier: GPL-2.0-or-later
"""Make queues, fill them, and inspect them after a run."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pika import spec

from . import messages
from .measure import BenchError
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .catalogue import Peer
    from .messages import Sample, Template

BROKER_CONFIG = {
    # A million messages in one queue must not block their publisher.
    "vm_memory_high_watermark.relative": "0.7",
    "vm_memory_high_watermark_paging_ratio": "0.9",
}


@contextmanager
def queue(url: str, name: str, arguments: dict[str, Any] | None = None) -> Iterator[str]:
    """Provide a durable queue for every message of `messages.EXCHANGE`, within the context."""
    with Wire(url) as wire:
        declare = spec.Queue.Declare(queue=name, durable=True, arguments=arguments or {})
        wire.call(declare, spec.Queue.DeclareOk)
        bind = spec.Queue.Bind(queue=name, exchange=messages.EXCHANGE, routing_key="#")
        wire.call(bind, spec.Queue.BindOk)
    try:
        yield name
    finally:
        with Wire(url) as wire:
            for old in (name, f"{name}.DQ", f"{name}.XQ"):
                wire.call(spec.Queue.Delete(queue=old), spec.Queue.DeleteOk)


def fill(url: str, made: list[Template], count: int, first: int = 0) -> None:
    """Publish *count* copies, confirmed."""
    with Wire(url) as wire:
        wire.publish(messages.copies(made, count, first))


def state(url: str, name: str) -> tuple[int, int]:
    """Return the numbers of messages and of consumers of a queue."""
    with Wire(url) as wire:
        found = wire.call(spec.Queue.Declare(queue=name, passive=True), spec.Queue.DeclareOk)
    return found.message_count, found.consumer_count


def await_consumer(url: str, name: str, timeout: float = 30.0) -> None:
    """Wait until somebody consumes from a queue.

    Raises:
        BenchError: Nobody did.
    """
    deadline = time.monotonic() + timeout
    while state(url, name)[1] == 0:
        if time.monotonic() > deadline:
            raise BenchError(f"nobody consumes from {name}")
        time.sleep(0.05)


def templates_for(peer: Peer, given: list[Sample]) -> list[Template]:
    """Encode *given* in the envelope of *peer*."""
    return messages.templates(peer.envelope, given)
