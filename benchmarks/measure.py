# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one consumer as its own process against a queue, and measure it."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .catalogue import PREFETCH, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .catalogue import Peer, Task

TIMEOUT = 180.0
"""The longest run, in seconds."""
SETTLE = 0.3
"""Seconds between the last handler and the signal to stop: its acknowledgement is on its way."""
POLL = 0.01


class BenchError(RuntimeError):
    """A run did not do its task, so that there is no figure."""


@dataclass(frozen=True)
class Figures:
    """The figures of one run.

    Attributes:
        handled: Handler runs: exactly one for each message.
        throughput: Messages per second, from the first handler to the last.
        cpu_per_1000: Seconds of CPU time (user and system) per 1,000 messages, in the same span.
        memory: Peak resident memory of the process and its children, in MiB.
        first_message: Seconds from the start of the process to the first handler.
        ready: Seconds from the start of the process until it reports that it consumes; None if it
            never reports that.
        total_cpu: Seconds of CPU time of the process's whole life.
        p50: Milliseconds from sending to the handler, median; None if it was not measured.
        p99: The same, 99th percentile.
    """

    handled: int
    throughput: float
    cpu_per_1000: float
    memory: float
    first_message: float
    ready: float | None
    total_cpu: float
    p50: float | None = None
    p99: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        values = asdict(self).items()
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in values}


class Process:
    """A running consumer.

    Args:
        peer: The peer to run.
        task: Its task.
    """

    def __init__(self, peer: Peer, task: Task) -> None:
        self._task = task
        self._log = task.directory / "log"
        self._result = task.directory / "result.json"
        self._sign = peer.ready
        self.ready_at: float | None = None
        self._notifications = _listen(task.directory / "notify")
        command = peer.command(task)
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            command,
            env=self._environment(),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        readers = (self._read_log, self._read_notifications)
        self._readers = [threading.Thread(target=reader, daemon=True) for reader in readers]
        for reader in self._readers:
            reader.start()

    def _environment(self) -> dict[str, str]:
        task, directory = self._task, str(self._task.directory)
        inherited = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        }
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "NOTIFY_SOCKET": f"{directory}/notify",
            "STATE_DIRECTORY": f"{directory}/state",
            "RUNTIME_DIRECTORY": directory,
            "BENCH_RESULT": str(self._result),
            "BENCH_COUNT": str(task.count),
            "BENCH_SKIP": str(task.skip),
            "BENCH_LATENCY": "1" if task.latency else "0",
            "BENCH_URL": task.url,
            "BENCH_QUEUE": task.queue,
            "dramatiq_queue_prefetch": str(PREFETCH),
            **task.environment,
        }

    def _read_log(self) -> None:
        with self._log.open("ab", buffering=0) as log, self._process.stdout:
            for line in self._process.stdout:
                if self.ready_at is None and self._sign and self._sign.encode() in line:
                    self.ready_at = time.monotonic()
                log.write(line)

    def _read_notifications(self) -> None:
        while notification := self._notifications.recv(4096):
            if self.ready_at is None and self._sign == "notify" and b"READY=1" in notification:
                self.ready_at = time.monotonic()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Wait until every message is handled, and return the figures that the process wrote.

        Raises:
            BenchError: The process ended early, or took too long.
        """
        deadline = time.monotonic() + timeout
        while not self._result.exists():
            if self._process.poll() is not None:
                raise BenchError(f"ended by itself:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise BenchError(f"not done after {timeout:.0f} s:\n{self.log_tail()}")
            time.sleep(POLL)
        time.sleep(SETTLE)
        counted: dict[str, Any] = json.loads(self._result.read_text())
        return counted

    def memory(self) -> float:
        """Return the peak resident memory of the process and its children, in MiB."""
        return sum(_peak_memory(pid) for pid in _family(self._process.pid))

    def stop(self) -> float:
        """End the process and return the CPU time of its whole life, in seconds."""
        self._process.send_signal(signal.SIGTERM)
        reaper = threading.Timer(10, self.kill)
        reaper.start()
        _, status, usage = os.wait4(self._process.pid, 0)
        reaper.cancel()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime

    def kill(self) -> None:
        """End the process and its children at once."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing behind."""
        if self._process.returncode is None:
            self.kill()
            self._process.wait()
        self._notifications.shutdown(socket.SHUT_RDWR)
        for reader in self._readers:
            reader.join()
        self._notifications.close()

    def log_tail(self, lines: int = 25) -> str:
        """Return the end of the process's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def figures(self, counted: dict[str, Any]) -> Figures:
        """Stop the process and return all figures."""
        memory = self.memory()
        waits = [value / 1e6 for value in counted["latencies_ns"][self._task.skip :]]
        cuts = statistics.quantiles(waits, n=100) if waits else None
        return Figures(
            handled=counted["handled"],
            throughput=counted["counted"] / counted["seconds"],
            cpu_per_1000=counted["cpu_seconds"] / counted["counted"] * 1000,
            memory=memory,
            first_message=counted["first_at"] - self.started_at,
            ready=self.ready_at - self.started_at if self.ready_at else None,
            total_cpu=self.stop(),
            p50=cuts[49] if cuts else None,
            p99=cuts[98] if cuts else None,
        )


@contextmanager
def running(peer: Peer, task: Task) -> Iterator[Process]:
    """Run *peer* for as long as the context lasts."""
    process = Process(peer, task)
    try:
        yield process
    finally:
        process.close()


def leave_nothing_behind() -> None:
    """Have SIGTERM end this process, and those that it started, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(path))
    return made


def _family(pid: int) -> list[int]:
    """Return a process and its descendants (proc_pid_task(5): children)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [member for child in children for member in _family(int(child))]


def _peak_memory(pid: int) -> float:
    """Return VmHWM of proc_pid_status(5), in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
