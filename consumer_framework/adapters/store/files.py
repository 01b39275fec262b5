# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a store: opening and migrating the database, its lock, and errors of the disk.

Files are created by :func:`create`, which keeps root from being led elsewhere by a link. Errors of
SQLite and of the system become :class:`.StoreError`, with the file and a cure (:func:`described`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import sqlite3
import stat
from contextlib import closing, contextmanager
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING

from consumer_framework.core.errors import StoreError

from . import wal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATABASE = "store.sqlite3"
LOCK = "store.lock"

# The "application ID" of file(1) and SQLite: tells a store from any other SQLite database
# (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x464D4A4C  # "FMJL"

# Applied in order; the version of a store is the number of migrations that it has had.
MIGRATIONS = tuple(
    files(__package__).joinpath(name).read_text(encoding="utf-8")
    for name in (
        "schema.sql",
        "lanes.sql",
        "sizes.sql",
        "steps.sql",
        "routes.sql",
        "ramps.sql",
        "orders.sql",
    )
)

# One process at a time writes, so only a `sqlite3` shell can hold a lock.
_BUSY_SECONDS = 5.0
# A burst makes the write-ahead log grow; it is cut back to this many bytes afterwards.
_LOG_BYTES = 16 << 20


def open_writable(file: Path) -> sqlite3.Connection:
    """Open the store in *file* for the writer, or create it, or migrate it to the newest version.

    Raises:
        StoreError: It cannot be written, is no store, or was written by a newer version.
    """
    with described(file):
        os.close(create(file))
        sync_directory(file.parent)
        wal.link_log(file)
        connection = _connect(file, "rw")
        try:
            _prepare(file, connection)
        except BaseException:
            connection.close()
            raise
    return connection


def open_readable(file: Path) -> sqlite3.Connection:
    """Open the store in *file* for reading only, while another process may write it.

    Raises:
        StoreError: There is none, it is no store, or it is of another version.
    """
    with described(file):
        if not file.parent.is_dir():
            raise NotADirectoryError(0, "no such directory", str(file.parent))
        if file.is_symlink():
            raise PermissionError(errno.EPERM, "is a link", str(file))
        if not file.exists():
            raise StoreError(f"{file}: there is no store; no instance ran with this directory")
        connection = _connect(file, "ro")
        try:
            _check_current(file, connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    # isolation_level=None: transactions begin where the code says so.
    connection = sqlite3.connect(
        f"{file.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    # Damaged text must not prevent the reading of other rows.
    connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
    return connection


def _prepare(file: Path, connection: sqlite3.Connection) -> None:
    version = _version(file, connection)
    wal.keep_damaged(file, connection)
    if version == 0:
        # This has no effect after the first write.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    # Each commit is synced to the disk (https://www.sqlite.org/pragma.html#pragma_synchronous).
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        _migrate(connection, script, number)


def _migrate(connection: sqlite3.Connection, script: str, number: int) -> None:
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\n{marks} COMMIT;")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.rollback()
        raise


def _check_current(file: Path, connection: sqlite3.Connection) -> None:
    if _version(file, connection) < len(MIGRATIONS):
        raise StoreError(f"{file}: written by an older version; start the instance once")


def _version(file: Path, connection: sqlite3.Connection) -> int:
    application: int = _pragma(connection, "application_id")
    version: int = _pragma(connection, "user_version")
    if application != APPLICATION_ID and not _is_empty(connection):
        raise StoreError(f"{file}: a database, but no store; move the file away", lasting=True)
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{file}: written by a newer version (schema {version}, this one knows up to "
            f"{len(MIGRATIONS)}); upgrade consumer_framework, or move the file away",
            lasting=True,
        )
    return version


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    with closing(connection.execute(f"PRAGMA {name}")) as cursor:
        return int(cursor.fetchone()[0])


def _is_empty(connection: sqlite3.Connection) -> bool:
    with closing(connection.execute("SELECT count(*) FROM sqlite_schema")) as cursor:
        return not cursor.fetchone()[0]


# The lock files that this process has locked, by device and inode, with the text in each.
_locked_here: dict[tuple[int, int], str] = {}


class Lock:
    """Reserves a store for one process.

    The kernel frees the lock when the process ends in any way. The lock belongs to the process, not
    to the open file (fcntl_locking(2)): a child that a handler forked does not keep it. Such a lock
    is lost when the process closes the file anywhere, and it never refuses the process itself.
    Therefore this process remembers its lock files, and does not open them again.

    Raises:
        StoreError: A process has the lock, or the directory cannot be written.
    """

    def __init__(self, directory: Path, instance: str) -> None:
        self._file = directory / LOCK
        with described(self._file):
            self._refuse_our_own()
            # Closing it twice is no error, as it would be with the bare descriptor.
            self._stream = os.fdopen(create(self._file), "r+b", buffering=0)
            try:
                self._take(instance)
            except BaseException:
                self._stream.close()
                raise

    def _refuse_our_own(self) -> None:
        holder = _locked_here.get(_identity(self._file), "")
        # A forked child has its parent's memory, and none of its locks.
        if holder.startswith(f"process {os.getpid()} "):
            raise self._in_use(holder)

    def _take(self, instance: str) -> None:
        try:
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = (self._stream.read() or b"another process").decode(errors="replace")
            raise self._in_use(holder) from None
        holder = _who(instance)
        self._identity = _identity(self._file)
        _locked_here[self._identity] = holder
        self._stream.truncate(0)
        self._stream.write(holder.encode())

    def _in_use(self, holder: str) -> StoreError:
        return StoreError(
            f"{self._file.with_name(DATABASE)}: in use by {holder}; stop that first, or name "
            "its own directories in $STATE_DIRECTORY and $RUNTIME_DIRECTORY"
        )

    def release(self) -> None:
        """Let another process have the store."""
        if not self._stream.closed:
            _locked_here.pop(self._identity, None)
            self._stream.close()


def is_locked_elsewhere(directory: Path) -> bool:
    """Tell whether another process has the store in *directory*, as far as this user may see."""
    file = directory / LOCK
    if _identity(file) in _locked_here:
        return False
    try:
        with file.open("r+b", buffering=0) as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _identity(file: Path) -> tuple[int, int]:
    try:
        status = file.stat(follow_symlinks=False)
    except OSError:
        # No file has this number.
        return 0, 0
    return status.st_dev, status.st_ino


def _who(instance: str) -> str:
    name = f" (instance {instance})" if instance else ""
    return f"process {os.getpid()}{name} on {platform.node()}"


def create(file: Path) -> int:
    """Open *file* for reading and writing, or create it, and return its descriptor.

    Where root creates it, it belongs to the owner of the directory, since the instance must be able
    to open it. That owner could put a link in its place to make root write elsewhere, so links are
    refused.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    status = os.fstat(descriptor)
    if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "is a link, or no regular file", str(file))
    if os.geteuid() == 0:
        owner = file.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def sync_directory(directory: Path) -> None:
    """Make the names of new files in *directory* durable (fsync(2), "Calling fsync() does ...")."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Errors that do not pass by themselves, unlike those of a disk that is full or fails.
_LASTING = frozenset(
    {
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_NOTADB,
    }
)
_LASTING_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
    }
)

_CURES = {
    sqlite3.SQLITE_FULL: "make room on the disk",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable for this user",
    sqlite3.SQLITE_CANTOPEN: "make the file and its directory writable for this user",
    sqlite3.SQLITE_BUSY: "end the other program that has the file open",
    sqlite3.SQLITE_LOCKED: "end the other program that has the file open",
    sqlite3.SQLITE_NOTADB: "move the file away; a new store is made at the next start",
    sqlite3.SQLITE_CORRUPT: "move the file away and save what `sqlite3 FILE .recover` finds in it",
}


@contextmanager
def described(file: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the system into a :class:`.StoreError` that names *file*."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the kind, the others are details (https://www.sqlite.org/rescode.html).
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        cure = _CURES.get(kind, "look into the kernel's log for what is wrong with the disk")
        raise StoreError(f"{file}: {error}; {cure}", lasting=kind in _LASTING) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        message = f"{error.filename or file}: {reason}; {_cure(error)}"
        raise StoreError(message, lasting=_is_lasting(error)) from error


def _is_lasting(error: OSError) -> bool:
    """Tell whether *error* stays until somebody acts; a full disk may have room later."""
    return error.errno in _LASTING_ERRORS


def _cure(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "create the directory, or name another with StateDirectory= or --state-dir"
        case NotADirectoryError() | FileExistsError():
            return (
                "a file or a broken link stands where a directory belongs: move it away, "
                "or name another directory with StateDirectory= or --state-dir"
            )
        case PermissionError():
            return "make it writable for this user, or name another directory with --state-dir"
    return "repair or free the disk"
