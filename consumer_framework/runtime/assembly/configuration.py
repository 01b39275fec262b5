# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads the configuration that a command line names, and sets logging up as it says.

A person who mends a wrong file learns of every problem at once: :func:`load` also reports the
problems of the callback and of the rules in a file that is itself wrong.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import config, log
from consumer_framework.adapters.systemd import journald
from consumer_framework.adapters.systemd.notify import is_journal
from consumer_framework.core.errors import ConfigurationError, Problem, ProblemCollector
from consumer_framework.settings import NO_OVERRIDES, Overrides

from . import loader
from .access import from_inside
from .plan import RULES, exception

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from consumer_framework.settings import Settings

STDERR = 2


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of ``fm-consumer run``, from which an instance is assembled.

    Attributes:
        path: The configuration file; None for fedora-messaging's defaults.
        callback: ``module:object``; "" for the file's ``callback``.
        callback_file: ``path/to/file.py:object``; takes precedence over *callback*.
        overrides: Values of the command line that replace those of the file.
        instance: The instance's name.
        state_directory: The directory of its state; None for the usual place.
        access: Reads the file and its credentials; None for the access that the instance itself
            has.
    """

    path: Path | None
    callback: str = ""
    callback_file: str = ""
    overrides: Overrides = NO_OVERRIDES
    instance: str = "default"
    state_directory: Path | None = None
    access: config.Access | None = None

    @property
    def source(self) -> str:
        """Name the configuration for errors and logs."""
        return str(self.path or config.BUILT_IN)

    @property
    def names_callback(self) -> bool:
        """Tell whether the command line names the callback, and so overrules the file."""
        return bool(self.callback or self.callback_file)

    @property
    def effective_access(self) -> config.Access:
        """Return *access*, or the instance's own."""
        return self.access or from_inside(self.path, self.instance)


def load(options: RunOptions) -> Settings:
    """Load the configuration, and give it to fedora-messaging.

    Raises:
        ConfigurationError: With every problem there is. For a wrong file it includes those of the
            callback and of the rules, as far as they can be checked.
    """
    try:
        return config.load(options.path, options.overrides, options.effective_access)
    except ConfigurationError as error:
        more = callback_and_rule_problems(options)
        raise ConfigurationError(*dict.fromkeys([*error.located, *more])) from None


def read_again(options: RunOptions, given: bytes | None) -> config.Loaded:
    """Read and check the configuration for a reload; fedora-messaging keeps the old one.

    Args:
        options: The options of the start.
        given: The bytes of the file, for an instance that may not read it; None without them.

    Raises:
        ConfigurationError: With every problem there is.
    """
    access = replace(options.effective_access, given=given)
    return config.examine(options.path, options.overrides, access)


def callback_and_rule_problems(options: RunOptions) -> tuple[Problem, ...]:
    """Return the problems of the callback and the rules in a file that is itself wrong.

    Imports the author's module. Values of a wrong type were reported before, and are skipped; a
    file that cannot be read has no further problems.
    """
    access = options.effective_access
    try:
        document = config.preview(options.path, access) if options.path else {}
        absent = config.substituted(options.path, access).absent
    except ConfigurationError:
        return ()
    found = ProblemCollector(options.source)
    written = document.get("callback")
    if written is None or isinstance(written, str):
        target = found.call(loader.target_of, options, written)
        own = document.get("consumer_config", {})
        if target is not None and isinstance(own, dict):
            found.call(loader.factory, target, own, absent)
    for name, where in _exception_names(document):
        found.call(exception, name, where)
    return found.problems


def _exception_names(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each exception in the rules, and its TOML path."""
    table: Any = document
    for key in RULES.split("."):
        table = table.get(key) if isinstance(table, dict) else None
    for index, rule in enumerate(table if isinstance(table, list) else ()):
        names = rule.get("exceptions") if isinstance(rule, dict) else ()
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str):
                yield name, f"{RULES}[{index}].exceptions"


def configure_logging(settings: Settings, options: RunOptions) -> None:
    """Log as *settings* say, from now on.

    Raises:
        ConfigurationError: They cannot be used.
    """
    is_native = is_journal(STDERR) and journald.is_reachable()
    journal = journald.JournalHandler() if is_native else None
    with _logging_errors(options.source):
        log.set_up(settings.log_config, is_journal, journal)
    for handler in log.handlers():
        if isinstance(handler, journald.JournalHandler):
            handler.instance = handler.instance or options.instance


def check_logging(settings: Settings, source: str) -> None:
    """Check that :func:`configure_logging` would work, and log as before.

    Raises:
        ConfigurationError: It would not.
    """
    if settings.log_config is not None:
        with _logging_errors(source):
            log.rehearse(settings.log_config)


@contextmanager
def _logging_errors(source: str) -> Iterator[None]:
    # A handler, filter or formatter of anybody's raises anything.
    try:
        yield
    except Exception as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        what = f"logging cannot be set up: {error}{cause}"
        cure = "see logging.config.dictConfig in Python's documentation"
        raise ConfigurationError(Problem("log_config", what, cure), source=source) from error
