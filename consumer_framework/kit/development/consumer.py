# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of the consumer, as the session sees it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import events
from .child import Orders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_CHUNK = 65536
# Variables of a service around the session, and those that name another configuration.
_NOT_INHERITED = frozenset(
    {
        *("FEDORA_MESSAGING_CONF", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "JOURNAL_STREAM"),
        *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"),
    }
)


def environment_for(root: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a consumer whose project is in the directory *root*."""
    kept = {name: value for name, value in outer.items() if name not in _NOT_INHERITED}
    places = [str(p) for p in (root / "src", root) if p.is_dir()]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([*places, *filter(None, [outer.get("PYTHONPATH", "")])]),
        "PYTHONUNBUFFERED": "1",
        # Python knows a changed module by the second of its time, and by its size.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass
class Lines:
    """Cuts the bytes of a pipe into lines."""

    take: Callable[[bytes], None]
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take *data*; ``b""`` is the end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines.append(self._rest)
        for line in lines:
            self.take(line)


@dataclass
class ConsumerProcess:
    """A running consumer.

    Args:
        orders: Its orders, without the descriptor of its events.
        root: Its working directory.
        selector: Is told of its pipes, with a function to call as the data of each key.
        on_event: Takes each event.
        on_output: Takes each line of its output.
    """

    orders: Orders
    root: Path
    selector: selectors.BaseSelector
    on_event: Callable[[events.Event], None]
    on_output: Callable[[str], None]
    process: subprocess.Popen[bytes] = field(init=False)
    _open: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        own, theirs = os.pipe2(os.O_CLOEXEC)
        command = Orders(
            self.orders.file,
            self.orders.instance,
            self.orders.state,
            self.orders.callback_file,
            theirs,
        ).arguments()
        try:
            self.process = subprocess.Popen(  # noqa: S603 -- this Python
                command,
                cwd=self.root,
                env=environment_for(self.root, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs,),
                start_new_session=True,  # a Ctrl-C at the terminal is for the session
            )
        finally:
            os.close(theirs)
        self._register(own, lambda line: self.on_event(events.read(line)))
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None  # noqa: S101 -- Popen promises it for PIPE
            self._register(
                stream.fileno(), lambda line: self.on_output(line.decode(errors="replace"))
            )
        self._events = own
        # Wakes the session at the end of the process.
        self._life = os.pidfd_open(self.process.pid)
        self.selector.register(self._life, selectors.EVENT_READ, lambda: False)
        self._open.add(self._life)

    def _register(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        os.set_blocking(descriptor, False)
        lines = Lines(take)
        self.selector.register(
            descriptor, selectors.EVENT_READ, lambda: self._read(descriptor, lines)
        )
        self._open.add(descriptor)

    def _read(self, descriptor: int, lines: Lines) -> bool:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        lines.feed(data)
        if not data:
            self._forget(descriptor)
        return bool(data)

    def _forget(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            self.selector.unregister(descriptor)

    def owns(self, descriptor: int) -> bool:
        """Tell if a key of the selector with that *descriptor* is one of this process."""
        return descriptor in self._open

    @property
    def exit_code(self) -> int | None:
        """The exit code; minus the number of the signal that ended it; None while it runs."""
        # Not reaped before close(): its number, and so that of its group, stays its own.
        found = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def terminate(self) -> None:
        """Tell it to stop."""
        os.kill(self.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End the process and those of its group at once, and read the rest of its output."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._forget(self._life)
        os.close(self._life)
        for key in list(self.selector.get_map().values()):
            # A process that left the group may hold the pipe for ever.
            for _ in range(32):
                if key.fd not in self._open or not key.data():
                    break
        for descriptor in list(self._open):
            self._forget(descriptor)
        os.close(self._events)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
