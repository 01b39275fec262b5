# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the state directory can be used, and keeps what is written to it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from consumer_framework.adapters import flight as flight_file
from consumer_framework.adapters.filesystems import filesystem_of, nearest
from consumer_framework.adapters.journal.files import DATABASE
from consumer_framework.core.errors import JournalError, Problem
from consumer_framework.core.findings import error, info, warning
from consumer_framework.host.kept import kept_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.core.findings import Finding

_IN_MEMORY = {"tmpfs", "ramfs"}
_IN_A_CONTAINER = {"overlay", "aufs"}
_REMOTE = {"9p", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "nfs", "nfs4", "smb3"}
# Bytes. An instance whose journal cannot be written pauses.
_SCARCE = 64 << 20
_CURE = "give a directory on a local disk with --state-dir"


def state_findings(directory: Path, *, made: bool) -> Iterator[Finding]:
    """Say what is wrong with the directory that an instance keeps its state in.

    Args:
        directory: Where; it need not be there yet.
        made: systemd makes it, and gives it to the service.
    """
    place = str(directory)
    there = nearest(directory)
    if not there.is_dir():
        problem = Problem("", f"cannot be used for state: {there} is no directory", _CURE)
        yield error(problem).at(place)
        return
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        cure = "mount it read-write, or give another directory with --state-dir"
        yield error(Problem("", "cannot be used for state: Read-only file system", cure)).at(place)
    elif not made and not os.access(there, os.W_OK | os.X_OK):
        cure = "give a directory that this user can write to with --state-dir"
        yield error(Problem("", "cannot be used for state: Permission denied", cure)).at(place)
    else:
        yield from _files(directory)
    for finding in (*_filesystem(filesystem_of(there)), *_room(shutil.disk_usage(there).free)):
        yield finding.at(place)


def _files(directory: Path) -> Iterator[Finding]:
    """What a start cannot use of what is there; only what will not pass by itself."""
    flight = directory / flight_file.NAME
    if flight.is_dir():
        yield error(Problem("", "is a directory, and must be a file", "move it away")).at(
            str(flight)
        )
    try:
        kept_in(directory)
    except JournalError as refused:
        # This user may not look, perhaps.
        if refused.lasting and os.access(directory / DATABASE, os.R_OK):
            yield error(Problem("", str(refused)))


def _filesystem(kind: str) -> Iterator[Finding]:
    if kind in _IN_MEMORY:
        what = f"is in memory ({kind}): what waits or is quarantined is lost when the machine stops"
        yield warning("", what, _CURE)
    elif kind in _REMOTE:
        what = f"is on another machine ({kind}), where SQLite's write-ahead log is not safe"
        yield warning("", what, _CURE)
    elif kind in _IN_A_CONTAINER:
        what = f"is in a container's own layer ({kind}), and is lost with the container"
        yield info("", what, "mount a volume there")


def _room(free: int) -> Iterator[Finding]:
    if free < _SCARCE:
        what = f"has {free >> 20} MiB left: an instance that cannot write its journal pauses"
        yield warning("", what, "make room")
