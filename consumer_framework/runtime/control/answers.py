# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers of a running instance to operators; :mod:`.schema` has the requests.

Import them from :mod:`.schema`, which has everything of a request and its answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from consumer_framework.adapters.store import Group, Row  # noqa: TC001 -- pydantic reads it
from consumer_framework.core.attempt import Attempt  # noqa: TC001 -- likewise
from consumer_framework.core.errors import Problem  # noqa: TC001 -- likewise
from consumer_framework.core.loss import Loss  # noqa: TC001 -- pydantic reads it
from consumer_framework.core.stats import Snapshot
from consumer_framework.publishing.report import RelayReport  # noqa: TC001 -- pydantic reads it
from consumer_framework.settings import Change, Setting, Takes

# Of the protocol.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Pong:
    """The process that listens.

    Attributes:
        pong: Always true.
        version: The version of the API, as in the paths.
        product: The version of consumer_framework; "" where it is not known.
        instance: The name of the instance, or of the relay.
        pid: The number of the process.
    """

    pong: bool = True
    version: int = VERSION
    product: str = ""
    instance: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Counts(Snapshot):
    """The counts since the instance started, and the number of handlers that run now."""

    running: int = 0


@dataclass(frozen=True, slots=True)
class OutboxReport:
    """The outbox of an instance, and its relay.

    Attributes:
        state: ``"starting"``, ``"sending"``, ``"waiting"``, ``"standby"`` or ``"failing"``.
        trouble: The reason for ``"waiting"`` or ``"failing"``; "" for none.
        endpoint: ``HOST:PORT`` of the broker that the relay sends to; "" without one.
        published: Messages that handlers published, since the instance started.
        sent: Messages that the relay sent since then.
        unroutable: Those of them that no queue got.
        skipped: Messages that were discarded, because they were not to wait.
        waiting: Messages that wait in the outbox; None if they were not counted yet.
        dead: Messages there that can never be sent.
        oldest: Seconds since the oldest waiting message was published; None for none.
    """

    state: str = ""
    trouble: str = ""
    endpoint: str = ""
    published: int = 0
    sent: int = 0
    unroutable: int = 0
    skipped: int = 0
    waiting: int | None = None
    dead: int = 0
    oldest: float | None = None


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The state of an instance; see docs/reference/cli.md.

    Attributes:
        pid: Its process.
        state: The name of its :class:`.State`, in lower case.
        status: The line that ``systemctl status`` shows.
        trouble: The reason why it does not consume; "" for none.
        condition: The name of its :class:`.InstanceCondition`, in lower case; "" if the instance
            is older than this field.
        reason: The reason for the condition; "" for none.
        remarks: Other parts of that line.
        broker: ``HOST:PORT``.
        queues: The queues that it consumes from.
        held: The number of messages that are held now.
        lag: The number of messages that were ready in its queues; None where nobody asked.
        lag_seconds: The age of the oldest message that waits; None where it is not known.
        lag_source: The origin of that age: ``"message"``, the time in the message itself, or
            ``"estimate"``, the lag divided by the rate; "" where the age is not known.
        loss: The next loss, if nothing changes; None if there is none in sight.
        rate: Messages handled in a second, lately.
        up: Seconds since it started.
        counts: The counts since then.
        deferred: The number of deferred messages in its store.
        quarantined: The number of messages in its store that wait for an operator.
        next_due: When the first deferred message is due, in seconds since the epoch.
        outbox: The messages that its handlers published; None if none did.
    """

    pid: int = 0
    state: str = ""
    status: str = ""
    trouble: str = ""
    condition: str = ""
    reason: str = ""
    remarks: tuple[str, ...] = ()
    broker: str = ""
    queues: tuple[str, ...] = ()
    held: int = 0
    lag: int | None = None
    lag_seconds: float | None = None
    lag_source: str = ""
    loss: Loss | None = None
    rate: float = 0.0
    up: int = 0
    counts: Counts = field(default_factory=Counts)
    deferred: int = 0
    quarantined: int = 0
    next_due: float | None = None
    outbox: OutboxReport | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """The rows that were dropped."""

    dropped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Edited:
    """The row of the edited copy; None where the original is no longer quarantined."""

    row: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One line about the event that the instance waits for before it goes on."""

    step: str


@dataclass(frozen=True, slots=True)
class Selected:
    """The number of rows that a replay is about: those of a condition, or those that are left."""

    selected: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a replay begins.

    Attributes:
        stage: Its number, from 1.
        stages: The number of stages.
        percent: The percentage of all rows that have run at its end.
        rows: The number of its rows that have not run yet.
    """

    stage: int
    stages: int
    percent: float
    rows: int


@dataclass(frozen=True, slots=True)
class RampEnded:
    """The end of a replay in stages.

    Attributes:
        ended: ``done``; ``stopped`` by its limit of failures; ``interrupted`` by the operator, or
            by the instance, which stops or pauses. All but the first can go on later.
        reason: The reason, for people; "" for none.
        left: The number of rows that have not run.
    """

    ended: str
    reason: str
    left: int


@dataclass(frozen=True, slots=True)
class RampReport:
    """The replay in stages that is under way, or that can go on.

    Attributes:
        started: When it began, in seconds since the epoch.
        rows: The number of its rows.
        ran: Those that have run.
        succeeded: Those of them that succeeded, or were dropped by the handler.
        failed: Those of them that failed again.
        ramp: Its stages, as percentages of its rows.
        rate: Rows in a second at most; None for no limit.
        stop_at: The percentage of a stage's rows that may not fail; None for no limit.
        running: Whether any replay is under way.
    """

    started: float
    rows: int
    ran: int
    succeeded: int
    failed: int
    ramp: tuple[float, ...]
    rate: float | None
    stop_at: float | None
    running: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """The row that begins to run."""

    begun: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of a row: ``succeeded``, ``failed``, ``skipped``, or the name of a disposition."""

    row: int
    result: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The result of a reload.

    Attributes:
        result: ``refused``, ``unchanged`` or ``reloaded``.
        changes: The differences between the file and the settings that were in force.
        problems: The reasons for a refusal; none otherwise.
        notes: Credentials that could not be read again.
    """

    result: str
    changes: tuple[Change, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def waiting(self) -> tuple[Change, ...]:
        """Return the changes that wait for a restart."""
        return tuple(change for change in self.changes if change.takes is Takes.RESTART)


@dataclass(frozen=True, slots=True)
class RelayStatusReport:
    """The state of a relay.

    Attributes:
        pid: Its process.
        relay: The facts.
        remarks: Other parts of its line, such as a reload that was refused.
    """

    relay: RelayReport
    pid: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The line that ``systemctl status`` shows."""
        return "; ".join([self.relay.line, *self.remarks])


@dataclass(frozen=True, slots=True)
class MessageInFlight:
    """A message that the handler has.

    Attributes:
        message_id: Its id; "" for none.
        topic: Its routing key.
        queue: The queue that it came from.
        route: The route of the consumer that has it; "" for none.
        row: Its row in the store; 0 if it came from the broker.
        attempt: The number of this run of the handler on it.
        age: Seconds since the handler got it.
        slot: The thread that has it; "" for a coroutine.
        place: The function of the consumer that runs, with its file and line; "" if not known.
    """

    message_id: str
    topic: str
    queue: str
    route: str
    row: int
    attempt: int
    age: float
    slot: str
    place: str


@dataclass(frozen=True, slots=True)
class InFlightReport:
    """The messages that the handler has, the longest first."""

    messages: tuple[MessageInFlight, ...]


@dataclass(frozen=True, slots=True)
class StackFrame:
    """A function that runs, or that waits for the one after it."""

    function: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The functions of a thread or a task, the outermost first."""

    name: str
    frames: tuple[StackFrame, ...]


@dataclass(frozen=True, slots=True)
class StacksReport:
    """The stacks of the process at one moment.

    Attributes:
        threads: Those of all threads.
        tasks: Those of the tasks of the event loop; none in a process without one.
    """

    threads: tuple[Stack, ...]
    tasks: tuple[Stack, ...] = ()


@dataclass(frozen=True, slots=True)
class Watching:
    """The stream of events has begun; its instance."""

    watching: str


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of the instance.

    Attributes:
        event: ``ran``, ``settled``, ``state`` or ``paused``.
        at: Seconds since the epoch.
        result: Of ``ran`` the outcome, of ``settled`` the disposition, of ``state`` the new state,
            of ``paused`` ``paused`` or ``resumed``.
        reason: The error or the reason, in words; "" for none.
        message_id: The message's id; "" for none.
        topic: Its routing key; "" for no message.
        queue: The queue that it came from; "" for no message.
        attempt: The number of the run; 0 for no message.
    """

    event: str
    at: float
    result: str
    reason: str = ""
    message_id: str = ""
    topic: str = ""
    queue: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Missed:
    """The number of events that the client read too slowly to get."""

    missed: int


@dataclass(frozen=True, slots=True)
class SettingsReport:
    """The settings in force, without secrets."""

    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class GateReport:
    """The reasons for which the instance takes no messages, if there are any.

    Attributes:
        state: The name of its state, in lower case.
        is_paused: True if an operator has paused it.
        reasons: The reasons for which it takes nothing, in words; none if it takes messages.
        running: The number of messages that the handler still has.
    """

    state: str
    is_paused: bool
    reasons: tuple[str, ...]
    running: int


@dataclass(frozen=True, slots=True)
class LogLevelReport:
    """The level of a logger.

    Attributes:
        logger: Its name; "" for the whole log.
        level: The level that is in force now.
        former: The level that comes back.
        until: When it comes back, in seconds since the epoch.
    """

    logger: str
    level: str
    former: str
    until: float


@dataclass(frozen=True, slots=True)
class QuarantineReport:
    """Messages of the store, in the order in which they were first written.

    Attributes:
        rows: The messages, without their bodies.
        next: Give it as ``after`` for the messages that follow; None if there are none.
    """

    rows: tuple[Row, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class CausesReport:
    """The causes of the quarantined messages, the most frequent first."""

    causes: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of the store, with its failures.

    Attributes:
        row: The facts about it.
        message: The message, as ``fedora-messaging publish`` reads it. One that is no valid message
            has its bytes in ``body_base64``.
        failures: Its failed attempts, with their tracebacks.
        steps: The steps that are done, and that a replay skips, with their results.
    """

    row: Row
    message: dict[str, Any]
    failures: tuple[Attempt, ...]
    steps: dict[str, Any]
