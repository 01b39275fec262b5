# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare two configurations, and merge them where a change waits for a restart.

A reload compares the settings in force with those of the file (:func:`changes`). It brings the
new settings into force, except for the changes that take a restart (:func:`in_force`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .model import Framework, Settings
from .parsing import FRAMEWORK
from .problems import toml_path
from .table import Table, Takes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class BoundKey:
    """One routing key that brings messages of an exchange to a queue.

    Attributes:
        queue: Its name in the configuration; ``""`` if the broker chooses the name.
    """

    queue: str
    exchange: str
    routing_key: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f'"{self.queue}" to "{self.exchange}" with "{self.routing_key}"'


def bound_keys(settings: Settings) -> list[BoundKey]:
    """List the bindings of *settings*, in their order, each once."""
    found: list[BoundKey] = []
    for binding in settings.bindings:
        for key in binding.routing_keys:
            one = BoundKey(binding.queue, binding.exchange, key, binding.arguments)
            if one not in found:
                found.append(one)
    return found


def difference(some: Sequence[BoundKey], others: Sequence[BoundKey]) -> list[BoundKey]:
    """Return the bindings of *some* that are not in *others*."""
    return [one for one in some if one not in others]


def takes_of(model: type[Table]) -> dict[str, Takes]:
    """Return the effort that a change of each key of *model* takes, as the model declares it.

    Returns:
        By the path of the key below *model*. A table without an effort of its own has one entry for
        each of its keys, such as ``qos.prefetch_count``.
    """
    found: dict[str, Takes] = {}
    for name, declared in model.model_fields.items():
        own = [item for item in declared.metadata if isinstance(item, Takes)]
        if own:
            found[name] = own[0]
        elif isinstance(declared.annotation, type) and issubclass(declared.annotation, Table):
            inner = takes_of(declared.annotation)
            found |= {f"{name}.{key}": takes for key, takes in inner.items()}
    return found


# The keys of [consumer_config.framework] have a table of their own.
TAKES: Mapping[str, Takes] = takes_of(Settings)
FRAMEWORK_TAKES: Mapping[str, Takes] = takes_of(Framework)

_SECRET = {name for name, declared in Settings.model_fields.items() if not declared.repr}


@dataclass(frozen=True, slots=True)
class Change:
    """One key with a new value.

    Attributes:
        path: Its TOML path.
        takes: The effort to bring the value into force.
        text: The change in words. It never contains a value that may be a secret.
    """

    path: str
    takes: Takes
    text: str = "changed"

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def changes(
    old: Settings, new: Settings, files: Collection[str] = (), waiting: Collection[str] = ()
) -> tuple[Change, ...]:
    """Compare two configurations.

    Args:
        old: The settings in force.
        new: The settings to come.
        files: The keys of ``[tls]`` whose files have changed since they were read.
        waiting: Paths that take a restart for a reason that the declarations do not know.
    """
    found = [*_top(old, new, files), *_framework(old, new)]
    if any(change.path == "callback" for change in found):
        # The old callback stays until the restart: the new one's settings do not fit it.
        waiting = {*waiting, *(c.path for c in found if is_authors(c.path))}
    return tuple(
        Change(change.path, Takes.RESTART, change.text) if change.path in waiting else change
        for change in found
    )


def in_force(old: Settings, new: Settings, found: Collection[Change]) -> Settings:
    """Return *new* with the old value of each setting whose change waits for a restart.

    Args:
        old: The settings in force.
        new: The settings to come.
        found: Their differences, from :func:`changes`.
    """
    kept = {change.path for change in found if change.takes is Takes.RESTART}
    top = {path.partition(".")[0] for path in kept} & _WHOLE
    update: dict[str, Any] = {key: getattr(old, key) for key in top}
    if "qos.prefetch_size" in kept:
        size = old.qos.prefetch_size
        update["qos"] = new.qos.model_copy(update={"prefetch_size": size})
    if any(_is_in(path, "queues") for path in kept):
        update["queues"] = old.queues
        update["bindings"] = [b for b in new.bindings if b.queue in old.queues]
        # The instance consumes from a removed queue until the restart.
        update["bindings"] += [b for b in old.bindings if b.queue not in new.queues]
    update["consumer_config"] = _consumer_config(old, new, kept)
    return new.model_copy(update=update)


# Keys at the top that keep their old value as a whole. Queues stay together with their bindings.
_WHOLE = {key for key, takes in TAKES.items() if takes is Takes.RESTART} - {"queues"}


def _consumer_config(old: Settings, new: Settings, kept: set[str]) -> dict[str, Any]:
    source = old if any(map(is_authors, kept)) else new
    own = {key: value for key, value in source.consumer_config.items() if key != "framework"}
    framework = dict(_written(new))
    for key in FRAMEWORK_TAKES:
        if not any(_is_in(path, f"{FRAMEWORK}.{key}") for path in kept):
            continue
        framework.pop(key, None)
        if key in _written(old):
            framework[key] = _written(old)[key]
    has_table = "framework" in old.consumer_config or "framework" in new.consumer_config
    return {**own, "framework": framework} if has_table else own


def _top(old: Settings, new: Settings, files: Collection[str]) -> Iterator[Change]:
    for path, takes in TAKES.items():
        before, after = _value(old, path), _value(new, path)
        if path in {"queues", "consumer_config"}:
            yield from _keys(path, takes, before, after)
        elif path == "bindings":
            yield from _bindings(old, new)
        elif before != after:
            yield Change(path, takes, _how(path, before, after))
        elif path.startswith("tls.") and path.removeprefix("tls.") in files:
            yield Change(path, takes, "the file has other contents")


def _framework(old: Settings, new: Settings) -> Iterator[Change]:
    before, after = old.framework, new.framework
    for key, takes in FRAMEWORK_TAKES.items():
        if getattr(before, key) == getattr(after, key):
            continue
        path = f"{FRAMEWORK}.{key}"
        inner = _tables(before, after, key)
        if inner is None:
            yield Change(path, takes, _said(_written(old).get(key), _written(new).get(key)))
            continue
        was, now = _written(old).get(key, {}), _written(new).get(key, {})
        for name in inner:
            yield Change(f"{path}.{name}", takes, _said(was.get(name), now.get(name)))


def _tables(before: Any, after: Any, key: str) -> list[str] | None:
    """Return the keys in which two tables differ, or None if one value is no table."""
    one, other = getattr(before, key), getattr(after, key)
    if not (hasattr(one, "model_fields_set") and hasattr(other, "model_fields_set")):
        return None
    return [name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)]


def _keys(
    path: str, takes: Takes, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Change]:
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) == after.get(key) or (path == "consumer_config" and key == "framework"):
            continue
        how = "new" if key not in before else "gone" if key not in after else "changed"
        yield Change(toml_path(path, (key,)), takes, how)


def _bindings(old: Settings, new: Settings) -> Iterator[Change]:
    before, after = bound_keys(old), bound_keys(new)
    for one in difference(after, before):
        yield Change("bindings", TAKES["bindings"], f"{one}: new")
    for one in difference(before, after):
        yield Change("bindings", TAKES["bindings"], f"{one}: gone")


def _value(settings: Settings, path: str) -> Any:
    value: Any = settings
    for key in path.split("."):
        value = getattr(value, key)
    return value


def _written(settings: Settings) -> Mapping[str, Any]:
    table: Mapping[str, Any] = settings.consumer_config.get("framework", {})
    return table


def _how(path: str, before: Any, after: Any) -> str:
    if path.partition(".")[0] in _SECRET:
        return "new" if before is None else "gone" if after is None else "changed"
    return _said(before, after)


def _said(before: Any, after: Any) -> str:
    return f"{_text(before)} -> {_text(after)}"


def _text(value: Any) -> str:
    if value is None:
        return "default"
    return json.dumps(value.model_dump() if hasattr(value, "model_dump") else value, default=str)


def is_authors(path: str) -> bool:
    """Return true if the key at *path* belongs to the author of the consumer."""
    return _is_in(path, "consumer_config") and not _is_in(path, FRAMEWORK)


def _is_in(path: str, table: str) -> bool:
    return path == table or path.startswith((f"{table}.", f"{table}["))
