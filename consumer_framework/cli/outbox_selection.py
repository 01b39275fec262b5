# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens the outbox that a command names, and finds the rows that it selects."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault, Problem
from consumer_framework.core.text import seconds
from consumer_framework.publishing import FILE

from .options import may_exist, no_such_instance
from .selection import row_numbers
from .terminal import Refusal

# The store is imported late: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumer_framework.publishing.store import OutboxStore, Row
    from consumer_framework.settings import OutboxSettings

    from .options import Where

_OUTBOX = ("consumer_config", "framework", "outbox")
_DATABASE = f"{'.'.join(_OUTBOX)}.database"
# Rows that are read at a time.
_PORTION = 1000
_AS_ITS_USER = "use sudo, or run this as the user that the relay runs as"

Decorated = TypeVar("Decorated", bound="Callable[..., Any]")


def _age(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def filters(function: Decorated) -> Decorated:
    """Add the options that select rows: --topic, --key and --older-than."""
    for option in (
        click.option(
            "--older-than",
            callback=_age,
            metavar="AGE",
            help='Messages that were published longer ago than "10m", "2h" or "7d".',
        ),
        click.option("--key", metavar="KEY", help="Messages with this ordering key."),
        click.option("--topic", metavar="PATTERN", help="Messages of these topics; * is any text."),
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that a command is about.

    Attributes:
        numbers: Their numbers; empty for every row that fits the rest.
        state: ``"waiting"``, ``"dead"``, or None for both.
        topic: A pattern; None for all topics. ``*`` is any text.
        key: The ordering key; None for any.
        older_than: The least age, in seconds; None for any.
    """

    numbers: tuple[int, ...] = ()
    state: str | None = None
    topic: str | None = None
    key: str | None = None
    older_than: float | None = None

    @property
    def has_filter(self) -> bool:
        """True if it leaves out rows for another reason than their state."""
        return (self.topic, self.key, self.older_than) != (None, None, None)

    def fits(self, row: Row, now: float) -> bool:
        """Return true if *row* is one of them; its number and its state are looked at before."""
        message = row.message
        return (
            (self.topic is None or fnmatchcase(message.topic, self.topic))
            and (self.key is None or message.ordering_key == self.key)
            and (self.older_than is None or now - message.created >= self.older_than)
        )

    def rows(self, store: OutboxStore, limit: int | None = None) -> Iterator[Row]:
        """Yield the rows in the order of their numbers, *limit* at most.

        Raises:
            Refusal: A number is not there.
        """
        now, found = time.time(), 0
        for row in self._named(store) if self.numbers else _all(store, self.state):
            if limit is not None and found >= limit:
                return
            if self.numbers or self.fits(row, now):
                found += 1
                yield row

    def _named(self, store: OutboxStore) -> Iterator[Row]:
        for number in self.numbers:
            row = store.show(number)
            if row is None:
                what = f"there is no row {number} (any more): it was sent, or discarded"
                raise Refusal(f"{what}; 'fm-consumer outbox list' shows the others")
            yield row


def _all(store: OutboxStore, state: str | None) -> Iterator[Row]:
    after = 0
    while portion := store.rows(state, after_row=after, limit=_PORTION):
        yield from portion
        after = portion[-1].row


def selection(at: Where, state: str, *, everything: bool, **filters: Any) -> Selection:
    """Return the selection of a command that changes rows.

    Raises:
        Refusal: It names rows in no way, or in two.
    """
    numbers = tuple(row_numbers(at.rest))
    found = Selection(numbers, None if state == "any" or numbers else state, **filters)
    if (bool(numbers), everything, found.has_filter).count(True) != 1:
        choices = "row numbers, or --topic, --key or --older-than, or --all"
        raise Refusal(f"say which: {choices}")
    return found


def settings_of(at: Where) -> OutboxSettings:
    """Return the outbox's ``database`` of the configuration. The rest of the file may be wrong.

    Raises:
        ConfigurationError: The file is not there, or cannot be read, or that key is wrong.
    """
    import pydantic  # noqa: PLC0415

    from consumer_framework.adapters import config  # noqa: PLC0415
    from consumer_framework.runtime.assembly.access import (  # noqa: PLC0415
        from_outside,
        is_relays_file,
    )
    from consumer_framework.settings import OutboxSettings  # noqa: PLC0415
    from consumer_framework.settings.problems import from_pydantic  # noqa: PLC0415

    if not may_exist(at.file) and not at.file.is_symlink():
        raise no_such_instance(at.instance, at.file)
    access = from_outside(at.file, at.instance, of_relay=is_relays_file(at.file))
    found = config.substituted(at.file, access)
    if missing := [p for p in (*found.problems, *found.unseen) if p.path == _DATABASE]:
        raise ConfigurationError(*missing, source=str(at.file))
    table: Any = found.document
    for key in _OUTBOX:
        table = table.get(key, {}) if isinstance(table, dict) else {}
    table = {key: table[key] for key in ("database",) if isinstance(table, dict) and key in table}
    try:
        return OutboxSettings.model_validate(table)
    except pydantic.ValidationError as error:
        problems = from_pydantic(error, ".".join(_OUTBOX), OutboxSettings, table)
        raise ConfigurationError(*problems, source=str(at.file)) from error


def _url(at: Where, settings: OutboxSettings) -> str:
    from consumer_framework.publishing.outbox import database_of  # noqa: PLC0415

    if settings.database is not None:
        return database_of(settings)
    return f"sqlite:///{at.directory / FILE}"


@contextmanager
def opened(at: Where, *, makes: bool = False) -> Iterator[OutboxStore]:
    """Open the outbox of an instance or a relay.

    Args:
        at: Names it.
        makes: The command makes the tables, so they may be missing.

    Raises:
        ConfigurationError: There is no such outbox, it has no tables, or this user may not use it.
        Fault: The database does not do it now.
    """
    from consumer_framework.publishing.store import OutboxError, OutboxStore  # noqa: PLC0415

    settings = settings_of(at)
    url = _url(at, settings)
    store = OutboxStore.connect(url)
    try:
        if store.is_sqlite:
            _check_file(Path(store.engine.url.database or ""), at, makes=makes)
        fault = None if makes else store.fault_of_tables(command(at, "migrate"))
        if fault is not None:
            raise ConfigurationError(Problem("", *fault), source=store.place)
        yield store
    except OutboxError as error:
        may_not = ("unable to open", "readonly", "permission denied")
        cure = f"; {_AS_ITS_USER}" if any(text in str(error).lower() for text in may_not) else ""
        raise Fault(ExitCode.TEMPORARY, f"{error}{cure}") from error
    finally:
        store.close()


def _check_file(file: Path, at: Where, *, makes: bool) -> None:
    try:
        file.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        if makes and file.parent.is_dir():
            return
        what = "there is no outbox yet: nothing was published with it"
        cure = (
            f"if it is elsewhere, name it: {_DATABASE} in {at.file}; if the instance keeps its "
            "state elsewhere, give --state-dir"
        )
        raise ConfigurationError(Problem("", what, cure), source=str(file)) from None
    except PermissionError:
        problem = Problem("", "may not be read by this user", _AS_ITS_USER)
        raise ConfigurationError(problem, source=str(file)) from None


def command(at: Where, verb: str, *more: object) -> str:
    """Return a command line to try next."""
    tail = " ".join(["", *(str(word) for word in more)]).rstrip()
    return f"fm-consumer outbox {verb} {at.spelled}{tail}"


def one_row(given: Sequence[str]) -> int:
    """Return the one row that a command names.

    Raises:
        click.UsageError: It names none, or several.
    """
    numbers = row_numbers(given)
    if len(numbers) != 1:
        raise click.UsageError("name one ROW")
    return numbers[0]
