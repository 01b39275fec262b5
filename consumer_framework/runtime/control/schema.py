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

from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.secrets import redacted

from .answers import (
    VERSION,
    Begun,
    CausesReport,
    Counts,
    Dropped,
    Edited,
    GateReport,
    Happened,
    InFlightReport,
    LogLevelReport,
    MessageInFlight,
    Missed,
    OutboxReport,
    Pong,
    QuarantineReport,
    RampEnded,
    RampReport,
    RelayStatusReport,
    ReloadReport,
    Replayed,
    RouteReport,
    Selected,
    SettingsReport,
    Stack,
    StackFrame,
    StacksReport,
    Stage,
    StatusReport,
    Step,
    StoredMessage,
    Watching,
)

__all__ = [
    "VERSION",
    "AnswerT",
    "Begun",
    "Causes",
    "CausesReport",
    "Conditions",
    "ConflictError",
    "Counts",
    "Done",
    "Drop",
    "Dropped",
    "Edit",
    "Edited",
    "Events",
    "FileText",
    "GateReport",
    "Happened",
    "InFlight",
    "InFlightReport",
    "ListSettings",
    "LogLevel",
    "LogLevelReport",
    "MessageInFlight",
    "Missed",
    "OutboxReport",
    "Pause",
    "Ping",
    "Pong",
    "ProtocolError",
    "Quarantine",
    "QuarantineReport",
    "RampEnded",
    "RampReport",
    "RelayStatus",
    "RelayStatusReport",
    "Reload",
    "ReloadReport",
    "Replay",
    "Replayed",
    "Request",
    "Resume",
    "RouteReport",
    "RowNumber",
    "Selected",
    "Selection",
    "SettingsReport",
    "Show",
    "ShowReplay",
    "Stack",
    "StackFrame",
    "Stacks",
    "StacksReport",
    "Stage",
    "Status",
    "StatusReport",
    "Step",
    "StoredMessage",
    "Watching",
    "answers_of",
    "checked",
    "decode_answer",
    "document_in",
    "document_of",
    "encode_answer",
]

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
        state: Those in this state, or in any.
        topic: Those of these topics; ``*`` stands for any text; "" for all.
        fingerprint: Those of this cause; "" for all.
        queue: Those of this queue; "" for all.
        where: Those for which all these conditions hold, such as ``error~timeout``.
        after: Those with a greater row.
        limit: So many at most.
    """

    state: Literal["quarantined", "deferred", "replaying", "superseded", "any"] = "quarantined"
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
    """Show one message of the store.

    Attributes:
        row: Its row.
        raw: Show the bytes and the AMQP properties of the message, and not its JSON.
    """

    row: RowNumber
    raw: bool = False


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
