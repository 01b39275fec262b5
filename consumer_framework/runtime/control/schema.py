# SPDX-License-Identifier: GPL-2.0-or-later
"""The requests that a running instance takes from operators, and its answers.

Each is a frozen dataclass, and a JSON object on the wire. A request names its answers by its type
parameter: one answer, or a stream of any number of them. :mod:`.routes` has the method and the path
of each request; :func:`answers_of` lists the answers to one.

Both sides ignore fields that they do not know, and give those that are missing their defaults. So a
command and an instance of neighboring releases understand each other.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from functools import cache
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar, Union, cast, get_args

from pydantic import Field, SkipValidation, TypeAdapter, ValidationError

from consumer_framework.adapters.store import Group, Row  # noqa: TC001 -- pydantic reads it
from consumer_framework.core.attempt import Attempt  # noqa: TC001 -- likewise
from consumer_framework.core.errors import FrameworkError, Problem
from consumer_framework.core.loss import Loss  # noqa: TC001 -- pydantic reads it
from consumer_framework.core.secrets import redacted
from consumer_framework.core.stats import Snapshot
from consumer_framework.publishing.report import RelayReport  # noqa: TC001 -- pydantic reads it
from consumer_framework.settings import Change, Setting, Takes

VERSION = 1

AnswerT = TypeVar("AnswerT", covariant=True)  # noqa: PLC0105 -- as typing's own are named


class ProtocolError(FrameworkError):
    """The other side sent a text that this side does not understand.

    Args:
        message: One line that says why.
    """


class ConflictError(ProtocolError):
    """The request does not fit the state of the instance; nothing was done.

    Args:
        message: One line that says why, and the cure.
    """


@dataclass(frozen=True, slots=True)
class Request(Generic[AnswerT]):
    """A request; its type parameter is the union of its answers."""


# The answers.


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
    """What keeps the instance from taking messages.

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


# The requests.

# The number of a row, as SQLite has it.
RowNumber: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
# Few and short, since the instance takes its time to read them.
Conditions: TypeAlias = Annotated[
    tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=20)
]
_Reason: TypeAlias = Annotated[str, Field(max_length=500)]
# Seconds, to a day.
_Duration: TypeAlias = Annotated[float, Field(gt=0, le=86400)]


@dataclass(frozen=True, slots=True)
class Ping(Request[Pong]):
    """Name the process that listens, and its versions."""


@dataclass(frozen=True, slots=True)
class Status(Request[StatusReport]):
    """Report the state of the instance."""


@dataclass(frozen=True, slots=True)
class RelayStatus(Request[RelayStatusReport]):
    """Report the state of the relay of this process."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that a request is about, in one of three ways.

    Attributes:
        rows: Their numbers.
        where: Conditions that all hold, such as ``error~timeout``; the rows are the quarantined
            ones that fit.
        everything: All quarantined rows.
        expect: The number of rows that the operator has seen. The request is refused if there are
            more or fewer now. None: any number will do.
    """

    rows: tuple[RowNumber, ...] = ()
    where: Conditions = ()
    everything: bool = False
    expect: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Drop(Request[Dropped], Selection):
    """Lose these rows for ever."""


@dataclass(frozen=True, slots=True)
class Edit(Request[Edited]):
    """Let a copy with this JSON body stand for a quarantined row."""

    row: RowNumber
    body: Any


@dataclass(frozen=True, slots=True)
class Replay(Request[Step | Selected | Stage | Begun | Replayed | RampEnded], Selection):
    """Run these rows again, one after the other, oldest first.

    A replay in stages, or with a limit of any kind, is kept in the store until it is done.

    Attributes:
        first: Only so many of the rows, the oldest ones; None for all.
        ramp: The stages, as rising percentages of all rows; none for one stage.
        rate: Rows in a given time at most, such as ``10/s``; "" for no limit.
        stop_at: The percentage of a stage's rows that may not fail; None for no limit.
        resume: Go on with the replay in stages that was stopped or interrupted, as it was begun.
    """

    first: Annotated[int, Field(ge=1)] | None = None
    ramp: Annotated[tuple[float, ...], Field(max_length=100)] = ()
    rate: str = ""
    stop_at: float | None = None
    resume: bool = False

    @property
    def is_ramp(self) -> bool:
        """Tell if it has stages, or a limit."""
        return bool(self.ramp or self.rate or self.stop_at is not None)

    @property
    def is_kept(self) -> bool:
        """Tell if the store keeps it until it is done."""
        return self.is_ramp or self.resume


@dataclass(frozen=True, slots=True)
class FileText:
    """A configuration file that only root may read.

    Attributes:
        path: Its absolute path.
        text: Its bytes as text; those that are no UTF-8 are surrogates (:pep:`383`).
    """

    path: str
    text: SkipValidation[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reload(Request[Step | ReloadReport]):
    """Read the configuration again, or take the text of the file that comes with the request."""

    file: FileText | None = None


@dataclass(frozen=True, slots=True)
class InFlight(Request[InFlightReport]):
    """List the messages that the handler has."""


@dataclass(frozen=True, slots=True)
class Stacks(Request[StacksReport]):
    """Show the functions that every thread and every task is in."""


@dataclass(frozen=True, slots=True)
class Events(Request[Watching | Happened | Missed]):
    """Tell of each event as it happens, until the client goes away.

    Attributes:
        kinds: The events to tell of: ``ran``, ``settled``, ``state``, ``paused``; none for all.
    """

    kinds: tuple[Literal["ran", "settled", "state", "paused"], ...] = ()


@dataclass(frozen=True, slots=True)
class ListSettings(Request[SettingsReport]):
    """List the settings in force."""


@dataclass(frozen=True, slots=True)
class Pause(Request[GateReport]):
    """Take no more messages; those that the handler has are finished.

    Messages that wait go back to their queue, and rows of the store stay in it. Only a replay of an
    operator runs. A restart ends the pause; a reload does not.

    Attributes:
        reason: The reason, for the log and the status.
    """

    reason: _Reason = ""


@dataclass(frozen=True, slots=True)
class Resume(Request[GateReport]):
    """End the pause that an operator ordered."""


@dataclass(frozen=True, slots=True)
class LogLevel(Request[LogLevelReport]):
    """Log with another level for a while.

    Attributes:
        level: The level.
        seconds: Its former level comes back after so many seconds.
        logger: The logger; "" for the whole log.
    """

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    seconds: _Duration = 600.0
    logger: Annotated[str, Field(max_length=200)] = ""


@dataclass(frozen=True, slots=True)
class Quarantine(Request[QuarantineReport]):
    """List messages of the store.

    Attributes:
        state: Those in this state.
        topic: Those of these topics; ``*`` stands for any text; "" for all.
        fingerprint: Those of this cause; "" for all.
        queue: Those of this queue; "" for all.
        where: Those for which all these conditions hold, such as ``error~timeout``.
        after: Those with a greater row.
        limit: So many at most.
    """

    state: Literal["quarantined", "deferred", "replaying", "superseded"] = "quarantined"
    topic: str = ""
    fingerprint: str = ""
    queue: str = ""
    where: Conditions = ()
    after: RowNumber = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


@dataclass(frozen=True, slots=True)
class Causes(Request[CausesReport]):
    """List the causes of the quarantined messages.

    Attributes:
        where: Count only messages for which all these conditions hold.
    """

    where: Conditions = ()


@dataclass(frozen=True, slots=True)
class ShowReplay(Request[RampReport]):
    """Report the replay in stages that is under way, or that can go on."""


@dataclass(frozen=True, slots=True)
class Show(Request[StoredMessage]):
    """Show one message of the store."""

    row: RowNumber


def answers_of(kind: type[Request[Any]]) -> tuple[type, ...]:
    """Return the types of the answers to a request."""
    (answers,) = get_args(kind.__orig_bases__[0])  # type: ignore[attr-defined]
    return get_args(answers) or (answers,)


# JSON.


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream of answers, with one line about the error, if there was one."""

    done: bool = True
    error: str | None = None


def encode_answer(answer: object) -> bytes:
    """Return the JSON of an answer, or of :class:`Done`, on one line and without secrets."""
    return json.dumps(redacted(document_of(answer))).encode()


def decode_answer(request: Request[AnswerT], text: bytes) -> AnswerT | Done:
    """Read the JSON of an answer to *request*.

    Raises:
        ProtocolError: It is none.
    """
    document = document_in(text)
    kinds = (Done,) if document.get("done") is True else answers_of(type(request))
    return cast("AnswerT | Done", checked(kinds, document, "the answer is not understood"))


def document_of(value: Any) -> dict[str, Any]:
    """Return a request or an answer as a JSON object."""
    document = asdict(value, dict_factory=_object)
    # A part that was not given is left out; the null of another answer means something.
    if isinstance(value, Request | Done):
        for part in fields(value):
            if getattr(value, part.name) == part.default and part.name != "done":
                del document[part.name]
    return document


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.value if isinstance(value, Enum) else value for key, value in items}


def document_in(text: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ProtocolError: It is none.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ProtocolError("no JSON object")
    return document


def checked(kinds: tuple[type, ...], document: dict[str, Any], wrong: str) -> object:
    """Make one of *kinds* of a JSON object.

    Args:
        kinds: Dataclasses; the first that fits is made.
        document: The object.
        wrong: The beginning of the error's text.

    Raises:
        ProtocolError: None of *kinds* fits.
    """
    try:
        return _adapter(kinds).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ProtocolError(f"{wrong}: {place}: {first['msg']}".replace("\n", " ")) from None


@cache
def _adapter(kinds: tuple[type, ...]) -> TypeAdapter[object]:
    return TypeAdapter(Union[kinds])  # type: ignore[arg-type]  # noqa: UP007 -- a tuple
