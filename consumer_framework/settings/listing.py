# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists the settings of an instance with their defaults, for people.

Secrets are left out: passwords in URLs, the values of names such as ``password`` or ``api_key``,
and every credential that this process has read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator

from consumer_framework.core.secrets import may_be_secret, redacted
from consumer_framework.core.text import duration_text, seconds, seconds_or_endless

from .changes import FRAMEWORK_TAKES, TAKES
from .parsing import FRAMEWORK
from .problems import toml_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .model import Settings, Takes

HIDDEN = "<hidden>"
_PASSWORD = re.compile(r"(://[^\s/@:]*:)[^\s/@]+@")
_LENGTHS = (seconds, seconds_or_endless)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        path: Its TOML path, such as ``qos.prefetch_count``.
        value: Its value as text, without secrets; "" for none.
        default: The default as text; "" for none.
        is_default: True if the value is the default.
        takes: The effort to change it: ``reload``, ``reconnect`` or ``restart``.
    """

    path: str
    value: str
    default: str
    is_default: bool
    takes: str


def settings_of(settings: Settings) -> tuple[Setting, ...]:
    """List *settings*, in the order of their declaration, the framework's last."""
    return tuple(_all(settings))


def _all(settings: Settings) -> Iterator[Setting]:
    for path, takes in TAKES.items():
        if path != "consumer_config":
            yield _setting(path, settings, path, takes)
    for key, value in settings.consumer_config.items():
        if key != "framework":
            path = toml_path("consumer_config", (key,))
            text = _text(None, value, key)
            yield Setting(path, text, "", is_default=False, takes=TAKES["consumer_config"].value)
    for key, takes in FRAMEWORK_TAKES.items():
        yield _setting(f"{FRAMEWORK}.{key}", settings.framework, key, takes)


def _setting(path: str, table: BaseModel, key: str, takes: Takes) -> Setting:
    """Describe the value at *key*, a path in *table*."""
    *outer, name = key.split(".")
    for part in outer:
        table = getattr(table, part)
    declared = type(table).model_fields[name]
    value, default = getattr(table, name), declared.get_default(call_default_factory=True)
    kind = Annotated[declared.annotation, *declared.metadata, None]
    usual = "" if declared.is_required() else _text(kind, default, name)
    return Setting(path, _text(kind, value, name), usual, value == default, takes.value)


def _text(kind: Any, value: Any, name: str) -> str:
    plain = _without_secrets(_plain(kind, value), name)
    return plain if isinstance(plain, str) else json.dumps(plain) if plain is not None else ""


def _plain(kind: Any, value: Any) -> Any:
    """Return *value* as JSON has it, and lengths of time as text."""
    if isinstance(value, BaseModel):
        declared = type(value).model_fields
        return {
            name: _plain(Annotated[field.annotation, *field.metadata, None], getattr(value, name))
            for name, field in declared.items()
        }
    if isinstance(value, dict):
        return {str(key): _plain(None, one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(next(iter(get_args(_bare(kind))), None), one) for one in value]
    if isinstance(value, float) and _is_length(kind):
        return duration_text(value)
    return value if isinstance(value, str | int | float | None) else _named(value)


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_length(kind: Any) -> bool:
    if any(isinstance(part, BeforeValidator) and part.func in _LENGTHS for part in get_args(kind)):
        return True
    return any(_is_length(part) for part in get_args(kind))


def _named(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    return str(getattr(value, "value", value))


def _without_secrets(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_secrets(one, name) for one in value]
    if value not in (None, "") and may_be_secret(name):
        return HIDDEN
    return _PASSWORD.sub(rf"\1{HIDDEN}@", redacted(value, name)) if isinstance(value, str) else value
