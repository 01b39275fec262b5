# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command for a browser, and passes its output on as it comes."""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    # Takes one line of the answer, and waits while the browser is slow.
    Tell = Callable[[Mapping[str, Any]], Awaitable[None]]

# Bytes that are read at once.
_PIECE = 1 << 16
# The exit code of a shell for a program that does not exist, and for one that cannot be started.
_MISSING, _NOT_STARTED = 127, 126
# Seconds that a command may take to end after SIGINT: a replay ends after its current message.
STOP_TIMEOUT = 60.0


class Programs:
    """The commands that run now."""

    def __init__(self) -> None:
        self._running: set[Process] = set()
        self._endings: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, arguments: Sequence[str], text: str | None, tell: Tell) -> None:
        """Run a command to its end.

        If the task is cancelled, the command gets SIGINT. It has a session of its own, so that a
        Ctrl-C in the terminal of this process reaches it only through :meth:`stop`.

        Args:
            arguments: The command; ``fm-consumer`` is the one beside this Python.
            text: Its standard input; None for an empty one.
            tell: Called with ``{"out": text}``, ``{"err": text}`` and, at the end, ``{"exit": N}``.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(arguments),
                stdin=asyncio.subprocess.DEVNULL if text is None else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, "NO_COLOR": "1"},
            )
        except OSError as error:
            await tell({"err": f"{arguments[0]}: {error.strerror}"})
            is_missing = isinstance(error, FileNotFoundError)
            await tell({"exit": _MISSING if is_missing else _NOT_STARTED})
            return
        self._running.add(process)
        try:
            await _converse(process, text, tell)
            await tell({"exit": await process.wait()})
        finally:
            await self._end(process)

    async def stop(self) -> None:
        """Let all commands end, as Ctrl-C does, and wait for them."""
        await asyncio.gather(*(self._end(process) for process in tuple(self._running)))

    async def _end(self, process: Process) -> None:
        ending = asyncio.ensure_future(_ended(process))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        ending.add_done_callback(lambda _: self._running.discard(process))
        await asyncio.shield(ending)


async def _ended(process: Process) -> None:
    """Let a command end, and wait for it; kill one that does not end."""
    _signal(process, signal.SIGINT)
    # A command that waits for a reader of its output must not wait for ever.
    drained = [_drained(stream) for stream in (process.stdout, process.stderr) if stream]
    try:
        await asyncio.wait_for(asyncio.gather(process.wait(), *drained), STOP_TIMEOUT)
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.wait()


async def _drained(stream: asyncio.StreamReader) -> None:
    while await stream.read(_PIECE):
        pass


def _signal(process: Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            # Its session is its process group: programs that it runs get the signal, too.
            os.killpg(process.pid, number)


async def _converse(process: Process, text: str | None, tell: Tell) -> None:
    async with asyncio.TaskGroup() as tasks:
        for name, stream in (("out", process.stdout), ("err", process.stderr)):
            if stream is not None:
                tasks.create_task(_pass_on(name, stream, tell))
        if process.stdin is not None and text is not None:
            tasks.create_task(_write(process.stdin, text))


async def _pass_on(name: str, stream: asyncio.StreamReader, tell: Tell) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := await stream.read(_PIECE):
        if text := decoder.decode(piece):
            await tell({name: text})
    if rest := decoder.decode(b"", final=True):
        await tell({name: rest})


async def _write(stream: asyncio.StreamWriter, text: str) -> None:
    # The command may end without having read it.
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(text.encode())
        await stream.drain()
        stream.close()
        await stream.wait_closed()


def _command(arguments: Sequence[str]) -> list[str]:
    own = Path(sys.executable).with_name("fm-consumer")
    if arguments[0] == "fm-consumer" and own.exists():
        return [str(own), *arguments[1:]]
    return [*arguments]
