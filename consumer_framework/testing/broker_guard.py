# SPDX-License-Identifier: GPL-2.0-or-later
"""A guard that ends a private node when the Python process does, whatever the cause.

It is a small shell that reads a pipe from us and acts when the kernel closes it.
``PR_SET_PDEATHSIG`` would not do: it fires when the *thread* that started the child ends
(prctl(2)), and a fixture may well run in a thread. A child that this process forked without exec
holds the pipe too, and delays the guard.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Reads lists of process ids, the last of which counts, and acts at the end of the input.
_GUARD = """
pids=
while read -r line; do pids=$line; done
[ -z "$pids" ] || kill -KILL $pids 2>/dev/null
rm -rf -- "$1"
"""


class Guard:
    """Outlives us just long enough to kill what we started and to remove its directory."""

    def __init__(self, directory: Path) -> None:
        self._shell = subprocess.Popen(  # noqa: S603 - our own script
            ["/bin/sh", "-c", _GUARD, "broker-guard", str(directory)],
            stdin=subprocess.PIPE,
            bufsize=0,
            # A Ctrl-C at the terminal is for us; it must not take the guard away first.
            start_new_session=True,
        )
        assert self._shell.stdin is not None  # noqa: S101 - Popen promises it for PIPE
        self._pipe = self._shell.stdin

    def watch(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Have *processes* killed at our end, instead of those named before."""
        line = " ".join(str(process.pid) for process in processes)
        # A guard that somebody killed is no reason not to end the node.
        with suppress(BrokenPipeError):
            self._pipe.write(line.encode() + b"\n")

    def close(self) -> None:
        """Close the pipe, and wait until the directory is gone."""
        self._shell.communicate()
