# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices damage in a write-ahead log, which SQLite ignores in silence.

SQLite reads the log up to the first frame that does not fit, and takes the rest for an unfinished
commit that a power cut left behind (https://www.sqlite.org/walformat.html). Random bytes in the
middle of the log look the same. The two cases can be told apart: each frame has the two salts of
its log, and a frame that ends a transaction says so. A frame of this log that ends a transaction,
and that SQLite did not read, was committed; only the very last one may not have been.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path
    from typing import BinaryIO

_log = logging.getLogger(__name__)

# The header of the log: magic, version, page size, checkpoint number, two salts, checksum.
_HEADER = struct.Struct(">8I")
# The header of a frame: page number, size of the database after a commit or 0, two salts.
_FRAME = struct.Struct(">4I")
_FRAME_HEADER = 24
# The last bit of the magic number is the byte order of checksums.
_BYTE_ORDERS = {0x377F0682: "<", 0x377F0683: ">"}
# The first salt grows by one each time that a log is begun anew. A frame of so many logs ago may
# still be there.
_GENERATIONS = 1 << 16


def link_log(file: Path) -> None:
    """Give the log of the database *file* a second name, since SQLite may delete the first.

    Call it before the database is opened. Where the former process died after SQLite had deleted
    the first name, the log gets that name back.
    """
    wal, second = _log_of(file), _second_name(file)
    if second.exists():
        if wal.exists():
            second.unlink()
        else:
            second.rename(wal)
    # There is no log, or the filesystem has no hard links.
    with suppress(OSError):
        os.link(wal, second)


def _log_of(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def _second_name(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal.held")


def keep_damaged(file: Path, connection: sqlite3.Connection) -> None:
    """Keep a copy of the database *file* and its log where frames of the log cannot be read.

    Call it after :func:`link_log`, and before the first write, which overwrites the log from its
    beginning.

    Raises:
        OSError: They cannot be copied; nothing is changed.
    """
    wal = _log_of(file)
    # Copies the frames that SQLite has read into the database, and leaves the log.
    _, read, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    damage = find_damage(wal, max(read, 0))
    if damage:
        aside = _copy(file, wal)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        _log.error(
            "%s: damaged: %s; the messages that were written last may be missing. Both files are "
            "kept in %s: `sqlite3 %s .recover` may find them. Where the power failed in the middle "
            "of a commit, the broker delivers its messages again, and nothing is lost",
            wal,
            damage,
            aside,
            aside / file.name,
        )
    _second_name(file).unlink(missing_ok=True)


def find_damage(wal: Path, read: int) -> str:
    """Return the damage of a log of which SQLite reads *read* frames, "" for none."""
    try:
        with wal.open("rb") as stream:
            return _find_damage(stream, os.fstat(stream.fileno()).st_size, read)
    except FileNotFoundError:
        return ""


def _find_damage(stream: BinaryIO, size: int, read: int) -> str:
    if size <= _HEADER.size:
        return ""
    header = stream.read(_HEADER.size)
    magic, _, page_size, _, *salts, _, _ = _HEADER.unpack(header)
    if not _is_sound(magic, header):
        return "its header is not what was written"
    committed = strange = 0
    length = _FRAME_HEADER + page_size
    for at in range(_HEADER.size + read * length, size - length + 1, length):
        stream.seek(at)
        frame = stream.read(_FRAME.size)
        _, database_size, *own = _FRAME.unpack(frame)
        if own == salts:
            committed += bool(database_size)
        elif any(frame) and not 0 < (salts[0] - own[0]) % (1 << 32) <= _GENERATIONS:
            strange += 1
    if committed:
        return f"{committed} of its transactions cannot be read"
    return f"{strange} of its frames are not what was written" if strange else ""


def _is_sound(magic: int, header: bytes) -> bool:
    order = _BYTE_ORDERS.get(magic)
    if order is None:
        return False
    first = second = 0
    for one, other in struct.iter_unpack(f"{order}II", header[:24]):
        first = (first + one + second) % (1 << 32)
        second = (second + other + first) % (1 << 32)
    return (first, second) == struct.unpack(">II", header[24:])


def _copy(file: Path, wal: Path) -> Path:
    aside = file.with_name(time.strftime("damaged-%Y%m%dT%H%M%SZ", time.gmtime()))
    owner = file.stat()
    try:
        aside.mkdir(mode=0o700, exist_ok=True)
        for source in (file, wal):
            shutil.copyfile(source, aside / source.name)
        for made in (aside, *aside.iterdir()):
            if os.geteuid() == 0:
                os.chown(made, owner.st_uid, owner.st_gid)
            descriptor = os.open(made, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    except OSError:
        # Half a copy must not use up the little room that the disk has.
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return aside
