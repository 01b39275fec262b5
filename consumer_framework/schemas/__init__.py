# SPDX-License-Identifier: GPL-2.0-or-later
"""Validate messages by the schemas of their classes, as upstream does, in less time.

:func:`validate` does the work of ``message.validate()`` with the same verdicts and errors. Upstream
checks the schemas themselves each time that it checks a message. Here each schema is checked and
compiled once, by :mod:`.jsonschema`, a compiler that imports nothing of this project.

Consumers validate what they receive, and publishers what they send. So this is below both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedora_messaging.message import Message

from .jsonschema import Checker, checker_for

__all__ = ["validate"]


@dataclass(frozen=True, slots=True)
class _Validation:
    """The checks of a class's messages, which hold as long as the messages have these schemas."""

    headers_schema: Any
    body_schema: Any
    headers: tuple[Checker, ...]
    body: tuple[Checker, ...]


_BASE_HEADERS = checker_for(Message.headers_schema)
_BASE_BODY = checker_for(Message.body_schema)

# None: the class has a `validate` of its own.
_validations: dict[type[Message], _Validation | None] = {}


def validate(message: Message) -> None:
    """Do the work of ``message.validate()``, and raise its errors.

    Upstream validates a class whose instances each bring a schema of their own, and one that
    overrides ``validate``.
    """
    kind = type(message)
    try:
        validation = _validations[kind]
    except KeyError:
        # Two threads may both do this, with the same result.
        validation = _validations[kind] = _validation_of(kind)
    if (
        validation is None
        or message.headers_schema is not validation.headers_schema
        or message.body_schema is not validation.body_schema
    ):
        message.validate()
        return
    # `message._headers` makes an object of typing's with each call.
    headers = message._properties.headers or {}  # noqa: SLF001 -- there is no other way to them
    for check in validation.headers:
        check(headers)
    for check in validation.body:
        check(message.body)


def _validation_of(kind: type[Message]) -> _Validation | None:
    if kind.validate is not Message.validate:
        return None
    headers: tuple[Checker, ...] = (_BASE_HEADERS,)
    if kind.headers_schema is not Message.headers_schema:
        headers = (checker_for(kind.headers_schema), _BASE_HEADERS)
    body: tuple[Checker, ...] = (_BASE_BODY,)
    if kind.body_schema is not Message.body_schema:
        body = (checker_for(kind.body_schema), _BASE_BODY)
    return _Validation(kind.headers_schema, kind.body_schema, headers, body)
