# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes to fedora-messaging messages."""

from __future__ import annotations

import copy
import json
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from fedora_messaging.message import Message, get_message, load_message_classes

from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    import pika

    from consumer_framework.core.delivery import Delivery


class UndecodableError(ValueError):
    """The bytes and properties make no message."""


SCHEMA_GROUP = "fedora.messages"


def load_schemas() -> None:
    """Import every installed message schema, before the first message needs one.

    Raises:
        ConfigurationError: A schema package cannot be imported. Found later, it would fail every
            message, of whatever schema.
    """
    try:
        load_message_classes()
    except Exception as error:
        raise ConfigurationError(*_broken_schemas(), source="message schemas") from error


def _broken_schemas() -> list[Problem]:
    problems = []
    for entry_point in entry_points(group=SCHEMA_GROUP):
        try:
            entry_point.load()
        except Exception as error:  # noqa: BLE001 -- importing runs anybody's code
            package = entry_point.dist.name if entry_point.dist else entry_point.module
            what = f"cannot be imported ({type(error).__name__}: {error})"
            cure = f"repair or remove the package {package}"
            problems.append(Problem(f'schema "{entry_point.name}"', what, cure))
    return problems


def decode(delivery: Delivery) -> Message:
    """Decode and validate the message in *delivery*.

    Returns:
        An instance of the class that the message's schema header names, with ``queue`` set.

    Raises:
        Exception: The bytes are no valid message, or a schema class or codec raised; the
            delivery itself is left exactly as it was received.
    """
    received = cast("pika.BasicProperties", delivery.properties)
    if received.headers is None:
        raise UndecodableError("it has no headers")
    if received.message_id is None:
        raise UndecodableError("it has no message id")
    # get_message fills in what is missing.
    properties = copy.copy(received)
    properties.headers = dict(received.headers) if received.headers is not None else None
    message = get_message(delivery.routing_key, properties, delivery.body)
    if not message.body:
        _check_empty_body(delivery.body, received.content_encoding)
    message.queue = delivery.queue
    return message


def _check_empty_body(body: bytes, encoding: str | None) -> None:
    """Upstream makes ``{}`` of ``null``, ``0``, ``false``, ``""`` and ``[]``."""
    value = json.loads(body.decode(encoding or "utf-8"))
    if not isinstance(value, dict):
        raise UndecodableError(f"its body is {value!r}, not an object")
