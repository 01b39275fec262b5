# SPDX-License-Identifier: GPL-2.0-or-later
"""``Message.validate`` with every schema compiled once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedora_messaging.message import Message

from .schemas import checker

if TYPE_CHECKING:
    from .schemas import Checker


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is checked of the messages of a class, as long as these are their schemas."""

    headers_schema: Any
    body_schema: Any
    headers: tuple[Checker, ...]
    body: tuple[Checker, ...]


_BASE_HEADERS = checker(Message.headers_schema)
_BASE_BODY = checker(Message.body_schema)

# None: a class with a `validate` of its own.
_plans: dict[type[Message], _Plan | None] = {}


def validate(message: Message) -> None:
    """Raise what ``message.validate()`` raises.

    A class whose instances each bring a schema of their own, or that overrides ``validate``, is
    left to upstream.
    """
    kind = type(message)
    try:
        plan = _plans[kind]
    except KeyError:
        # Two threads may both do this, with the same result.
        plan = _plans[kind] = _planned(kind)
    if (
        plan is None
        or message.headers_schema is not plan.headers_schema
        or message.body_schema is not plan.body_schema
    ):
        message.validate()
        return
    headers = message._headers  # noqa: SLF001 -- there is no other way to them
    for check in plan.headers:
        check(headers)
    for check in plan.body:
        check(message.body)


def _planned(kind: type[Message]) -> _Plan | None:
    if kind.validate is not Message.validate:
        return None
    headers: tuple[Checker, ...] = (_BASE_HEADERS,)
    if kind.headers_schema is not Message.headers_schema:
        headers = (checker(kind.headers_schema), _BASE_HEADERS)
    body: tuple[Checker, ...] = (_BASE_BODY,)
    if kind.body_schema is not Message.body_schema:
        body = (checker(kind.body_schema), _BASE_BODY)
    return _Plan(kind.headers_schema, kind.body_schema, headers, body)
