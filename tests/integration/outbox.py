# SPDX-License-Identifier: GPL-2.0-or-later
"""The databases of the tests of the outbox."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .outside_services import MariaDB, PostgreSQL

SQLITE, POSTGRESQL, MARIADB = "sqlite", "postgresql", "mariadb"
on_every_database = pytest.mark.parametrize(
    "outbox_url", [SQLITE, POSTGRESQL, MARIADB], indirect=True
)
on_servers = pytest.mark.parametrize("outbox_url", [POSTGRESQL, MARIADB], indirect=True)
# MiB: a database that was just made, and room for some messages.
_SIZES = {SQLITE: 64, POSTGRESQL: 400, MARIADB: 400}


class Disk:
    """A small file system, for a database that runs out of room."""

    def __init__(self, place: Path) -> None:
        self._filler = place / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as stream:
            for size in (1 << 16, 1 << 10):
                with suppress(OSError):
                    while stream.write(b"x" * size):
                        pass

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@dataclass(frozen=True)
class OwnDatabase:
    """A database that no other test uses, so that it may be stopped and its disk filled.

    Attributes:
        url: The URL of an empty database.
        server: Its server; None for SQLite.
        disk: Its disk; None if this user may not mount a small one.
    """

    url: str
    server: PostgreSQL | MariaDB | None
    disk: Disk | None


@contextmanager
def small_disk(kind: str) -> Iterator[tuple[Path, Disk | None]]:
    """Mount a small file system for a database of *kind*."""
    # A server's own user may not enter the directories of pytest.
    place = Path(tempfile.mkdtemp(prefix="disk-"))
    place.chmod(0o755)
    options = f"size={_SIZES[kind]}m,mode=0755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    is_small = os.geteuid() == 0 and not subprocess.run(mount, check=False).returncode
    try:
        yield place, Disk(place) if is_small else None
    finally:
        if is_small:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
