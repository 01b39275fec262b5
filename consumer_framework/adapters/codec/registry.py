# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the class that a message's schema header names."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from fedora_messaging import message as upstream
from fedora_messaging.message import Message

from consumer_framework.core.attempt import LINE_LIMIT
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.text import clipped, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_GROUP = "fedora.messages"

_log = logging.getLogger(__name__)

# Names come from publishers: one that makes them up must not fill the memory.
_REMEMBERED_WARNINGS = 1000
_warned: set[str | type] = set()


def load_schemas() -> None:
    """Import every installed message schema, before the first message needs one.

    Raises:
        ConfigurationError: A schema package cannot be imported. Found later, that would make
            every message fail, whatever its schema.
    """
    try:
        upstream.load_message_classes()
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


def class_of(headers: Mapping[str, Any]) -> type[Message]:
    """Return the class for a message with *headers*; Message where they name none, or none known.

    Logs a warning for the first message with a schema that is not installed.

    Raises:
        TypeError: The header is a table or a list.
    """
    # As upstream.get_class(), which warns for every message.
    name: Any = headers.get("fedora_messaging_schema")
    found = upstream._schema_name_to_class.get(name)  # noqa: SLF001 -- see above
    if found is not None:
        return found
    if not upstream._registry_loaded:  # noqa: SLF001 -- as upstream does
        upstream.load_message_classes()
        return class_of(headers)
    if "fedora_messaging_schema" in headers and _is_first(name):
        _warn_of_unknown(name, headers.get("fedora_messaging_schema_package"))
    return Message


def registered_below(kind: type[Message]) -> list[type[Message]]:
    """Return the classes that installed packages register, as far as they are *kind* or below it.

    Raises:
        ConfigurationError: As :func:`load_schemas`.
    """
    if not upstream._registry_loaded:  # noqa: SLF001 -- as above
        load_schemas()
    known = dict.fromkeys(upstream._schema_name_to_class.values())  # noqa: SLF001 -- as above
    return [each for each in known if issubclass(each, kind)]


def names_unknown_class(headers: Mapping[str, Any]) -> bool:
    """Tell whether *headers* name a schema that is not installed; call :func:`class_of` before."""
    name: Any = headers.get("fedora_messaging_schema")
    return name is not None and name not in upstream._schema_name_to_class  # noqa: SLF001


def _warn_of_unknown(name: object, package: object) -> None:
    cure = "Either install the package with its schema definition or define a schema"
    if package:
        named = clipped(repr(package), LINE_LIMIT)
        cure = f"You can install the missing schema from package {named}"
    _log.warning(
        'The schema "%s" is not in the schema registry! %s. Falling back to the default schema...',
        printable(clipped(str(name), LINE_LIMIT)),
        cure,
    )


def warn_of_deprecated(kind: type[Message], topic: str) -> None:
    """Log a warning for the first message of the deprecated class *kind*."""
    if _is_first(kind):
        _log.warning(
            "A message with a deprecated schema (%s.%s) has been received on topic %r. You should "
            "check the emitting application's documentation to upgrade to the newer schema "
            "version.",
            kind.__module__,
            kind.__name__,
            topic,
        )


def _is_first(subject: Any) -> bool:
    if subject in _warned:
        return False
    if len(_warned) >= _REMEMBERED_WARNINGS:
        _warned.clear()
    _warned.add(subject)
    return True
