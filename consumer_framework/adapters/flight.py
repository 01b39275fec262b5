# SPDX-License-Identifier: GPL-2.0-or-later
"""The flight recorder: remembers the messages that were in a handler when the process died.

A message is *in flight* from :meth:`Flight.took_off` to :meth:`Flight.landed`. When a process dies,
each message in flight is charged with one *crash*. The next process reads these charges, and its
recovery policy stops a message that has killed too many processes.

The file ``flight`` in the state directory is mapped into memory (mmap(2), ``MAP_SHARED``), so each
written byte belongs to the kernel at once. It outlives SIGKILL, the OOM killer and abort(3) without
a system call per message. Nothing is ever synced: **a loss of power, or a crash of the kernel, may
lose it**. Then a deadly message gets one run too many; no message is lost.

The file is a header, followed by records of 256 bytes: one for each message in flight, and one for
each message that crashed an earlier process and is not settled yet. ::

    0      1          5         9     25        27
    ┌──────┬──────────┬─────────┬─────┬─────────┬───────────────────────────────┐
    │ kind │ checksum │ crashes │ key │ length  │ label: queue, NUL, message id │
    └──────┴──────────┴─────────┴─────┴─────────┴───────────────────────────────┘

The label of a message in a route ends with another NUL and the name of the route.

The kind is "empty", "flying" or "crashed". It is "empty" while the other bytes are written, and
is written last; to empty a record, only the kind changes. So a process that dies between any two
bytes leaves the old state or the new one. The checksum finds all other damage to a file: no message
is charged with such a *torn* record.

A new process writes a new file and renames it over the old one. A process that dies meanwhile loses
nothing.

``python benchmarks/flight.py`` measured 1.7 µs per message, took off and landed, and 2.5 µs for one
of 1 kB without a message id (medians of 7 runs; Python 3.11, x86-64 with SHA instructions).
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from fcntl import ioctl
from hashlib import sha256
from typing import TYPE_CHECKING, Self, TypeAlias
from zlib import crc32

from consumer_framework.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from consumer_framework.core.delivery import Delivery

_log = logging.getLogger(__name__)

NAME = "flight"
# Messages that crashed a process and did not come again since. A message that another consumer took
# never comes again, so their number must be limited.
REMEMBERED = 1024

# Bytes; the header takes as many, so that no record lies on two pages.
RECORD = 256
_EMPTY, _FLYING, _CRASHED = range(3)
_HEADER = "fm-flight 1\n%d bytes\n"
_CHECKSUM = struct.Struct("<I")
_KEY = 16
_BODY = struct.Struct(f"<I{_KEY}sH")  # crashes, key, label's length; then the label
# A bit in the field of the crashes: the watchdog caused the last crash.
_HUNG = 1 << 31
_BODY_AT = 1 + _CHECKSUM.size
_LABEL_AT = _BODY_AT + _BODY.size
_LABEL_ROOM = RECORD - _LABEL_AT

# ioctl_iflags(2); only an empty file takes this flag.
_SET_FLAGS = 0x40086602
_NO_COPY_ON_WRITE = struct.pack("l", 0x00800000)

Buffer: TypeAlias = mmap.mmap | bytearray


@dataclass(frozen=True, slots=True)
class CrashRecord:
    """A message that was in a handler when a process died.

    Attributes:
        key: Recognizes the message when it comes again.
        label: Its queue, NUL and its message id, in UTF-8, cut off after about 200 bytes. In a
            route another NUL and the name of the route follow.
        crashes: The number of processes that died with it.
        hung: True where the last of them was restarted since its handler did not return in time.
    """

    key: bytes
    label: bytes
    crashes: int
    hung: bool = False

    @property
    def queue(self) -> str:
        """The queue that it came from."""
        return self._part(0)

    @property
    def message_id(self) -> str:
        """The publisher's message id, ``""`` where there is none."""
        return self._part(1)

    @property
    def route(self) -> str:
        """The route that had it, ``""`` in a consumer without routes."""
        return self._part(2)

    def _part(self, index: int) -> str:
        parts = self.label.decode("utf-8", "replace").split("\0")
        return parts[index] if len(parts) > index else ""


@dataclass(frozen=True, slots=True)
class Records:
    """The records that the former process left.

    Attributes:
        in_flight: The messages that were in a handler when it died, each with all its crashes.
        remembered: The messages that crashed earlier processes and are not settled; oldest first.
        torn: The number of damaged records: their messages are not known.
    """

    in_flight: tuple[CrashRecord, ...] = ()
    remembered: tuple[CrashRecord, ...] = ()
    torn: int = 0


class Flight:
    """A :class:`.FlightRecorder` in *buffer*, a map of a file that :func:`image` made.

    Two processes must not use one file: the process that has the lock of the store may open it.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        records = range(RECORD, len(buffer), RECORD)
        self._records = records
        self._spared: set[int] = set()
        self._free = [at for at in records if buffer[at] == _EMPTY]
        known = ((at, _decode(buffer, at)) for at in records if buffer[at] == _CRASHED)
        self._crashed = {record.key: (at, record) for at, record in known if record}

    @classmethod
    def open(cls, directory: Path, places: int) -> tuple[Self, Records]:
        """Read the records of the former process in *directory*, and start a new file.

        The file gets all its room on the disk here (posix_fallocate(3)): a process that writes to
        a mapped page that the disk has no room for dies (mmap(2), SIGBUS). On btrfs this holds
        because the file is not copied on write (``FS_NOCOW_FL``), seen with Linux 6.18.

        A file that is damaged or of another version is renamed to ``flight.bad-TIME``, with a
        warning; an earlier file of that name is deleted.

        Args:
            directory: The state directory, which must exist.
            places: The greatest number of messages that are in a handler at once, 1 or more.

        Raises:
            StoreError: The file cannot be read or written there, or the disk is full. The records
                of the former process are still there.
        """
        path = directory / NAME
        try:
            former = _read(path)
            crashed = _count((*former.remembered, *former.in_flight))
            flight = cls(_create(path, image(places, crashed.values())))
        except OSError as error:
            lasting = isinstance(error, PermissionError | IsADirectoryError)
            raise StoreError(f"{path}: {error.strerror or error}", lasting=lasting) from error
        in_flight = tuple(crashed[key] for key in _count(former.in_flight))
        return flight, replace(former, in_flight=in_flight)

    def took_off(self, delivery: Delivery) -> int:
        """Note that the handler starts on *delivery*, with the crashes of its history.

        Returns:
            The place to give to :meth:`landed`.

        Raises:
            RuntimeError: Messages are in all places.
        """
        if not self._free:
            raise RuntimeError("more messages are in handlers than the flight recorder has places")
        key, label = _identify(delivery)
        if delivery.route:
            end = b"\0" + delivery.route.encode("utf-8", "surrogatepass")
            # Without a message id the label is the queue alone.
            name = label if delivery.message_id else label + b"\0"
            label = name[: _LABEL_ROOM - len(end)] + end[:_LABEL_ROOM]
        place = self._free.pop()
        _write(self._buffer, place, _FLYING, delivery.history.crashes, key, label)
        return place

    def landed(self, place: int) -> None:
        """Note that the handler is done with the message in *place*.

        Raises:
            ValueError: No message took off from *place*.
        """
        if self._buffer[place] != _FLYING and place not in self._spared:
            raise ValueError(f"nothing took off from place {place}")
        self._spared.discard(place)
        self._buffer[place] = _EMPTY
        self._free.append(place)

    def charge_only(self, guilty: Iterable[Delivery]) -> None:
        """Charge only the *guilty* of the messages in flight with the death of this process.

        Their handlers did not return in time, and the next process will know that.
        """
        charged = {_identify(delivery)[0] for delivery in guilty}
        for at in self._records:
            record = _decode(self._buffer, at) if self._buffer[at] == _FLYING else None
            if record is not None and record.key in charged:
                crashes = record.crashes | _HUNG
                _write(self._buffer, at, _FLYING, crashes, record.key, record.label)
            elif record is not None:
                self._spared.add(at)
                self._buffer[at] = _EMPTY

    def crashes_of(self, delivery: Delivery) -> int:
        """Return the number of earlier processes that died with this message.

        The crashes of :data:`REMEMBERED` messages are known, or of as many as were in flight at
        once if that is more. The message that crashed longest ago is forgotten first.
        """
        record = self._record_of(delivery)
        return record.crashes if record is not None else 0

    def has_hung(self, delivery: Delivery) -> bool:
        """Tell whether the last of them was restarted since its handler did not return in time."""
        record = self._record_of(delivery)
        return record is not None and record.hung

    def route_of(self, delivery: Delivery) -> str:
        """Return the route that had the message when the last of them died; "" for none."""
        record = self._record_of(delivery)
        return record.route if record is not None else ""

    def _record_of(self, delivery: Delivery) -> CrashRecord | None:
        if not self._crashed:
            return None
        return self._crashed.get(_identify(delivery)[0], (0, None))[1]

    def forget(self, delivery: Delivery) -> None:
        """Forget the crashes of this message: it is settled."""
        if not self._crashed:
            return
        place, _ = self._crashed.pop(_identify(delivery)[0], (0, None))
        if place:
            self._buffer[place] = _EMPTY
            self._free.append(place)

    def close(self) -> None:
        """Close the file. The next process charges the messages in flight with a crash."""
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()


def image(places: int, crashed: Iterable[CrashRecord] = ()) -> bytearray:
    """Return the contents of a new file, with no message in flight.

    Args:
        places: The greatest number of messages that are in a handler at once.
        crashed: The messages to remember, oldest first.

    Raises:
        ValueError: *places* is not positive.
    """
    if places < 1:
        raise ValueError(f"a flight recorder needs a place, not {places}")
    remembered = max(REMEMBERED, places)
    contents = bytearray((1 + remembered + places) * RECORD)
    contents[:RECORD] = _header(len(contents))
    for index, one in enumerate(list(crashed)[-remembered:], start=1):
        crashes = one.crashes | (_HUNG if one.hung else 0)
        _write(contents, index * RECORD, _CRASHED, crashes, one.key, one.label)
    return contents


def _identify(delivery: Delivery) -> tuple[bytes, bytes]:
    """Return the key and the label of a message.

    A key without a message id starts with NUL, which no queue's name does. The body's length keeps
    its bytes apart from the routing key. SHA-256 is fast on most processors, and every machine
    allows it (FIPS mode).
    """
    message_id = delivery.message_id
    if message_id:
        # An id that is no valid text must not raise. Two messages may have the same id, and a
        # checksum of their bodies costs next to nothing.
        label = f"{delivery.queue}\0{message_id}".encode("utf-8", "surrogatepass")
        rest = f"\0{delivery.routing_key}\0{len(delivery.body)}\0{crc32(delivery.body)}"
        key = sha256(label + rest.encode("utf-8", "surrogatepass")).digest()
        return key[:_KEY], label[:_LABEL_ROOM]
    queue, body = delivery.queue, delivery.body
    name = f"\0{queue}\0{len(body)}\0{delivery.routing_key}".encode("utf-8", "surrogatepass")
    return sha256(name + body).digest()[:_KEY], queue.encode()[:_LABEL_ROOM]


def _write(  # noqa: PLR0913, PLR0917 -- no object for them: it would cost a fifth of all
    buffer: Buffer, at: int, kind: int, crashes: int, key: bytes, label: bytes
) -> None:
    body = _BODY.pack(crashes, key, len(label)) + label
    buffer[at + 1 : at + _BODY_AT + len(body)] = _CHECKSUM.pack(crc32(body, kind)) + body
    # Last: the record is empty until now.
    buffer[at] = kind


def _decode(contents: Buffer | bytes, at: int) -> CrashRecord | None:
    """Return the record at offset *at*, None for a torn one."""
    (checksum,) = _CHECKSUM.unpack_from(contents, at + 1)
    crashes, key, length = _BODY.unpack_from(contents, at + _BODY_AT)
    body = contents[at + _BODY_AT : at + min(RECORD, _LABEL_AT + length)]
    if crc32(body, contents[at]) != checksum:
        return None
    return CrashRecord(key, bytes(body[_BODY.size :]), crashes & ~_HUNG, bool(crashes & _HUNG))


def _read(path: Path) -> Records:
    """Return the records of the former process; rename a file that cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            is_ours = file.read(RECORD) == _header(size)
            records = file.read(size) if is_ours else b""
    except FileNotFoundError:
        return Records()
    if not is_ours:
        aside = _set_aside(path)
        _log.warning("%s is damaged or of another version: now %s, crashes forgotten", path, aside)
        return Records()
    found = read_records(records)
    if found.torn:
        _log.warning("%s: %d records are damaged and left out", path, found.torn)
    return found


def _header(size: int) -> bytes:
    """Return the header of a file of *size* bytes: no other header is valid."""
    return (_HEADER % size).encode().ljust(RECORD, b"\0")


def read_records(records: bytes) -> Records:
    """Return the records of a dead process; each message in flight has one more crash.

    Args:
        records: The bytes after the header.
    """
    found: dict[int, list[CrashRecord]] = {_FLYING: [], _CRASHED: []}
    torn = 0
    for at in range(0, len(records), RECORD):
        if records[at] == _EMPTY:
            continue
        record = _decode(records, at)
        if record is None or records[at] not in found:
            torn += 1
        else:
            found[records[at]].append(record)
    in_flight = (replace(one, crashes=one.crashes + 1) for one in found[_FLYING])
    return Records(tuple(in_flight), tuple(found[_CRASHED]), torn)


def _count(records: Iterable[CrashRecord]) -> dict[bytes, CrashRecord]:
    """Keep each message once, with its highest count, in the order of the last crashes."""
    counts: dict[bytes, CrashRecord] = {}
    for record in records:
        known = counts.pop(record.key, record)
        counts[record.key] = max(known, record, key=lambda one: one.crashes)
    return counts


def _set_aside(path: Path) -> Path:
    earlier = list(path.parent.glob(f"{NAME}.bad-*"))
    aside = path.with_name(time.strftime(f"{NAME}.bad-%Y%m%dT%H%M%SZ", time.gmtime()))
    path.replace(aside)
    for file in earlier:
        if file != aside:
            file.unlink()
    return aside


def _create(path: Path, contents: bytearray) -> mmap.mmap:
    """Put a file with *contents* in the place of *path*, whole or not at all, and map it."""
    new = path.with_name(f"{NAME}.new")
    try:
        new.unlink(missing_ok=True)
        with new.open("x+b") as file:
            # No other user may read the ids of messages.
            os.fchmod(file.fileno(), 0o600)
            with suppress(OSError):  # most filesystems do not know it, nor need it
                ioctl(file, _SET_FLAGS, _NO_COPY_ON_WRITE)
            os.posix_fallocate(file.fileno(), 0, len(contents))
            file.write(contents)
            file.flush()
            mapped = mmap.mmap(file.fileno(), len(contents))
        new.replace(path)
    except OSError:
        # Half a file must not use up the little room that the disk has.
        with suppress(OSError):
            new.unlink()
        raise
    return mapped
