# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads systemd's journal with journalctl(1): every call of that program is made here."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, NoReturn

from consumer_framework.core.errors import FrameworkError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PROGRAM = "journalctl"
# Seconds for a question; a large journal on a slow disk takes some.
_PATIENCE = 30
# The lines of journalctl(1) about a journal that is not there, or that it does not show.
_NO_JOURNAL = "No journal files were found"
_OWN_LINES_ONLY = "not seeing messages from other users"
_NOT_PERMITTED = ("insufficient permissions", "Permission denied")
_GROUP = "use sudo, or join the group systemd-journal (sudo usermod -aG systemd-journal $USER)"


class JournalError(FrameworkError):
    """The journal cannot be read.

    Args:
        message: One line with the reason and the cure.
    """

    exit_code = 78


class Journal:
    """The journal of this host, or the files of another one.

    Args:
        directory: Where the files are; None for those of this host.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._place = () if directory is None else (f"--directory={directory}",)

    def caveat(self) -> str:
        """Return the reason why this user sees only a part of the journal; "" for none.

        Raises:
            JournalError: It cannot be read at all.
        """
        said = self._ask("--lines=0").stderr
        if _NO_JOURNAL in said:
            where = "" if self._place else " in /var/log/journal or /run/log/journal"
            cure = "without a journal, an instance logs to its standard error"
            raise JournalError(f"there is no journal{where}; {cure}")
        if _OWN_LINES_ONLY in said:
            return f"you see your own lines of the journal only: {_GROUP}"
        return ""

    def values(self, field: str) -> list[str]:
        """Return the values that *field* has in the journal.

        Raises:
            JournalError: It cannot be read.
        """
        return sorted(self._ask("--quiet", f"--field={field}").stdout.splitlines())

    def show(self, arguments: Sequence[str], *, quiet: bool) -> NoReturn:
        """Become journalctl(1), with its pager, signals and exit code.

        Args:
            arguments: Its arguments.
            quiet: Print lines only, no remarks such as ``-- No entries --``.

        Raises:
            JournalError: It cannot be run.
        """
        said = ("--quiet",) if quiet else ()
        try:
            os.execvp(_PROGRAM, [_PROGRAM, *said, *self._place, *arguments])  # noqa: S606
        except OSError as error:
            raise JournalError(f"{_PROGRAM} cannot be run: {error.strerror}") from error

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if shutil.which(_PROGRAM) is None:
            raise JournalError(
                f"there is no {_PROGRAM} in $PATH: without systemd's journal, an instance logs to "
                "its standard error"
            )
        try:
            done = subprocess.run(  # noqa: S603 -- no shell
                [_PROGRAM, "--no-pager", *self._place, *arguments],
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_PATIENCE,
            )
        except OSError as error:
            raise JournalError(f"{_PROGRAM} cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            raise JournalError(f"{_PROGRAM} does not answer in {_PATIENCE} seconds") from None
        if done.returncode:
            raise JournalError(_complaint(done.stderr))
        return done


def _complaint(said: str) -> str:
    last = (said.strip().splitlines() or ["it failed without a word"])[-1]
    if any(words in said for words in _NOT_PERMITTED):
        return f"you may not read the journal: {last} {_GROUP}"
    return f"{_PROGRAM}: {last}"
