# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens the store of an instance for reading, and finds the rows that a command names."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import click

from consumer_framework.core.errors import ConfigurationError, Problem, StoreError
from consumer_framework.core.text import plural

from .options import conditions, may_exist, no_such_instance
from .terminal import Refusal, note

# The store is imported late: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import TypeAlias

    from consumer_framework.adapters.store import Reader, Row
    from consumer_framework.core.conditions import Condition
    from consumer_framework.operate.api_store import ApiStore

    from .options import Where

    AnyReader: TypeAlias = Reader | ApiStore

FINGERPRINT = click.option(
    "--fingerprint",
    metavar="F",
    help="Those of this cause: a fingerprint as 'list' shows it, or a part that no other has.",
)
WHERE = conditions("Those that fit a condition", stored=True)
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
EXPECT = click.option(
    "--expect",
    type=click.IntRange(0),
    metavar="N",
    help="Do not ask, and do it only if there are N messages; for programs.",
)
CONDITIONS = """
\b
Conditions of --where:
  body.build.name=kernel    equal; a list fits if one of its entries does
  headers.x-retry!=1        not equal, or not there
  error~'timed? ?out'       the regular expression is found; !~ is the contrary
  age>2h                    also <, <= and >=; of numbers and lengths of time
  body.build.id             there is one
The first word is topic, id, queue, exchange, severity, headers, body, error (KeyError, or its
text), cause (the fingerprint), reason, attempts, age (since it is here) or key (of its order).
"""


class NotPermittedError(ConfigurationError):
    """This user may not read a store."""


def look_into(at: Where) -> AnyReader:
    """Open the store of an instance as :func:`open_store` does.

    If this user may not read it, the instance is asked in its place, if it runs and answers them.
    """
    try:
        return open_store(at)
    except NotPermittedError:
        store = _store_of_running(at)
        if store is None:
            raise
        return store


def _store_of_running(at: Where) -> ApiStore | None:
    from consumer_framework.operate.api_store import ApiStore  # noqa: PLC0415
    from consumer_framework.runtime.control import client  # noqa: PLC0415

    paths = client.sockets_for_operators(at.directory, at.instance)
    with suppress(client.ClosedError), client.connected_to(paths) as running:
        # It has a new connection for each request after the first one.
        return ApiStore(running) if running is not None else None
    return None


def open_store(at: Where) -> Reader:
    """Open the store of an instance for reading.

    Raises:
        NotPermittedError: This user may not read it.
        ConfigurationError: There is none.
        StoreError: It cannot be read.
    """
    from consumer_framework.adapters.store import Store  # noqa: PLC0415
    from consumer_framework.adapters.store.files import DATABASE  # noqa: PLC0415

    file = at.directory / DATABASE
    try:
        file.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise _not_permitted(service) if (service := _of_service(at)) else _no_store(at) from None
    except PermissionError:
        raise _not_permitted(file) from None
    try:
        return Store.read(at.directory)
    except StoreError:
        # SQLite needs a file beside it, also to read.
        if not os.access(at.directory, os.W_OK):
            raise _not_permitted(file) from None
        raise


def _not_permitted(file: Path) -> NotPermittedError:
    cure = "use sudo, or run this as the user that the instance runs as"
    return NotPermittedError(Problem("", "may not be read by this user", cure), source=str(file))


def _of_service(at: Where) -> Path | None:
    """Return the store of the host's service, if this user named no directory and is not root."""
    from consumer_framework.adapters.store.files import DATABASE  # noqa: PLC0415
    from consumer_framework.runtime import state_files  # noqa: PLC0415

    directory = state_files.SYSTEM_STATE / at.instance
    is_own = at.directory == state_files.users_directory(at.instance) != directory
    return directory / DATABASE if is_own and os.access(directory, os.F_OK) else None


def _no_store(at: Where) -> ConfigurationError:
    if not may_exist(at.file):
        return no_such_instance(at.instance, at.file)
    sudo = "" if os.geteuid() == 0 else "use sudo if it runs as a system service; "
    cure = (
        f"{sudo}name its directory with --state-dir if it has another one; "
        'an instance with store = "memory" keeps no quarantine'
    )
    what = f"there is no store: {at.instance} has not run with this state directory yet"
    return ConfigurationError(Problem("", what, cure), source=str(at.directory))


def row_numbers(given: Sequence[str]) -> list[int]:
    """Read the numbers of rows.

    Raises:
        Refusal: One is no number.
    """
    for word in given:
        if not (word.isascii() and word.isdigit()):
            raise Refusal(f"{word!r} is no row; 'list --rows' shows their numbers")
    return list(dict.fromkeys(int(word) for word in given))


def find_rows(store: AnyReader, numbers: Sequence[int], at: Where) -> list[Row]:
    """Find all these rows.

    Raises:
        Refusal: One is not there.
    """
    found = [(number, store.row(number)) for number in numbers]
    missing = [str(number) for number, row in found if row is None]
    if missing:
        which = f"row {missing[0]}" if len(missing) == 1 else f"rows {', '.join(missing)}"
        hint = at.command("list", "--rows")
        raise Refusal(f"there is no {which} (any more); see: {hint}")
    return [cast("Row", row) for _, row in found]


def find_fingerprint(store: AnyReader, wanted: str) -> str:
    """Find the one fingerprint that is, or else contains, *wanted*.

    Raises:
        Refusal: There is none, or more than one.
    """
    known = [group.fingerprint for group in store.groups()]
    if wanted in known:
        return wanted
    fitting = [fingerprint for fingerprint in known if wanted in fingerprint]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise Refusal(f"nothing quarantined has the fingerprint {wanted!r}; 'list' shows them")
    several = ", ".join(repr(fingerprint) for fingerprint in fitting[:3])
    raise Refusal(f"{wanted!r} is in {len(fitting)} fingerprints: {several}; give more of one")


def choose(
    store: AnyReader,
    at: Where,
    fingerprint: str | None,
    where: Sequence[Condition] = (),
    *,
    everything: bool,
) -> list[Row]:
    """Find the rows that a command names: by numbers, by a fingerprint and conditions, or all.

    Rows of one key are in the order in which they were published.

    Raises:
        Refusal: It names them in two ways, or none, or some that are not there.
    """
    numbers = row_numbers(at.rest)
    if bool(numbers) + everything + (fingerprint is not None or bool(where)) != 1:
        raise Refusal("say which: row numbers, or --fingerprint F, or --where CONDITION, or --all")
    if fingerprint is not None:
        fingerprint = find_fingerprint(store, fingerprint)
    if numbers:
        rows = find_rows(store, numbers, at)
    else:
        rows = store.rows(fingerprint=fingerprint, where=where, now=time.time())
    by_number = {row.id: row for row in rows}
    return [by_number[number] for number in store.in_lane_order(by_number)]


def nothing(conditions: Sequence[Condition]) -> str:
    """Say that there is no message to carry an order out on."""
    return f"nothing is quarantined{' that fits' if conditions else ''}"


def choose_one(store: AnyReader, at: Where, where: Sequence[Condition]) -> Row:
    """Find the one row that a command names: by its number, or the oldest that fits *where*.

    Raises:
        click.UsageError: It names none, or several.
        Refusal: There is none.
    """
    numbers = row_numbers(at.rest)
    if len(numbers) + bool(where) != 1:
        raise click.UsageError("name one ROW, or give --where CONDITION for the oldest that fits")
    if numbers:
        [row] = find_rows(store, numbers, at)
        return row
    fitting = store.matching(where, time.time())
    found = store.row(fitting[0]) if fitting else None
    if found is None:
        raise Refusal(f"nothing quarantined fits; see: {at.command('list')}")
    if len(fitting) > 1:
        note(f"{plural(len(fitting), 'message')} fit; row {found.id} is the oldest of them")
    return found


def agree(count: int, verb: str, at: Where, *, yes: bool, expect: int | None) -> None:
    """Let the operator type the number of messages that an order is about.

    Args:
        count: The number of messages that the command has found.
        verb: The order, as in ``drop``.
        at: The instance.
        yes: Do not ask.
        expect: The number that the caller knows; None where the terminal has to be asked.

    Raises:
        Refusal: Nobody can be asked, or the caller expects another number.
        click.Abort: Another number was typed.
    """
    messages = plural(count, "message")
    if expect is not None:
        if count != expect:
            there = "there is" if count == 1 else "there are"
            raise Refusal(f"{there} {messages} now, not {expect:,}; nothing was done")
        return
    if yes or not count:
        return
    if not sys.stdin.isatty():
        cure = f"say --yes, or --expect {count}"
        raise Refusal(f"without a terminal nobody is asked about {messages}: {cure}")
    question = f"Type {count} to {verb} {messages} of {at.instance}"
    typed = click.prompt(question, default="", show_default=False, err=True)
    if typed.strip().replace(",", "") != str(count):
        raise click.Abort
