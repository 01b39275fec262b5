# SPDX-License-Identifier: GPL-2.0-or-later
"""What else is wrong, where a configuration file cannot be used.

So that whoever mends it learns of everything at once, and not of one thing after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import config
from consumer_framework.core.collector import Collector
from consumer_framework.core.errors import ConfigurationError

from . import loader
from .policy import RULES, exception

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from consumer_framework.adapters.config import Access
    from consumer_framework.core.errors import Problem


def problems(
    path: Path | None, callback: str, callback_file: str, access: Access = config.PLAIN
) -> tuple[Problem, ...]:
    """Say what is wrong with the callback and the rules of a file that is itself wrong.

    Nothing where the file cannot be read; and nothing about what was of a wrong type, which is
    told already. Imports the author's module.

    Args:
        path: The configuration file.
        callback: What ``--callback`` says instead of the file.
        callback_file: What ``--callback-file`` says instead of both.
        access: How the file is got at.
    """
    try:
        document = config.preview(path, access) if path else {}
        absent = config.substituted(path, access).absent
    except ConfigurationError:
        return ()
    found = Collector(str(path or config.BUILT_IN))
    written = document.get("callback")
    if written is None or isinstance(written, str):
        source = str(path or config.BUILT_IN)
        target = found.call(loader.target_of, callback, callback_file, written, source)
        own = document.get("consumer_config", {})
        if target is not None and isinstance(own, dict):
            found.call(loader.factory, target, own, absent)
    for name, where in _exceptions(document):
        found.call(exception, name, where)
    return found.problems


def _exceptions(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The names in rules, and where each is."""
    table: Any = document
    for key in RULES.split("."):
        table = table.get(key) if isinstance(table, dict) else None
    for index, rule in enumerate(table if isinstance(table, list) else ()):
        names = rule.get("exceptions") if isinstance(rule, dict) else ()
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str):
                yield name, f"{RULES}[{index}].exceptions"
