# SPDX-License-Identifier: GPL-2.0-or-later
"""Appends each message to a file, as a line of JSON.

The file is locked, repaired, extended and synchronized in one step, for a whole batch. Only then
are its messages acknowledged. So a crash at any moment leaves whole lines, of messages that may
come again, and perhaps one line without an end. The next step removes that line: its message was
not acknowledged.

The lock is advisory (flock(2)) and lasts for one step. Several workers may share a file, and
another program may rename it.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fedora_messaging.exceptions import ConfigurationException
from pydantic import AfterValidator, BaseModel, Field

from consumer_framework.author.consumer import BatchConsumer
from consumer_framework.core.errors import DependencyFault, Problem, Quarantine

from .message_json import as_object, line_of
from .places import is_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.author.batch import Batch

# Bytes that are read at once to find the last newline.
_BLOCK = 65536


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or not path.name:
        raise ValueError("must be the absolute path of a file")
    return path


class JsonLinesConfig(BaseModel):
    """The keys of :class:`AppendJsonLines`."""

    path: Annotated[Path, AfterValidator(_absolute)]
    """The file. Its directory must exist."""
    content: Literal["message", "body"] = "message"
    """A line is the message, or its body alone."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """Begin a new file before the file is larger. A larger message has a file of its own."""
    every: Literal["hour", "day", "week"] | None = None
    """Begin a new file with the first message of each hour, day or week, in UTC."""
    keep: Annotated[int, Field(ge=1)] | None = None
    """Keep so many former files, and remove older ones. Default: all."""


class AppendJsonLines(BatchConsumer):
    """Append each message to a file, as a line of JSON; begin a new file by size and time."""

    Config = JsonLinesConfig
    config: JsonLinesConfig

    @classmethod
    def check_config(cls, config: JsonLinesConfig, *, connect: bool) -> Iterator[Problem]:  # noqa: ARG003 -- it asks nobody
        """Look for the directory of the file. The rights of the service are not known here."""
        path = config.path
        if is_directory(path):
            yield Problem("path", f"{path} is a directory", "name a file in it")
        elif is_directory(path.parent) is False:
            yield Problem("path", f"there is no directory {path.parent}", "create it")

    def setup(self) -> None:
        """Open the file once, as a test.

        Raises:
            ConfigurationException: Its directory is not there, or it cannot be written.
        """
        path = self.config.path
        try:
            with _locked(path) as descriptor:
                _repair(descriptor)
        except OSError as error:
            raise ConfigurationException(
                f"consumer_config.path: {path} cannot be written: {error.strerror}; create its "
                "directory, let this user write there, and name it in ReadWritePaths= of the unit"
            ) from error

    def handle_batch(self, messages: Batch) -> None:
        """Append *messages*.

        Raises:
            DependencyFault: The disk is full, or the file cannot be written.
        """
        lines: list[bytes] = []
        for message in messages:
            whole = as_object(message) if self.config.content == "message" else message.body
            try:
                lines.append(line_of(whole))
            except Quarantine as error:
                messages.fail(message, error)
        try:
            for part in self._parts(lines):
                self._append(part)
        except OSError as error:
            path, reason = self.config.path, error.strerror or str(error)
            raise DependencyFault(f"{path} cannot be written: {reason}") from error

    def _parts(self, lines: list[bytes]) -> Iterator[bytes]:
        """Yield the lines, joined to parts that each fit into a file."""
        part = b""
        for line in lines:
            if part and self.config.max_bytes and len(part) + len(line) > self.config.max_bytes:
                yield part
                part = b""
            part += line
        if part:
            yield part

    def _append(self, data: bytes) -> None:
        with _locked(self.config.path) as descriptor:
            written_at = os.fstat(descriptor).st_mtime
            size = _repair(descriptor)
            if not self._is_full(written_at, size, len(data)):
                _write(descriptor, data, size)
                return
            self._rotate()
        # The next opening makes the new file, or finds the one that another worker has made.
        self._append(data)

    def _is_full(self, written_at: float, size: int, more: int) -> bool:
        limit, every = self.config.max_bytes, self.config.every
        if size == 0:
            return False
        if limit is not None and size + more > limit:
            return True
        return every is not None and _period(written_at, every) != _period(time.time(), every)

    def _rotate(self) -> None:
        path = self.config.path
        # The time sorts as text. Two files of a microsecond would have one name.
        while True:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            former = path.with_name(f"{path.name}.{stamp}")
            if not former.exists():
                break
        path.rename(former)
        _sync_directory(path.parent)
        if self.config.keep is not None:
            former_name = re.compile(rf"{re.escape(path.name)}\.\d{{8}}T\d{{6}}\.\d{{6}}Z")
            own = sorted(p for p in path.parent.iterdir() if former_name.fullmatch(p.name))
            for old in own[: -self.config.keep]:
                with suppress(FileNotFoundError):
                    old.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open and lock the file that has the name *path* now."""
    while True:
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _has_name(descriptor, path):
                # Somebody renamed it while this process waited.
                continue
            if is_new:
                _sync_directory(path.parent)
            yield descriptor
            return
        finally:
            os.close(descriptor)


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _repair(descriptor: int) -> int:
    """Remove a last line without an end; return the size."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def _write(descriptor: int, data: bytes, size: int) -> None:
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], size + done)
        os.fsync(descriptor)
    except OSError:
        # Readers are not to see a part of a batch that comes again.
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


# The text that is the same for all moments of a period.
_PERIODS = {"hour": "%Y-%m-%d %H", "day": "%Y-%m-%d", "week": "%G-%V"}


def _period(moment: float, every: str) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime(_PERIODS[every])


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
