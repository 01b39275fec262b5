# SPDX-License-Identifier: GPL-2.0-or-later
"""The reading end of the journal's socket, as systemd-journald has it."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

Fields = dict[str, list[str]]


class JournalSocket:
    """Receives entries; those that came as files are counted in ``files``."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self.files = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        if os.path.exists(self.path):  # noqa: PTH110
            os.unlink(self.path)  # noqa: PTH108

    def entry(self) -> Fields:
        """Wait for the next entry that is not empty."""
        while not (found := self._receive()):
            pass
        return parsed(found)

    def _receive(self) -> bytes:
        size = array.array("i").itemsize
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(size))
        for _level, _kind, passed in ancillary:
            assert not data
            (descriptor,) = array.array("i", passed)
            try:
                return self._file(descriptor)
            finally:
                os.close(descriptor)
        return data

    def _file(self, descriptor: int) -> bytes:
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == ALL_SEALS
        self.files += 1
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
            return mapped[:]


def parsed(data: bytes) -> Fields:
    """Read an entry as https://systemd.io/JOURNAL_NATIVE_PROTOCOL says."""
    fields: Fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length, rest = int.from_bytes(rest[:8], "little"), rest[8:]
            value, rest = rest[:length], rest[length:]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields.setdefault(name.decode(), []).append(value.decode())
        data = rest
    return fields
