# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sources of ``fm-consumer top``: the instances of this host, and those of other hosts.

Both may be called from any thread, and take their time.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from consumer_framework.adapters.store import Store
from consumer_framework.adapters.store.files import DATABASE
from consumer_framework.core.errors import FrameworkError
from consumer_framework.operate.details import Details, causes_in, handlers_in, in_flight_in
from consumer_framework.operate.hosts import Hosts, last_line
from consumer_framework.operate.rows import Row, rows_of
from consumer_framework.operate.status import directories_of
from consumer_framework.runtime.control.client import LOOK_TIMEOUT, ControlError, connected
from consumer_framework.runtime.control.schema import (
    Causes,
    InFlight,
    Pause,
    Resume,
    document_of,
)

from . import status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from consumer_framework.operate.details import Cause
    from consumer_framework.operate.hosts import Way
    from consumer_framework.runtime.control.client import Client
    from consumer_framework.runtime.control.schema import Request

T = TypeVar("T")
# The reason of a pause, for the log and the status.
_REASON = "with fm-consumer top"


class Source(ABC):
    """Instances to look at, and to pause."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """Return the rows of all instances.

        Raises:
            FrameworkError: Nothing can be asked.
        """

    @abstractmethod
    def details(self, row: Row) -> Details:
        """Return the details of an instance."""

    @abstractmethod
    def order(self, row: Row, verb: str) -> str:
        """Carry out ``pause`` or ``resume``, and return one line about it.

        Raises:
            FrameworkError: It was refused.
        """

    def close(self) -> None:  # noqa: B027 -- most have nothing that waits
        """Let go of everything that waits."""


@dataclass(slots=True)
class _Collector:
    """Collects the parts of details, and the reasons why some could not be asked."""

    problems: list[str] = field(default_factory=list)

    def part(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (FrameworkError, OSError, ValueError) as error:
            self.problems.append(str(error))
            return None

    @property
    def problem(self) -> str:
        return "; ".join(dict.fromkeys(self.problems))


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
        found = status.look(self._names, self._state_dir, LOOK_TIMEOUT)
        return rows_of(status.document(found))

    def details(self, row: Row) -> Details:
        """Ask the instance itself; one that does not run has its store."""
        found = _Collector()
        answer = found.part(lambda: self._asked(row.name, lambda client: _details(client, found)))
        if answer is None:
            answer = Details(causes=found.part(lambda: self._stored_causes(row.name)))
        return replace(answer, problem=found.problem)

    def order(self, row: Row, verb: str) -> str:
        """Send the order to the instance itself."""
        request = Pause(_REASON) if verb == "pause" else Resume()
        # It has the time of any order.
        report = self._asked(row.name, lambda client: next(iter(client.ask(request))), None)
        if report is None:
            raise ControlError(f"{row.name} does not run")
        return f"{row.name}: {'; '.join(report.reasons) or 'takes messages'}"

    def _asked(
        self, name: str, ask: Callable[[Client], T], timeout: float | None = LOOK_TIMEOUT
    ) -> T | None:
        for directory in directories_of(name, self._state_dir):
            with connected(directory, name, timeout) as client:
                if client is not None:
                    return ask(client)
        return None

    def _stored_causes(self, name: str) -> tuple[Cause, ...]:
        for directory in directories_of(name, self._state_dir):
            if (directory / DATABASE).exists():
                with closing(Store.read(directory)) as store:
                    return causes_in([asdict(group) for group in store.groups()])
        return ()


def _details(client: Client, found: _Collector) -> Details:
    """Ask a running instance for its details."""

    def answer(request: Request[T]) -> dict[str, Any]:
        return document_of(next(iter(client.ask(request))))

    return Details(
        found.part(lambda: in_flight_in(answer(InFlight()))),
        found.part(lambda: handlers_in(_samples(client.page("/metrics")))),
        found.part(lambda: causes_in(answer(Causes()).get("causes"))),
    )


def _samples(page: str) -> list[dict[str, Any]]:
    return [
        {"name": sample.name, "labels": sample.labels, "value": sample.value}
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]


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

    def details(self, row: Row) -> Details:
        """Ask the host, command by command."""
        found = _Collector()

        def document(*words: str) -> Any:
            return json.loads(self._ssh.run(row.host, [*words, row.name, "--json"]))

        return Details(
            found.part(lambda: in_flight_in(document("in-flight"))),
            found.part(lambda: handlers_in(document("metrics"))),
            found.part(lambda: causes_in(document("quarantine", "list"))),
            found.problem,
        )

    def order(self, row: Row, verb: str) -> str:
        """Give the order there."""
        reason = ("--reason", _REASON) if verb == "pause" else ()
        return last_line(self._ssh.run(row.host, [verb, row.name, *reason]))

    def close(self) -> None:
        """End the connections."""
        self._ssh.close()


def _silent(host: str, problem: str) -> Row:
    condition = "no answer" if problem else "no instance"
    return Row(
        host, "", "", is_active=False, should_run=bool(problem), condition=condition, reason=problem
    )
