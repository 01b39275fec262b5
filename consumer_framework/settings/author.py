# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the author's part of ``[consumer_config]`` with the author's own type."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import TYPE_CHECKING, Any, NotRequired, Required, get_origin, get_type_hints

import pydantic
import typing_extensions
from pydantic import BaseModel

from consumer_framework.core.errors import ConfigurationError, Problem

from .problems import from_pydantic, unknown_keys

if TYPE_CHECKING:
    from collections.abc import Mapping


def parse_consumer_config(config_type: Any, table: Mapping[str, Any]) -> Any:
    """Parse the author's part of ``[consumer_config]`` with the author's own type.

    Args:
        config_type: A pydantic model, a dataclass or a TypedDict; None for no type.
        table: ``[consumer_config]``; its ``framework`` table is left out.

    Returns:
        An instance of *config_type*; a dict where that is None or a TypedDict.

    Raises:
        ConfigurationError: With every problem there is. An unknown key is a problem, unless
            *config_type* is a pydantic model that sets ``extra``.
    """
    own = {key: value for key, value in table.items() if key != "framework"}
    if config_type is None:
        return own
    problems = unknown_keys("consumer_config", own, known_keys(config_type))
    try:
        config = pydantic.TypeAdapter(_for_pydantic(config_type)).validate_python(own)
    except pydantic.PydanticUserError as error:
        reason = error.message.partition("\n")[0]
        what = f"the consumer's Config cannot be used: {reason}"
        raise ConfigurationError(Problem("consumer_config", what, "mend the class")) from error
    except pydantic.ValidationError as error:
        unknown = {problem.path for problem in problems}
        found = from_pydantic(error, "consumer_config", config_type, own)
        problems = [*(p for p in found if p.path not in unknown), *problems]
    if problems:
        raise ConfigurationError(*problems)
    return config


def _for_pydantic(config_type: Any) -> Any:
    # Before Python 3.12, typing.TypedDict tells pydantic too little.
    if not typing_extensions.is_typeddict(config_type) or sys.version_info >= (3, 12):
        return config_type
    hints = get_type_hints(config_type, include_extras=True)
    keys = {key: _with_requirement(config_type, key, hint) for key, hint in hints.items()}
    make: Any = typing_extensions.TypedDict
    return make(config_type.__name__, keys)


def _with_requirement(config_type: Any, key: str, hint: Any) -> Any:
    if get_origin(hint) in (Required, NotRequired):
        return hint
    return Required[hint] if key in config_type.__required_keys__ else NotRequired[hint]


def known_keys(config_type: Any) -> set[str] | None:
    """Return the keys that an author's ``Config`` knows, or None if it takes any key."""
    if dataclasses.is_dataclass(config_type):
        return set(inspect.signature(config_type).parameters)  # type: ignore[arg-type]
    if typing_extensions.is_typeddict(config_type):
        return set(config_type.__annotations__)
    if config_type.model_config.get("extra") is not None:
        return None
    fields = config_type.model_fields
    aliases = [field.validation_alias for field in fields.values() if field.validation_alias]
    if not all(isinstance(alias, str) for alias in aliases):
        return None
    return {*fields, *map(str, aliases)}


def is_config_type(config_type: Any) -> bool:
    """Return true for a pydantic model, a dataclass and a TypedDict."""
    return (
        (isinstance(config_type, type) and dataclasses.is_dataclass(config_type))
        or typing_extensions.is_typeddict(config_type)
        or (isinstance(config_type, type) and issubclass(config_type, BaseModel))
    )
