# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of an instance: frozen, checked whole, every error with its TOML path.

The file format is fedora-messaging's. The framework's own settings are in
``[consumer_config.framework]``; everything else under ``[consumer_config]`` is the author's.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NotRequired,
    Required,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic
import typing_extensions
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from .durations import Duration
from .errors import ConfigurationError, Problem
from .recovery import OnExhausted, Then

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# systemd makes the user name `fm-NAME` of it, and refuses what is no user name (systemd.exec(5),
# "User/Group Name Syntax"): letters, digits, "_" and "-", 31 characters at most.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,28}", re.ASCII)

# What fedora-messaging declares where a configuration names no queue.
TRANSIENT_QUEUE: dict[str, Any] = {
    "durable": False,
    "auto_delete": True,
    "exclusive": True,
    "arguments": {},
}

_Port = Annotated[StrictInt, Field(ge=1, le=65535)]
_UInt16 = Annotated[StrictInt, Field(ge=0, le=65535)]
_UInt32 = Annotated[StrictInt, Field(ge=0, le=4294967295)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Queue(_Table):
    """A queue to declare and consume from. An empty name lets the broker choose one."""

    durable: StrictBool
    auto_delete: StrictBool
    exclusive: StrictBool
    arguments: dict[str, Any]
    passive: StrictBool | None = None


class Binding(_Table):
    """Routing keys that bring messages of an exchange to a queue."""

    exchange: StrictStr
    routing_keys: list[StrictStr]
    queue: StrictStr = ""
    arguments: dict[str, Any] = {}


class Qos(_Table):
    """How much the broker sends ahead, per queue."""

    prefetch_size: _UInt32 = 0
    prefetch_count: _UInt16 = 10


class Tls(_Table):
    """PEM files for ``amqps`` URLs."""

    ca_cert: StrictStr | None = None
    certfile: StrictStr | None = None
    keyfile: StrictStr | None = None


class Monitoring(_Table):
    """The HTTP server with ``/live`` and ``/ready``; without a port there is none."""

    address: StrictStr = ""
    port: _Port


class BreakerSettings(_Table):
    """When a dependency counts as broken, and how often it is looked at then."""

    consecutive: Annotated[StrictInt, Field(ge=1)] = 5
    probe: Annotated[tuple[Duration, ...], Field(min_length=1)] = (30.0, 300.0)


class RuleSettings(_Table):
    """What becomes of a message whose handler raised one of some exceptions.

    In a file, exceptions are dotted names; a class may name them itself.
    """

    exceptions: Annotated[tuple[str | type[BaseException], ...], Field(min_length=1)]
    then: Then


class Recovery(_Table):
    """What happens when a handler fails; also the ``recovery`` attribute of a :class:`.Consumer`.

    Args:
        immediate: How many retries follow at once.
        delays: How long to wait before each further retry, with a fifth more or less by chance.
        hold_slots: How many messages may wait in memory, unacknowledged.
        ack_timeout: The broker's ``consumer_timeout``; a message is held for half of it.
        on_exhausted: What follows the last attempt.
        crash_attempts: How many deaths of the process a message may be in the handler for.
        breaker: When a dependency counts as broken.
        rules: For exceptions that are no signals; the first that matches decides.

    Lengths of time are text such as ``"10s"`` and ``"5m"``, or seconds.
    """

    immediate: Annotated[StrictInt, Field(ge=0)] = 1
    delays: tuple[Duration, ...] = (10.0, 60.0, 300.0)
    hold_slots: Annotated[StrictInt, Field(ge=0)] = 4
    ack_timeout: Annotated[Duration, Field(gt=0)] = 1800.0
    on_exhausted: OnExhausted = OnExhausted.QUARANTINE
    crash_attempts: Annotated[StrictInt, Field(ge=1)] = 2
    breaker: BreakerSettings = BreakerSettings()
    rules: tuple[RuleSettings, ...] = ()

    def overridden_by(self, other: Recovery) -> Recovery:
        """These settings with what *other* says itself, and its rules before these."""
        said = {name: getattr(other, name) for name in other.model_fields_set}
        said["rules"] = (*other.rules, *self.rules)
        return self.model_copy(update=said)


class Framework(_Table):
    """``[consumer_config.framework]``: this framework's own settings."""

    quarantine_max_age: Annotated[Duration, Field(gt=0)] = 90 * 86400.0
    quarantine_max_bytes: Annotated[StrictInt, Field(ge=1)] = 1 << 30
    recovery: Recovery = Recovery()


class Settings(_Table):
    """A whole configuration file, with defaults filled in."""

    amqp_url: StrictStr
    client_properties: dict[str, Any] = {}
    publish_exchange: StrictStr = "amq.topic"
    topic_prefix: StrictStr = ""
    publish_priority: StrictInt | None = None
    passive_declares: StrictBool = False
    exchanges: dict[str, dict[str, Any]] = {}
    queues: dict[str, Queue]
    bindings: list[Binding]
    qos: Qos = Qos()
    callback: StrictStr | None = None
    monitoring: Monitoring | None = None
    consumer_config: dict[str, Any] = {}
    tls: Tls = Tls()
    log_config: dict[str, Any] | None = None

    @property
    def framework(self) -> Framework:
        """The framework's own settings; checked when these were made."""
        return Framework.model_validate(self.consumer_config.get("framework", {}))

    def bindings_of(self, queue: str) -> list[Binding]:
        """The bindings of the queue that the configuration calls *queue*."""
        return [binding for binding in self.bindings if binding.queue == queue]


@dataclasses.dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says instead of the file; empty values leave the file's.

    Attributes:
        app_name: How the broker's administrators see the connection.
        queue_name: Consume from this queue alone, with the settings that the configuration has
            for it, or else for its server-named queue.
        exchange: Bind to this exchange instead.
        routing_keys: Bind with these keys instead.
    """

    app_name: str = ""
    queue_name: str = ""
    exchange: str = ""
    routing_keys: tuple[str, ...] = ()


NO_OVERRIDES = Overrides()


def override(document: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Return *document* with *overrides* applied, as ``fedora-messaging consume`` applies them."""
    result = dict(document)
    name = overrides.queue_name
    queues, bindings = document["queues"], document["bindings"]
    if name and isinstance(queues, dict):
        result["queues"] = {name: queues.get(name) or queues.get("") or TRANSIENT_QUEUE}
    changes = {
        "queue": name,
        "exchange": overrides.exchange,
        "routing_keys": list(overrides.routing_keys),
    }
    given = {key: value for key, value in changes.items() if value}
    if given and isinstance(bindings, list):
        tables = (binding for binding in bindings if isinstance(binding, dict))
        result["bindings"] = [{**binding, **given} for binding in tables]
    properties = document["client_properties"]
    if overrides.app_name and isinstance(properties, dict):
        result["client_properties"] = {**properties, "app": overrides.app_name}
    return result


def parse(document: Mapping[str, Any], *, default_bindings: bool = False) -> Settings:
    """Check a configuration and freeze it.

    Args:
        document: The configuration with fedora-messaging's defaults under it.
        default_bindings: The bindings are those defaults, which must not be blamed.

    Raises:
        ConfigurationError: With every problem there is, each with its TOML path.
    """
    problems = _framework_problems(document)
    if document.get("queues") == {}:
        cure = "add a [queues.NAME] table, or remove [queues] for a queue that the broker names"
        problems.append(Problem("queues", "there is no queue to consume from", cure))
    if not default_bindings:
        problems += _undeclared_queues(document)
    try:
        settings = Settings.model_validate(document)
    except pydantic.ValidationError as error:
        problems = [*_from_pydantic(error, "", Settings), *problems]
    if problems:
        raise ConfigurationError(*problems)
    return settings


def parse_consumer_config(config_type: Any, table: Mapping[str, Any]) -> Any:
    """Parse the author's part of ``[consumer_config]`` with the author's own type.

    Args:
        config_type: A pydantic model, a dataclass or a TypedDict; None for no type.
        table: ``[consumer_config]``; its ``framework`` table is left out.

    Returns:
        An instance of *config_type*; a dict where that is None or a TypedDict.

    Raises:
        ConfigurationError: With every problem there is. A key that *config_type* does not know
            is one, unless a pydantic model says what it does with ``extra``.
    """
    own = {key: value for key, value in table.items() if key != "framework"}
    if config_type is None:
        return own
    problems = _unknown_keys("consumer_config", own, known_keys(config_type))
    try:
        config = pydantic.TypeAdapter(_for_pydantic(config_type)).validate_python(own)
    except pydantic.PydanticUserError as error:
        reason = error.message.partition("\n")[0]
        what = f"the consumer's Config cannot be used: {reason}"
        raise ConfigurationError(Problem("consumer_config", what, "mend the class")) from error
    except pydantic.ValidationError as error:
        unknown = {problem.path for problem in problems}
        found = _from_pydantic(error, "consumer_config", config_type)
        problems = [*(p for p in found if p.path not in unknown), *problems]
    if problems:
        raise ConfigurationError(*problems)
    return config


def _for_pydantic(config_type: Any) -> Any:
    """Pydantic takes ``typing.TypedDict`` from Python 3.12 on only, where it tells enough."""
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
    """The keys that an author's ``Config`` knows; None where it takes any key."""
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
    """Whether *config_type* is one of the types that an author's ``Config`` may be."""
    return (
        (isinstance(config_type, type) and dataclasses.is_dataclass(config_type))
        or typing_extensions.is_typeddict(config_type)
        or (isinstance(config_type, type) and issubclass(config_type, BaseModel))
    )


def instance_name_problem(name: str) -> Problem | None:
    """Say what is wrong with *name* as the NAME in ``fm-consumer@NAME``, if anything is."""
    if INSTANCE_NAME.fullmatch(name):
        return None
    return Problem(
        "",
        f"{name!r} is no instance name",
        'use 1 to 28 of the characters a-z, A-Z, 0-9, "_" and "-" '
        "(the service runs as the user fm-NAME), or --conf FILE for a file anywhere",
    )


def _undeclared_queues(document: Mapping[str, Any]) -> list[Problem]:
    """fedora-messaging skips such bindings silently, and the consumer waits for ever."""
    queues, bindings = document.get("queues"), document.get("bindings")
    if not isinstance(queues, dict) or not queues or not isinstance(bindings, list):
        return []
    tables = ((i, binding) for i, binding in enumerate(bindings) if isinstance(binding, dict))
    names = ((i, binding.get("queue", "")) for i, binding in tables)
    texts = ((i, name) for i, name in names if isinstance(name, str))
    return [_undeclared_queue(i, name, queues) for i, name in texts if name not in queues]


def _undeclared_queue(index: int, queue: str, declared: Iterable[str]) -> Problem:
    names = ", ".join(f'"{name}"' for name in declared) or "none"
    what = f'there is no [queues."{queue}"] for this binding'
    cure = f"declare it, or name a queue that is declared ({names})"
    return Problem(f"bindings[{index}].queue", what, cure)


def _framework_problems(document: Mapping[str, Any]) -> list[Problem]:
    config = document.get("consumer_config")
    table = config.get("framework", {}) if isinstance(config, dict) else {}
    try:
        Framework.model_validate(table)
    except pydantic.ValidationError as error:
        return list(_from_pydantic(error, "consumer_config.framework", Framework))
    return []


def _from_pydantic(error: pydantic.ValidationError, prefix: str, root: Any) -> Iterable[Problem]:
    for item in error.errors(include_url=False):
        path = _toml_path(prefix, item["loc"])
        if item["type"] == "extra_forbidden":
            yield _unknown_key(path, _keys_at(root, item["loc"][:-1]), str(item["loc"][-1]))
        elif item["type"] == "missing":
            yield Problem(path, "this key is required", "add it")
        elif item["type"].endswith(("_type", "_parsing")):
            yield Problem(path, _sentence(item["msg"]), f"it is {_toml_type(item['input'])} now")
        elif item["type"] in {"value_error", "assertion_error"}:
            yield Problem(path, item["msg"].partition(", ")[2])
        else:
            yield Problem(path, _sentence(item["msg"]))


def _toml_path(prefix: str, location: tuple[int | str, ...]) -> str:
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'
            path += f".{key}" if path else key
    return path


def _keys_at(root: Any, location: tuple[int | str, ...]) -> set[str]:
    """The keys known in the table at *location*, as far as plain nesting tells."""
    table: Any = root
    for part in location:
        if part not in getattr(table, "model_fields", {}):
            return _keys_of_items(root, location)
        annotation = table.model_fields[part].annotation
        table = next(iter(get_args(annotation)), annotation)
    return set(getattr(table, "model_fields", ()))


def _keys_of_items(root: Any, location: tuple[int | str, ...]) -> set[str]:
    items: dict[str, type[BaseModel]] = {
        "queues": Queue,
        "bindings": Binding,
        "monitoring": Monitoring,
    }
    table = items.get(str(location[0])) if root is Settings else None
    return set(table.model_fields) if table else set()


def _unknown_keys(prefix: str, table: Mapping[str, Any], known: set[str] | None) -> list[Problem]:
    if known is None:
        return []
    return [_unknown_key(_toml_path(prefix, (k,)), known, k) for k in table if k not in known]


def _unknown_key(path: str, known: set[str], key: str) -> Problem:
    near = difflib.get_close_matches(key, known, 1)
    if near:
        return Problem(path, "unknown key", f'did you mean "{near[0]}"?')
    if known:
        return Problem(path, "unknown key", f"the keys here are {', '.join(sorted(known))}")
    return Problem(path, "unknown key", "remove it")


# Pydantic speaks of Python, the file is TOML.
_WORDS = {
    "Input should be": "must be",
    "valid dictionary": "table",
    "valid list": "array",
    "valid tuple": "array",
    "tuple should": "array should",
    "valid ": "",
    "a integer": "an integer",
    "a array": "an array",
}


def _sentence(message: str) -> str:
    """Pydantic's message as the rest of a line that starts with the key."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message[:1].lower() + message[1:]


_TOML_TYPES: dict[type, str] = {
    bool: "a boolean",
    dict: "a table",
    float: "a float",
    int: "an integer",
    list: "an array",
    str: "a string",
}


def _toml_type(value: Any) -> str:
    """What *value* is, without showing it: it may be a secret."""
    return _TOML_TYPES.get(type(value), f"a {type(value).__name__}")
