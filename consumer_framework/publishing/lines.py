# SPDX-License-Identifier: GPL-2.0-or-later
"""Read messages from lines of JSON, as other programs write them.

Three formats are known, by the keys of the object:

- ``topic`` and ``body``: that of :func:`fedora_messaging.message.dumps`, which
  ``fedora-messaging record`` and the exports of ``fm-consumer`` write, and each raw message of
  datagrepper.
- ``topic`` and ``msg``: that of fedmsg, which older records have.
- ``raw_messages``: a page of datagrepper, on one line; a list of the two formats above.

A message is read as it was recorded: its id, its time, and all its headers. The name of its class
stays, even if that class is not installed here; then its body is checked against no schema.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from fedora_messaging import message as upstream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEMA = "fedora_messaging_schema"
SEVERITY = "fedora_messaging_severity"
SENT_AT = "sent-at"
BASE = "base.message"
_KNOWN = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


class LineError(ValueError):
    """A line is no message.

    Attributes:
        cure: The cure, in words.
    """

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}; {cure}")
        self.cure = cure


@dataclass
class LineReader:
    """Reads messages from lines.

    Args:
        new_ids: Give each message a new id and the present time, as if it was published for the
            first time. Otherwise a message keeps the ones of its line.

    Attributes:
        unknown_schemas: The names of message classes that are not installed here, each with the
            number of its messages.
        kept_ids: The number of messages that kept the id of their line.
    """

    new_ids: bool = False
    unknown_schemas: dict[str, int] = field(default_factory=dict)
    kept_ids: int = 0

    def read(self, line: bytes) -> Iterator[upstream.Message]:
        """Yield the messages of *line*, which is not empty.

        Raises:
            LineError: It has none, or one of them is none.
        """
        found = parsed(line)
        if isinstance(found.get("raw_messages"), list):
            for each in found["raw_messages"]:
                if not isinstance(each, dict):
                    raise LineError("raw_messages has an entry that is no object", FORMAT)
                yield self._message(each)
        else:
            yield self._message(found)

    def _message(self, found: Mapping[str, Any]) -> upstream.Message:
        values = from_fedmsg(found) if "msg" in found and "body" not in found else found
        topic, headers, body = values.get("topic"), values.get("headers"), values.get("body")
        if "body_base64" in found:
            raise LineError("the bytes of this message were no valid message", _MEND)
        if not isinstance(topic, str) or not topic:
            raise LineError('has no "topic" that is text', FORMAT)
        if not isinstance(body, dict):
            raise LineError('has no "body" that is an object', FORMAT)
        if not isinstance(headers, dict | None):
            raise LineError('"headers" is no object', FORMAT)
        made = self._made(topic, body, headers or {})
        # fedora-messaging writes 0 for a message without a priority.
        made._properties.priority = _integer(values, "priority") or None  # noqa: SLF001 -- see below
        self._restore(made, values, headers or {})
        return made

    def _made(self, topic: str, body: dict[str, Any], headers: dict[str, Any]) -> upstream.Message:
        schema = headers.get(SCHEMA, BASE)
        if not isinstance(schema, str):
            raise LineError(f"the header {SCHEMA} is no text", FORMAT)
        severity = headers.get(SEVERITY, logging.INFO)
        if severity not in _KNOWN or isinstance(severity, bool):
            raise LineError(f"the header {SEVERITY} is {severity!r}", "use 10, 20, 30 or 40")
        kind = class_of(schema)
        if kind is None:
            self.unknown_schemas[schema] = self.unknown_schemas.get(schema, 0) + 1
        return (kind or upstream.Message)(body, topic=topic, severity=int(severity))

    def _restore(
        self, made: upstream.Message, values: Mapping[str, Any], headers: dict[str, Any]
    ) -> None:
        own = made._headers  # noqa: SLF001 -- upstream has no public name for them
        # A record has the headers that its class added, such as the packages.
        needed = (SEVERITY, SENT_AT) if SCHEMA in headers else tuple(own)
        given = {name: own[name] for name in needed}
        times = {SENT_AT: own[SENT_AT]} if self.new_ids else {}
        made._headers = {**given, **headers, **times}  # noqa: SLF001
        if self.new_ids:
            made.id = str(uuid.uuid4())
            return
        identity = values.get("id")
        if identity is None:
            return
        if not isinstance(identity, str) or not identity:
            raise LineError('"id" is no text', "write the message id as text, or leave it out")
        made.id = identity
        self.kept_ids += 1


FORMAT = "write an object with topic, body, and perhaps headers, id and priority"
_MEND = "mend it and write topic, headers and body in its place, or leave the line out"


@lru_cache(4096)
def class_of(schema: str) -> type[upstream.Message] | None:
    """Return the message class with the name *schema*, or None if it is not installed."""
    found = upstream.get_class(schema)
    return None if found is upstream.Message and schema != BASE else found


def schemas() -> list[str]:
    """Return the names of the message classes that are installed."""
    upstream.load_message_classes()
    return sorted(upstream._schema_name_to_class)  # noqa: SLF001 -- there is no public list


def parsed(line: bytes) -> dict[str, Any]:
    """Return the object of a line of JSON.

    Raises:
        LineError: There is none.
    """
    try:
        found = json.loads(line, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise LineError(f"is no UTF-8 (byte {error.start + 1})", "save it as UTF-8") from None
    except RecursionError:
        raise LineError("is nested too deeply", "write a flatter object") from None
    except ValueError as error:
        raise LineError(f"is no JSON: {error}", "write one JSON object on each line") from None
    if not isinstance(found, dict):
        raise LineError("is no JSON object", FORMAT)
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _integer(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise LineError(f'"{name}" is no integer', "write a number, or leave it out")


def from_fedmsg(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of fedmsg with the keys of fedora-messaging.

    Raises:
        LineError: Its headers are no object, or its time is none.
    """
    headers = found.get("headers") or {}
    if not isinstance(headers, dict):
        raise LineError('"headers" is no object', FORMAT)
    return {
        "topic": found.get("topic"),
        "body": found["msg"],
        "id": found.get("msg_id"),
        "headers": {SENT_AT: _moment(found.get("timestamp")), **headers},
    }


def _moment(timestamp: Any) -> str:
    """Write the time of a message of fedmsg, which is a number or text, as fedora-messaging does.

    A message without a time gets the present one.
    """
    if isinstance(timestamp, str):
        return timestamp
    try:
        at = datetime.now(UTC) if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        cure = "write seconds since the epoch"
        raise LineError(f'"timestamp" is {timestamp!r}, which is no time', cure) from None
    return at.replace(microsecond=0).isoformat()
