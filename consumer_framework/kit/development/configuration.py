# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the configuration of an author's project, and make a private copy of it.

With the copy the consumer can reach nothing but the private broker: neither the broker nor the
certificates, nor the outbox's database and endpoints of the original are in it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The queue of a configuration that names none.
QUEUE = "dev"
# Directories below the project that are searched for its configuration.
_DEPTH = 3
_NOT_SEARCHED = frozenset(
    {"__pycache__", "build", "dist", "env", "htmlcov", "node_modules", "site-packages", "venv"}
)
_ROOTS = ("pyproject.toml", "setup.py", "setup.cfg", ".git")
# Keys of fedora-messaging's format that a program of another kind hardly has.
_TELLING = frozenset({"callback", "amqp_url", "consumer_config"})
# The keys that lead to another place than the private broker.
_DROPPED = ("tls", "passive_declares", "monitoring", "log_config")
_DROPPED_OF_OUTBOX = ("database", "endpoints", "messenger", "options")
_FRAMEWORK = "consumer_config.framework."
_DELAYS = 3


def find(start: Path) -> Path:
    """Return the configuration file of the project in the directory *start*.

    Raises:
        ConfigurationError: There is none, or more than one.
    """
    found = sorted(_candidates(start, _DEPTH))
    if len(found) == 1:
        return found[0]
    if not found:
        what = f"no configuration file of a consumer is in {start} or below it"
        raise ConfigurationError(
            Problem("", what, "go to the project, or name it with --conf FILE")
        )
    names = ", ".join(str(path.relative_to(start)) for path in found)
    what = f"there are {len(found)} configuration files: {names}"
    raise ConfigurationError(Problem("", what, "name one with --conf FILE"))


def _candidates(directory: Path, depth: int) -> Iterator[Path]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth and entry.name not in _NOT_SEARCHED:
                yield from _candidates(Path(entry), depth - 1)
        elif entry.name.endswith(".toml") and _is_consumers(Path(entry)):
            yield Path(entry)


def _is_consumers(path: Path) -> bool:
    if path.name == "pyproject.toml":
        return False
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        # The author may be about to write it.
        return True
    return not _TELLING.isdisjoint(map(str.lower, document))


def root_of(path: Path) -> Path:
    """Return the directory of the project that the configuration file *path* belongs to."""
    parents = path.resolve().parents
    is_root = (p for p in parents if any((p / name).exists() for name in _ROOTS))
    return next(is_root, parents[0])


def private_copy(
    document: Mapping[str, Any], url: str, retry_delay: float | None
) -> dict[str, Any]:
    """Return *document* for a consumer of the private broker.

    Args:
        document: The project's configuration.
        url: The URL of the private broker.
        retry_delay: Seconds between two attempts at a message; None for the configured ones.

    Raises:
        ConfigurationError: A key that is changed in the copy is no table.
    """
    copy = {key: value for key, value in document.items() if key not in _DROPPED}
    own = _table(document, "consumer_config")
    written = _table(own, "framework", "consumer_config.")
    framework = {key: value for key, value in written.items() if key != "brokers"}
    if "outbox" in framework:
        outbox = _table(framework, "outbox", _FRAMEWORK)
        framework["outbox"] = {k: v for k, v in outbox.items() if k not in _DROPPED_OF_OUTBOX}
    if retry_delay is not None:
        framework["recovery"] = _quick(_table(framework, "recovery", _FRAMEWORK), retry_delay)
    return {
        **copy,
        "amqp_url": url,
        "bindings": _bindings(document),
        "queues": _queues(document),
        "consumer_config": {**own, "framework": framework},
        "log_config": _LOG_CONFIG,
    }


# The session itself tells about messages, and about the state of the consumer.
_LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "stream": "ext://sys.stderr",
        }
    },
    "loggers": {
        "alembic": {"level": "WARNING"},
        "consumer_framework": {"level": "WARNING"},
        "consumer_framework.runtime.observe.log": {"level": "CRITICAL"},
        "fedora_messaging": {"level": "WARNING"},
        "pika": {"level": "CRITICAL"},
        "twisted": {"level": "WARNING"},
    },
    "root": {"level": "INFO", "handlers": ["console"]},
}


def _table(document: Mapping[str, Any], key: str, path: str = "") -> dict[str, Any]:
    """Return the table *key* of *document*, which is at *path*; an empty one if there is none."""
    found = document.get(key, {})
    if not isinstance(found, dict):
        where = f"{path}{key}"
        raise ConfigurationError(Problem(where, "is no table", f"write [{where}]"))
    return found


def _quick(recovery: Mapping[str, Any], delay: float) -> dict[str, Any]:
    configured = recovery.get("delays")
    count = len(configured) if isinstance(configured, list) else _DELAYS
    breaker = _table(recovery, "breaker", f"{_FRAMEWORK}recovery.")
    return {**recovery, "delays": [delay] * count, "breaker": {**breaker, "probe": [delay]}}


def _queues(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the queues; each outlives a restart of the consumer, and so do its messages."""
    kept = {"durable": True, "auto_delete": False, "exclusive": False}
    queues = {}
    for name in (written := _table(document, "queues")):
        table = _table(written, name, "queues.")
        own = {key: value for key, value in table.items() if key != "passive"}
        queues[name or QUEUE] = {"arguments": {}, **own, **kept}
    return queues or {QUEUE: {"arguments": {}, **kept}}


def _bindings(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the bindings, with fedora-messaging's defaults."""
    [first, *_] = _queues(document)
    default = [{"queue": first, "exchange": "amq.topic", "routing_keys": ["#"]}]
    written = document.get("bindings", default)
    if not isinstance(written, list) or not all(isinstance(each, dict) for each in written):
        raise ConfigurationError(Problem("bindings", "is no list of tables", "write [[bindings]]"))
    return [{**each, "queue": each.get("queue") or QUEUE} for each in written]
