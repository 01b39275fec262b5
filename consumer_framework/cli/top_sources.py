# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sources of ``fm-consumer top``: the instances of this host, and those of other hosts.

Both may be called from any thread, and take their time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import FrameworkError
from consumer_framework.operate.details import Details, causes_in, in_flight_in
from consumer_framework.operate.hosts import Hosts, HostsError, last_line
from consumer_framework.operate.rows import Row, rows_of

from . import status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consumer_framework.operate.hosts import Way

# Seconds for a command on this host.
_PATIENCE = 30.0
_PROGRAM = (sys.executable, "-c", "from consumer_framework.cli import main; main()")


class Source(ABC):
    """Instances to look at, and to pause."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """Return the rows of all instances.

        Raises:
            FrameworkError: Nothing can be asked.
        """

    @abstractmethod
    def run(self, host: str, words: Sequence[str]) -> str:
        """Run ``fm-consumer`` with *words* where the instance is, and return its output.

        Raises:
            FrameworkError: It failed; with its last line.
        """

    def close(self) -> None:  # noqa: B027 -- most have nothing that waits
        """Let go of everything that waits."""

    def details(self, row: Row) -> Details:
        """Return the details of an instance."""
        problems = []
        in_flight = causes = None
        try:
            in_flight = in_flight_in(self._document(row, "in-flight", row.name))
        except (FrameworkError, ValueError) as error:
            problems.append(str(error))
        try:
            causes = causes_in(self._document(row, "quarantine", "list", row.name))
        except (FrameworkError, ValueError) as error:
            problems.append(str(error))
        return Details(in_flight, causes, "; ".join(dict.fromkeys(problems)))

    def order(self, row: Row, verb: str) -> str:
        """Carry out ``pause`` or ``resume``, and return one line about it.

        Raises:
            FrameworkError: It was refused.
        """
        reason = ("--reason", "fm-consumer top") if verb == "pause" else ()
        return last_line(self.run(row.host, [verb, row.name, *reason]))

    def _document(self, row: Row, *words: str) -> Any:
        return json.loads(self.run(row.host, [*words, "--json"]))


class ThisHost(Source):
    """The instances of this host.

    Args:
        names: Instances; none for all.
        state_dir: The state directory of the one instance in *names*; None for the usual places.
    """

    def __init__(self, names: tuple[str, ...], state_dir: Path | None) -> None:
        self._names = names
        self._state_dir = state_dir

    def rows(self) -> list[Row]:
        """Ask the instances themselves, and systemd."""
        from consumer_framework.runtime.control.client import LOOK_TIMEOUT  # noqa: PLC0415

        found = status.look(self._names, self._state_dir, LOOK_TIMEOUT)
        return rows_of(status.document(found))

    def run(self, host: str, words: Sequence[str]) -> str:  # noqa: ARG002 -- there is one
        """Run the command as another process."""
        more = ["--state-dir", str(self._state_dir)] if self._state_dir else []
        try:
            done = subprocess.run(  # noqa: S603 -- this very program
                [*_PROGRAM, *words, *more],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise HostsError(f"no answer within {_PATIENCE:.0f} s") from None
        if done.returncode:
            raise HostsError(last_line(done.stderr) or f"exit code {done.returncode}")
        return done.stdout


class OtherHosts(Source):
    """The instances of other hosts.

    Args:
        hosts: Their names, as ssh takes them.
        names: Instances; none for all.
        way: The way to the hosts.
    """

    def __init__(self, hosts: Sequence[str], names: Sequence[str], way: Way) -> None:
        self._names = names
        self._hosts = hosts
        self._ssh = Hosts(way)

    def rows(self) -> list[Row]:
        """Ask all hosts at once; one that does not answer is a row."""
        answers = self._ssh.ask_all(self._hosts, self._names)
        return [
            row
            for answer in answers
            for row in answer.rows or [_silent(answer.host, answer.problem)]
        ]

    def run(self, host: str, words: Sequence[str]) -> str:
        """Run the command there."""
        return self._ssh.run(host, words)

    def close(self) -> None:
        """End the connections."""
        self._ssh.close()


def _silent(host: str, problem: str) -> Row:
    condition = "no answer" if problem else "no instance"
    return Row(
        host, "", "", is_active=False, should_run=bool(problem), condition=condition, reason=problem
    )
