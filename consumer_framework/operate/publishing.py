# SPDX-License-Identifier: GPL-2.0-or-later
"""Publish the messages of a file, of standard input or of a command line, batch by batch.

A file is read twice: first each line is validated, so that a file with a fault publishes nothing;
then its messages are stored, or sent, in batches. A pipe is read once. Memory does not grow with
the number of messages.

The position is a number of lines. The messages of these lines are stored, or sent. Those of the
lines behind them are not, except where an attempt had no clear end (:attr:`Position.may_repeat`).
So an interrupted publication goes on with the lines behind its position.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fedora_messaging.exceptions import ValidationError

from consumer_framework.core.text import clipped, printable, size
from consumer_framework.publishing.direct import Sender, SendError
from consumer_framework.publishing.lines import LineError, LineReader
from consumer_framework.publishing.message import Outgoing, PublishError, schema_fault
from consumer_framework.publishing.policy import Policy
from consumer_framework.settings import OnFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from fedora_messaging.message import Message

    from consumer_framework.publishing.outbox import Outbox

# A batch is stored when it has so many messages or bytes, or after so many seconds.
BATCH, BATCH_BYTES, BATCH_SECONDS = 500, 4 << 20, 1.0
# The longest line: no broker takes a message of that size.
LONGEST_LINE = 256 << 20
_PORTION = 1 << 18
# Seconds without input after which the messages so far are stored.
_IDLE = 0.2
_LONGEST_REASON = 400
_LEAVE_OUT = "mend the message, or leave the line out"


class BadLineError(Exception):
    """The messages of a line cannot be published.

    Attributes:
        number: The number of the line, from 1.
        reason: The fault and the cure.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, reason)
        self.number = number
        self.reason = clipped(printable(reason), _LONGEST_REASON)


class Source:
    """Lines of JSON.

    Args:
        path: The file; None for standard input.
        skip: Leave out so many lines at the beginning.

    Attributes:
        size: The number of bytes; None for a pipe.
        read: The number of bytes that were read.
        number: The number of the last line that was read.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path | None, skip: int = 0) -> None:
        self._is_own = path is not None
        self._fd = sys.stdin.fileno() if path is None else os.open(path, os.O_RDONLY)
        self._skip = skip
        status = os.fstat(self._fd)
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._start = 0 if self.size is None else os.lseek(self._fd, 0, os.SEEK_CUR)
        self.read = self.number = 0

    def close(self) -> None:
        """Close the file."""
        if self._is_own:
            os.close(self._fd)

    def lines(self) -> Iterator[bytes | None]:
        """Yield each line that is not empty, from the beginning; None while a pipe has nothing.

        Raises:
            OSError: It cannot be read.
            BadLineError: A line does not end.
        """
        self.read = self.number = 0
        if self.size is not None:
            os.lseek(self._fd, self._start, os.SEEK_SET)
        for line in self._split():
            if line is not None:
                self.number += 1
                if self.number <= self._skip or not line.strip():
                    continue
            yield line

    def _split(self) -> Iterator[bytes | None]:
        parts: list[bytes] = []
        while True:
            if self.size is None and not select.select([self._fd], [], [], _IDLE)[0]:
                yield None
                continue
            data = os.read(self._fd, _PORTION)
            if not data:
                break
            self.read += len(data)
            first, *others = data.split(b"\n")
            parts.append(first)
            if others:
                yield b"".join(parts)
                yield from others[:-1]
                parts = others[-1:]
            elif sum(map(len, parts)) > LONGEST_LINE:
                what = f"the line has more than {size(LONGEST_LINE)}"
                raise BadLineError(self.number + 1, f"{what}; write one message on each line")
        if last := b"".join(parts):
            yield last


@dataclass
class Position:
    """The progress of a publication.

    Attributes:
        line: The messages up to this line are stored, or sent, or left out.
        messages: The number of those stored or sent.
        left_out: The number of lines that were left out.
        may_repeat: True if messages behind the line are perhaps stored or sent too.
    """

    line: int = 0
    messages: int = 0
    left_out: int = 0
    may_repeat: bool = False


class Destination(Protocol):
    """A place for messages.

    Attributes:
        place: The place in words, to follow "stored" or "sent"; "" for nowhere.
    """

    place: str

    def put(self, batch: Sequence[Outgoing]) -> None:
        """Store or send *batch*.

        Raises:
            PublishError: The database or the broker did not take it.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


class ToOutbox:
    """Stores messages in an outbox. Does not wait for the relay, whatever ``on_failure`` says."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._policy = Policy.of(outbox.settings)
        self.place = f"in {outbox.store.place}"

    def put(self, batch: Sequence[Outgoing]) -> None:
        """Store *batch* in one transaction."""
        self._outbox.accept([(one, self._on_failure(one.topic)) for one in batch])

    def _on_failure(self, topic: str) -> str:
        chosen = self._policy.on_failure_of(topic)
        return OnFailure.SPOOL.value if chosen is OnFailure.WAIT else chosen.value

    def close(self) -> None:
        """Close the connections to the database."""
        self._outbox.close()

    def has_relay(self) -> bool:
        """Return true if a relay sends from this outbox now."""
        return self._outbox.store.leased_until() > time.time()


class ToBroker:
    """Sends messages at once, and waits until the broker has them.

    Args:
        sender: Sends them.
        place: The broker, in words.
    """

    def __init__(self, sender: Sender, place: str) -> None:
        self._sender = sender
        self.place = place

    def put(self, batch: Sequence[Outgoing]) -> None:
        """Send *batch*."""
        self._sender.send(batch)

    def close(self) -> None:
        """Close the connection."""
        self._sender.close()

    @property
    def unroutable(self) -> int:
        """The number of messages that no queue is bound for."""
        return self._sender.unroutable


class Nowhere:
    """Takes messages, and does nothing with them."""

    place = ""

    def put(self, batch: Sequence[Outgoing]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass
class Publication:
    """Publishes messages to one destination.

    Args:
        prepare: Validates and serialises a message.
        destination: Takes the messages.
        reader: Reads messages from lines.
        tell: Called after each batch, and now and then while lines are validated.
        leave_out: Called for each line that cannot be published; None ends the publication there.

    Attributes:
        position: The progress so far.
        interrupted_by: The signal that ended it; 0 for none.
    """

    prepare: Callable[[Message], Outgoing]
    destination: Destination
    reader: LineReader = field(default_factory=LineReader)
    tell: Callable[[], None] = lambda: None
    leave_out: Callable[[BadLineError], None] | None = None
    position: Position = field(default_factory=Position)
    interrupted_by: int = 0
    _batch: list[tuple[int, Outgoing]] = field(default_factory=list)
    _size: int = 0
    _since: float = 0.0

    def one(self, message: Outgoing) -> None:
        """Publish a single message that was prepared before.

        Raises:
            PublishError: The destination did not take it.
        """
        self.destination.put([message])
        self.position.messages = 1

    def check(self, source: Source) -> Iterator[BadLineError]:
        """Yield the fault of each line of *source* that cannot be published. Publish nothing."""
        for line in source.lines():
            try:
                if line is not None:
                    self._prepared(source.number, line)
            except BadLineError as error:
                yield error
            if source.number % BATCH == 0:
                self.tell()
        self.reader = LineReader(self.reader.new_ids)

    def run(self, source: Source) -> None:
        """Publish the messages of *source*.

        Raises:
            BadLineError: A line cannot be published; the messages before it are.
            PublishError: The destination did not take a batch.
            KeyboardInterrupt: A signal came. The batch that was on its way is published.
            OSError: The source cannot be read; the messages before are published.
        """
        interrupts = _Interrupts(self)
        with interrupts:
            try:
                for line in source.lines():
                    if line is not None:
                        self._add(source.number, line)
                    if line is None or self._is_full():
                        self._flush(source.number, interrupts)
            except BadLineError as error:
                self._flush(error.number - 1, interrupts)
                raise
            except OSError:
                self._flush(source.number, interrupts)
                raise
            self._flush(source.number, interrupts)

    def _add(self, number: int, line: bytes) -> None:
        try:
            made = self._prepared(number, line)
        except BadLineError as error:
            if self.leave_out is None:
                raise
            self.position.left_out += 1
            self.leave_out(error)
            return
        if not self._batch:
            self._since = time.monotonic()
        self._batch += [(number, message) for message in made]
        self._size += sum(message.size for message in made)

    def _prepared(self, number: int, line: bytes) -> list[Outgoing]:
        try:
            return [self.prepare(message) for message in self.reader.read(line)]
        except LineError as error:
            reason = str(error)
        except ValidationError as error:
            reason = f"{schema_fault(error)}; {_LEAVE_OUT}"
        except PublishError as error:
            reason = f"{error}; {_LEAVE_OUT}"
        raise BadLineError(number, reason)

    def _is_full(self) -> bool:
        is_late = time.monotonic() - self._since >= BATCH_SECONDS
        is_large = len(self._batch) >= BATCH or self._size >= BATCH_BYTES
        return bool(self._batch) and (is_large or is_late)

    def _flush(self, line: int, interrupts: _Interrupts) -> None:
        batch, self._batch, self._size = self._batch, [], 0
        if batch:
            with interrupts.held():
                self._put(batch)
                self.position.line = line
        self.position.line = line
        self.tell()

    def _put(self, batch: list[tuple[int, Outgoing]]) -> None:
        self.position.may_repeat = True
        try:
            self.destination.put([message for _, message in batch])
        except SendError as error:
            left = {id(message) for message in error.unsent}
            self.position.line = min(n for n, message in batch if id(message) in left) - 1
            self.position.messages += len(batch) - len(left)
            raise
        except PublishError:
            self.position.line, self.position.may_repeat = batch[0][0] - 1, False
            raise
        self.position.may_repeat = False
        self.position.messages += len(batch)


class _Interrupts:
    """Lets SIGINT and SIGTERM interrupt a publication between two batches; a second one at once."""

    def __init__(self, publication: Publication) -> None:
        self._publication = publication
        self._is_held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _came(self, number: int, _frame: object) -> None:
        is_first = not self._publication.interrupted_by
        self._publication.interrupted_by = number
        if not (self._is_held and is_first):
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the first signal wait for the end of the block."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._publication.interrupted_by:
            raise KeyboardInterrupt
