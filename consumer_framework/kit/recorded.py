# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded messages, as deliveries: each one as a broker would deliver it.

These formats are known, all of them JSON, by the keys of the object:

- ``topic`` and ``body``: that of :func:`fedora_messaging.message.dumps`, which
  ``fedora-messaging record``, ``fm-consumer record``, ``fm-consumer tail --json`` and the exports
  write, and each raw message of datagrepper (``/v2/search``, ``/v2/id``).
- ``topic`` and ``msg``: that of fedmsg, which older records and datagrepper's first interface have.
- ``body_base64`` and ``properties``: an export of bytes that are no valid message.
- ``raw_messages``: a page of datagrepper, with a list of messages.

A file has one object on each line. A file whose first line is no whole document may be written
with indents, as ``http`` and ``jq`` do: a page, a message, a list of messages, or several of them.

A message is not judged here. Its body may be no object, and its headers may be incomplete: the
consumer has to cope with it, as it has with the real one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pika

from consumer_framework.adapters.store.properties import unpack
from consumer_framework.core.delivery import Delivery
from consumer_framework.core.text import clipped, printable
from consumer_framework.publishing.lines import FORMAT, LineError, from_fedmsg, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import IO

    from consumer_framework.core.delivery import Properties

STANDARD_INPUT = "-"
# AMQP 0-9-1, section 4.2.5.3: the most bytes of a topic and of a message id.
_SHORT_STRING = 255
_LONGEST_REASON = 400
_SPACE = re.compile(r"\s*")
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded message.

    Attributes:
        file: The name of its file, as the caller gave it.
        line: The number of the line that it begins on, or of its page, from 1.
        delivery: The message.
    """

    file: str
    line: int
    delivery: Delivery


class BadRecordError(ValueError):
    """A line, or an entry of a page, is no message. The text has the file, the line and a cure.

    Attributes:
        file: The name of the file.
        line: The number of the line, from 1.
    """

    def __init__(self, file: str, line: int, reason: str) -> None:
        super().__init__(f"{file}:{line}: {clipped(printable(reason), _LONGEST_REASON)}")
        self.file = file
        self.line = line


def read(path: Path, queues: Sequence[str] = ()) -> Iterator[Recorded | BadRecordError]:
    """Yield the messages of a file in their order, and an error for each line that is none.

    Args:
        path: The file; ``-`` for standard input.
        queues: The queues of the consumer. A message that was recorded from another one is
            delivered from the first of them.

    Raises:
        OSError: The file cannot be read.
    """
    name = str(path)
    if name == STANDARD_INPUT:
        yield from _messages("standard input", sys.stdin.buffer, queues)
        return
    with path.open("rb") as stream:
        yield from _messages(name, stream, queues)


def _messages(
    name: str, stream: IO[bytes], queues: Sequence[str]
) -> Iterator[Recorded | BadRecordError]:
    for line, found in _objects(stream):
        if isinstance(found, LineError):
            yield BadRecordError(name, line, str(found))
            continue
        for each in _entries(found):
            try:
                yield Recorded(name, line, delivery_of(each, queues))
            except LineError as error:
                yield BadRecordError(name, line, str(error))


def _entries(found: Any) -> list[Any]:
    if isinstance(found, dict) and isinstance(found.get("raw_messages"), list):
        return cast("list[Any]", found["raw_messages"])
    return found if isinstance(found, list) else [found]


# Lines, or one document with indents.


def _objects(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield the values of a file, each with the number of its line."""
    is_first = True
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        found = _value(line)
        if is_first and isinstance(found, LineError) and _may_go_on(line):
            whole = line + stream.read()
            documents = _documents(whole, number)
            yield from _lines(whole, number) if documents is None else documents
            return
        is_first = False
        yield number, found


def _may_go_on(line: bytes) -> bool:
    """Return true if a document may begin in *line* and go on below it, or if it has several.

    Otherwise a file of any size would be read into memory for a first line that is damaged.
    """
    try:
        text = line.decode().rstrip()
        _decode(text, len(text) - len(text.lstrip()))
    except json.JSONDecodeError as error:
        return error.pos >= len(text) - 1
    except (ValueError, RecursionError):
        return False
    return True


def _lines(whole: bytes, first: int) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(whole.split(b"\n"), first):
        if line.strip():
            yield number, _value(line)


def _value(line: bytes) -> Any:
    try:
        if line.lstrip()[:1] == b"[":
            return json.loads(line)
        return parsed(line)
    except LineError as error:
        return error
    except (ValueError, RecursionError) as error:
        return LineError(f"is no JSON: {error}", "write one JSON object on each line")


def _documents(whole: bytes, first: int) -> list[tuple[int, Any]] | None:
    """Return the documents of a text with indents; None if it is none."""
    found: list[tuple[int, Any]] = []
    number, position = first, 0
    try:
        text = whole.decode()
        while True:
            space = _SPACE.match(text, position)
            begin = space.end() if space else position
            number += text.count("\n", position, begin)
            if begin == len(text):
                break
            value, position = _decode(text, begin)
            found.append((number, value))
            number += text.count("\n", begin, position)
    except (ValueError, RecursionError):
        return None
    return found if all(isinstance(value, dict | list) for _, value in found) else None


# One object.


def delivery_of(found: Any, queues: Sequence[str] = ()) -> Delivery:
    """Return the message of one object of JSON as a delivery.

    Args:
        found: The object.
        queues: As for :func:`read`.

    Raises:
        LineError: It is no message.
    """
    if not isinstance(found, dict):
        raise LineError("is no JSON object", FORMAT)
    if "damaged" in found:
        raise LineError("is a damaged row of a store: parts of it are lost", "leave it out")
    if "msg" in found and "body" not in found:
        found = from_fedmsg(found)
    topic = _short(found, "topic")
    if not topic:
        raise LineError('has no "topic" that is text', FORMAT)
    properties, body = _raw(found) if "body_base64" in found else _readable(found)
    given = found.get("queue")
    own = queues[0] if queues else "recorded"
    return Delivery(
        queue=given if isinstance(given, str) and (given in queues or not queues) else own,
        generation=0,
        delivery_tag=0,
        redelivered=False,
        exchange="amq.topic",
        routing_key=topic,
        properties=properties,
        body=body,
    )


def _short(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise LineError(f'"{name}" is no text', f"write the {name} as text")
    if len(value.encode(errors="surrogatepass")) > _SHORT_STRING:
        raise LineError(f'"{name}" has more than {_SHORT_STRING} bytes', "no broker takes it")
    return value


def _readable(found: dict[str, Any]) -> tuple[Properties, bytes]:
    if "body" not in found:
        raise LineError('has no "body"', FORMAT)
    headers = found.get("headers")
    if not isinstance(headers, dict | None):
        raise LineError('"headers" is no object', FORMAT)
    priority = found.get("priority")
    if isinstance(priority, bool) or not isinstance(priority, int | None):
        raise LineError('"priority" is no integer', "write a number, or leave it out")
    properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
        delivery_mode=2,
        # fedora-messaging writes 0 for a message without a priority.
        priority=priority or None,
        message_id=_short(found, "id") or None,
    )
    return properties, _body(found["body"])


def _body(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair has an escape in JSON, and no bytes in UTF-8.
        return json.dumps(value).encode()


def _raw(found: dict[str, Any]) -> tuple[Properties, bytes]:
    cure = "take the line from 'fm-consumer quarantine export' as it is"
    try:
        body = base64.b64decode(found["body_base64"], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise LineError(f'"body_base64" is no base64: {error}', cure) from None
    try:
        return unpack(json.dumps(found["properties"])), body
    except Exception as error:  # noqa: BLE001 -- anything may stand there
        raise LineError(f'"properties" cannot be read ({type(error).__name__})', cure) from None
