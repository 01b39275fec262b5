# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes to fedora-messaging messages."""

from __future__ import annotations

import copy
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from fedora_messaging.exceptions import ValidationError
from fedora_messaging.message import Message, get_message, load_message_classes

from consumer_framework.core.delivery import Delivery, Undecodable
from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    import pika

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


def decode(delivery: Delivery) -> Message | Undecodable:
    """Decode and validate the message in *delivery*.

    Returns:
        An instance of the class that the message's schema header names, with ``queue`` set; or
        :class:`.Undecodable` where the body is no JSON or does not fit the schema.

    Raises:
        Exception: What a schema class, or a codec that the message names, raised.
    """
    received = cast("pika.BasicProperties", delivery.properties)
    # get_message fills in what is missing; the delivery stays as it was received.
    properties = copy.copy(received)
    properties.headers = dict(received.headers) if received.headers is not None else None
    try:
        message = get_message(delivery.routing_key, properties, delivery.body)
    except ValidationError as error:
        return Undecodable(error.summary.partition("\n")[0])
    message.queue = delivery.queue
    return message
