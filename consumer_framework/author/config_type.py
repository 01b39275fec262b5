# SPDX-License-Identifier: GPL-2.0-or-later
"""The type of a consumer's configuration, as ``Consumer[Config]`` names it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ForwardRef, TypeVar, get_args, get_origin

from consumer_framework.core.errors import ConfigurationError, Problem


def argument_of(kind: type, root: type) -> Any:
    """Return the type argument that the class *kind* gives to the generic class *root*.

    Returns:
        The argument. A type variable where *kind* is generic itself, a ``ForwardRef`` where it is
        written as a string, None where *kind* names none.
    """
    for base in vars(kind).get("__orig_bases__", kind.__bases__):
        origin = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, root)):
            continue
        arguments = get_args(base)
        if origin is root:
            return arguments[0] if arguments else None
        inner = argument_of(origin, root)
        if isinstance(inner, TypeVar):
            parameters = getattr(origin, "__parameters__", ())
            return dict(zip(parameters, arguments, strict=False)).get(inner)
    return None


def names_a_type(argument: Any) -> bool:
    """Tell whether a type argument names the type of a configuration: a dict needs none."""
    if argument is None or argument is Any or isinstance(argument, TypeVar):
        return False
    origin = get_origin(argument) or argument
    is_plain = origin is dict or origin is Mapping
    return not (is_plain or origin is type(None))


def config_type_of(consumer: type, config: Any) -> Any:
    """Return the type of the configuration of the class *consumer*, whose ``Config`` is *config*.

    Raises:
        ConfigurationError: The class names it by a string, and no such class is in its module.
    """
    if not isinstance(config, ForwardRef):
        return config
    name = config.__forward_arg__
    module = sys.modules.get(consumer.__module__)
    names = {**(vars(module) if module else {}), consumer.__name__: consumer}
    try:
        # As typing does; the string is a part of the author's program.
        return eval(name, names)  # noqa: S307
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        what = f'the class {consumer.__qualname__} is a Consumer["{name}"], and {error}'
        cure = "define that class in the same module, or import it there, also at run time"
        raise ConfigurationError(Problem("callback", what, cure)) from error
