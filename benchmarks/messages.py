# SPDX-License-Identifier: GPL-2.0-or-later
"""Valid fedora-messaging messages of four real applications, with bodies of exactly 1,024 bytes.

They are the messages of the demo (examples/demo/messages.py) that are short enough, padded. Every
message is encoded once. A copy with another id and time stamp is a join of byte strings.
"""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import pika

from examples.demo.messages import ONE_ROUND, stream

from .wire import publication

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedora_messaging.message import Message

BODY = 1024
"""Bytes of each body."""
EXCHANGE = "amq.topic"
STAMP = "bench_stamp"
"""The header with the time of sending, in nanoseconds of the monotonic clock."""

# Placeholders in an encoded message for the id and the time stamp of a copy.
_ID = "ffffffff-ffff-4fff-bfff-ffffffffffff"
_STAMP = 0x7A7B7C7D7A7B7C7D
_MARKS = [_ID.encode(), _STAMP.to_bytes(8, "big"), str(_STAMP).encode()]
_HOLES = re.compile(b"(" + b"|".join(map(re.escape, _MARKS)) + b")")
_WORDS = ["build", "compose", "package", "release", "branch", "signed", "tagged", "stable"]


@dataclass(frozen=True)
class Sample:
    """A message to make copies of.

    Attributes:
        topic: Its topic.
        headers: Its headers, those of fedora-messaging among them.
        body: Its body, decoded.
    """

    topic: str
    headers: dict[str, Any]
    body: dict[str, Any]


Envelope = "Callable[[Sample, str, int], bytes]"
"""Makes the bytes of a body from a sample, its id and its time stamp."""


class Template:
    """One encoded message with holes."""

    def __init__(self, encoded: bytes) -> None:
        self._parts = _HOLES.split(encoded)
        self._holes = [(at, self._filler(self._parts[at])) for at in range(1, len(self._parts), 2)]

    @staticmethod
    def _filler(hole: bytes) -> Callable[[bytes, int], bytes]:
        if hole == _ID.encode():
            return lambda message_id, _: message_id
        if len(hole) == 8:  # noqa: PLR2004 -- an AMQP long-long-int
            return lambda _, stamp: stamp.to_bytes(8, "big")
        return lambda _, stamp: b"%19d" % stamp  # in JSON; no leading zeros

    def fill(self, message_id: bytes, stamp: int) -> bytes:
        """Return the frames of a copy."""
        parts = self._parts.copy()
        for at, filler in self._holes:
            parts[at] = filler(message_id, stamp)
        return b"".join(parts)


def samples(seed: int = 1) -> list[Sample]:
    """Return the messages of one round of the demo that fit into 1,024 bytes, padded."""
    luck = random.Random(seed)
    fitting = [message for message in stream(ONE_ROUND) if _room(message.body) >= 0]
    return [_sample(message, luck) for message in fitting]


def _room(body: dict[str, Any]) -> int:
    return BODY - len(json.dumps({**body, "notes": ""}))


def _sample(message: Message, luck: random.Random) -> Sample:
    text = " ".join(luck.choices(_WORDS, k=BODY // 5))
    body = {**message.body, "notes": text[: _room(message.body)]}
    padded = type(message)(topic=message.topic, body=body)
    padded.validate()
    return Sample(message.topic, dict(padded._headers), body)  # noqa: SLF001


def json_body(sample: Sample, _message_id: str, _stamp: int) -> bytes:
    """Return the body as fedora-messaging sends it."""
    return json.dumps(sample.body).encode()


def templates(envelope: Callable[[Sample, str, int], bytes], given: list[Sample]) -> list[Template]:
    """Encode *given*, each in the *envelope*, as publications to `EXCHANGE`."""
    return [Template(_encode(sample, envelope(sample, _ID, _STAMP))) for sample in given]


def _encode(sample: Sample, body: bytes) -> bytes:
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        priority=0,
        message_id=_ID,
        headers={**sample.headers, STAMP: _STAMP},
    )
    return publication(EXCHANGE, sample.topic, properties, body)


def copies(made: list[Template], count: int, first: int = 0) -> Iterator[bytes]:
    """Yield *count* encoded messages, each with its own id, stamped with the current time."""
    numbers = range(first, first + count)
    for number, template in zip(
        numbers, islice(cycle(made), first % len(made), None), strict=False
    ):
        yield template.fill(message_id(number), time.monotonic_ns())


def message_id(number: int) -> bytes:
    """Return the id of the message with that *number*: a UUID that contains the number."""
    return b"%08x-0000-4000-8000-000000000000" % number
