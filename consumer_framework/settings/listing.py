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
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, BeforeValidator

from consumer_framework.core.secrets import may_be_secret, redacted
from consumer_framework.core.text import duration_text, seconds, seconds_or_endless

from .changes import FRAMEWORK_TAKES, TAKES
from .parsing import FRAMEWORK
from .problems import toml_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

    from .model import Settings
    from .table import Takes

HIDDEN = "<hidden>"
# The password of a URL ends at the last "@" before the path (RFC 3986, as urllib reads it).
_PASSWORD = re.compile(r"(://[^\s/@:]*:)[^\s/]+@")
# A part of a URL's query, or of a connection string such as PostgreSQL's.
_NAMED_PART = re.compile(r"""\b([\w-]+)(\s?=\s?)('[^']*'|"[^"]*"|[^\s&;,]+)""")
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
    usual = "" if declared.is_required() else _text(declared, default, name)
    return Setting(path, _text(declared, value, name), usual, value == default, takes.value)


def _text(declared: FieldInfo | None, value: Any, name: str) -> str:
    plain = _plain(value, _is_length(declared))
    shown = _without_secrets(plain, name)
    return shown if isinstance(shown, str) else json.dumps(shown) if shown is not None else ""


def _is_length(declared: FieldInfo | None) -> bool:
    """Tell whether the numbers of a field are lengths of time, in seconds."""
    if declared is None:
        return False
    return _has_length(declared.metadata) or _has_length(get_args(declared.annotation))


def _has_length(parts: Iterable[Any]) -> bool:
    return any(
        part.func in _LENGTHS if isinstance(part, BeforeValidator) else _has_length(get_args(part))
        for part in parts
    )


def _plain(value: Any, is_length: bool) -> Any:  # noqa: FBT001 -- as its field
    """Return *value* as JSON has it, and lengths of time as text."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: _plain(getattr(value, name), _is_length(field)) for name, field in fields}
    if isinstance(value, dict):
        return {str(key): _plain(one, is_length) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, is_length) for one in value]
    if isinstance(value, float) and is_length:
        return duration_text(value)
    return value if isinstance(value, str | int | float | None) else _named(value)


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
    if not isinstance(value, str):
        return value
    return _NAMED_PART.sub(_without_secret, _PASSWORD.sub(rf"\1{HIDDEN}@", redacted(value, name)))


def _without_secret(part: re.Match[str]) -> str:
    return f"{part[1]}{part[2]}{HIDDEN}" if may_be_secret(part[1]) else part[0]
