# SPDX-License-Identifier: GPL-2.0-or-later
"""Remembers which messages were in a handler when the process died.

The file ``flight`` in the state directory is mapped into memory (mmap(2), ``MAP_SHARED``), so what
is written there belongs to the kernel at once: it outlives SIGKILL, the OOM killer and abort(3)
without a system call per message. Nothing is ever synced: **a loss of power, or a crash of the
kernel, may lose it**. Then a deadly message gets one run too many; no message is lost.

The file is a header and records: one for each message in flight, and one for each that crashed an
earlier process and is not settled yet. A record's first byte says what it is. It says "empty"
while the rest is written, changes last, and is all that changes when the record is emptied: a
process that dies between any two bytes leaves the old state or the new one. The checksum finds
what else may happen to a file: no message is charged with such a *torn* record.

A new process writes a new file and renames it over the old one: dying meanwhile loses nothing.

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
# Messages that crashed a process and did not come again since. Those that another consumer took
# never do, so there must be an end.
REMEMBERED = 1024

# Bytes; the header takes as many, so that no record lies on two pages.
RECORD = 256
_EMPTY, _FLYING, _CRASHED = range(3)
_HEADER = "fm-flight 1\n%d bytes\n"
_CHECKSUM = struct.Struct("<I")
_KEY = 16
_BODY = struct.Struct(f"<I{_KEY}sH")  # crashes, key, label's length; then the label
# In the field of the crashes: the last of them was the watchdog's doing.
_HUNG = 1 << 31
_BODY_AT = 1 + _CHECKSUM.size
_LABEL_AT = _BODY_AT + _BODY.size
_LABEL_ROOM = RECORD - _LABEL_AT

# ioctl_iflags(2); only an empty file takes this flag.
_SET_FLAGS = 0x40086602
_NO_COPY_ON_WRITE = struct.pack("l", 0x00800000)

Buffer: TypeAlias = mmap.mmap | bytearray


@dataclass(frozen=True, slots=True)
class Survivor:
    """A message that a process died with.

    Attributes:
        key: What it is recognised by when it comes again.
        label: Its queue, NUL and its message id, in UTF-8, cut off after about 200 bytes.
        crashes: How many processes died with it.
        hung: The last of them was restarted, for its handler did not return in time.
    """

    key: bytes
    label: bytes
    crashes: int
    hung: bool = False

    @property
    def queue(self) -> str:
        """The queue that it came from."""
        return self.label.decode("utf-8", "replace").partition("\0")[0]

    @property
    def message_id(self) -> str:
        """The publisher's message id, ``""`` where there is none."""
        return self.label.decode("utf-8", "replace").partition("\0")[2]


@dataclass(frozen=True, slots=True)
class Wreckage:
    """What the former process left.

    Attributes:
        survivors: The messages that were in a handler when it died, each with all its crashes.
        remembered: Those that crashed earlier processes and are not settled; oldest first.
        torn: Damaged records: that many messages crashed a process, and nobody knows which.
    """

    survivors: tuple[Survivor, ...] = ()
    remembered: tuple[Survivor, ...] = ()
    torn: int = 0


class Flight:
    """A :class:`.FlightRecorder` in *buffer*, which holds what :func:`image` makes.

    Not for two processes at once: whoever opens it holds the state directory (the store's lock).
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
    def open(cls, directory: Path, places: int) -> tuple[Self, Wreckage]:
        """Read what the former process left in *directory*, and start anew.

        The file gets all its room on the disk here (posix_fallocate(3)): a process that writes to
        a mapped page that the disk has no room for dies (mmap(2), SIGBUS). On btrfs this holds
        because the file is not copied on write (``FS_NOCOW_FL``), seen with Linux 6.18.

        A file that is damaged or of another version is renamed to ``flight.bad-TIME``, with a
        warning, in the place of an earlier one.

        Args:
            directory: The state directory, which must exist.
            places: How many messages are in a handler at most, 1 or more.

        Raises:
            StoreError: The file cannot be read or written there, or the disk is full. What the
                former process left is still there.
        """
        path = directory / NAME
        try:
            former = _read(path)
            crashed = _count((*former.remembered, *former.survivors))
            flight = cls(_create(path, image(places, crashed.values())))
        except OSError as error:
            lasting = isinstance(error, PermissionError | IsADirectoryError)
            raise StoreError(f"{path}: {error.strerror or error}", lasting=lasting) from error
        survivors = tuple(crashed[key] for key in _count(former.survivors))
        return flight, replace(former, survivors=survivors)

    def took_off(self, delivery: Delivery) -> int:
        """Note that the handler starts on *delivery*, which crashed ``history.crashes`` before.

        Raises:
            RuntimeError: More messages are in handlers than :meth:`open` was told.
        """
        if not self._free:
            raise RuntimeError("more messages are in handlers than the flight recorder has places")
        key, label = _identify(delivery)
        place = self._free.pop()
        _write(self._buffer, place, _FLYING, delivery.history.crashes, key, label)
        return place

    def landed(self, place: int) -> None:
        """Note that the handler is done.

        Raises:
            ValueError: Nothing took off from *place*.
        """
        if self._buffer[place] != _FLYING and place not in self._spared:
            raise ValueError(f"nothing took off from place {place}")
        self._spared.discard(place)
        self._buffer[place] = _EMPTY
        self._free.append(place)

    def spare(self, guilty: Iterable[Delivery]) -> None:
        """Charge nothing that is in a handler with the death of this process, but the *guilty*.

        They did not return in time, and the next process is to know it.
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
        """How many earlier processes died with this message, as far as that is remembered.

        :data:`REMEMBERED` messages are, and as many as were in flight at once if that is more;
        the one that crashed longest ago is forgotten first.
        """
        record = self._record_of(delivery)
        return record.crashes if record is not None else 0

    def has_hung(self, delivery: Delivery) -> bool:
        """Whether the last of them was restarted because its handler did not return in time."""
        record = self._record_of(delivery)
        return record is not None and record.hung

    def _record_of(self, delivery: Delivery) -> Survivor | None:
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
        """Let go of the file. What has not landed will count as a crash."""
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()


def image(places: int, crashed: Iterable[Survivor] = ()) -> bytearray:
    """Make the contents of a new file: nothing in flight, and who *crashed*, oldest first.

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
    """Give the key and the label of a message.

    No queue's name starts with NUL. The body's length keeps its bytes out of the routing key.
    SHA-256 is fast on most processors, and not forbidden on any machine (FIPS mode).
    """
    message_id = delivery.message_id
    if message_id:
        # An id may be no valid text, and must not raise. Two messages may have one id, and a
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
    # Last: until here, the record is empty.
    buffer[at] = kind


def _decode(contents: Buffer | bytes, at: int) -> Survivor | None:
    """Read the record *at* that offset; None for a torn one."""
    (checksum,) = _CHECKSUM.unpack_from(contents, at + 1)
    crashes, key, length = _BODY.unpack_from(contents, at + _BODY_AT)
    body = contents[at + _BODY_AT : at + min(RECORD, _LABEL_AT + length)]
    if crc32(body, contents[at]) != checksum:
        return None
    return Survivor(key, bytes(body[_BODY.size :]), crashes & ~_HUNG, bool(crashes & _HUNG))


def _read(path: Path) -> Wreckage:
    """Read what the former process left; what is no such file is set aside."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            is_ours = file.read(RECORD) == _header(size)
            records = file.read(size) if is_ours else b""
    except FileNotFoundError:
        return Wreckage()
    if not is_ours:
        aside = _set_aside(path)
        _log.warning("%s is damaged or of another version: now %s, crashes forgotten", path, aside)
        return Wreckage()
    wreckage = examine(records)
    if wreckage.torn:
        _log.warning("%s: %d records are damaged and left out", path, wreckage.torn)
    return wreckage


def _header(size: int) -> bytes:
    """Give the header of a file of *size* bytes: there is just one, so that none is half right."""
    return (_HEADER % size).encode().ljust(RECORD, b"\0")


def examine(records: bytes) -> Wreckage:
    """Read what follows the header of a dead process's file; its survivors count that crash."""
    found: dict[int, list[Survivor]] = {_FLYING: [], _CRASHED: []}
    torn = 0
    for at in range(0, len(records), RECORD):
        if records[at] == _EMPTY:
            continue
        record = _decode(records, at)
        if record is None or records[at] not in found:
            torn += 1
        else:
            found[records[at]].append(record)
    survivors = (replace(one, crashes=one.crashes + 1) for one in found[_FLYING])
    return Wreckage(tuple(survivors), tuple(found[_CRASHED]), torn)


def _count(records: Iterable[Survivor]) -> dict[bytes, Survivor]:
    """Keep each message once, with its highest count, in the order of the last crashes."""
    counts: dict[bytes, Survivor] = {}
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
            # The ids of messages are nobody else's business.
            os.fchmod(file.fileno(), 0o600)
            with suppress(OSError):  # most filesystems do not know it, nor need it
                ioctl(file, _SET_FLAGS, _NO_COPY_ON_WRITE)
            os.posix_fallocate(file.fileno(), 0, len(contents))
            file.write(contents)
            file.flush()
            mapped = mmap.mmap(file.fileno(), len(contents))
        new.replace(path)
    except OSError:
        # What little room there is on the disk is not for half a file.
        with suppress(OSError):
            new.unlink()
        raise
    return mapped
