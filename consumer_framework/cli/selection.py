# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens the store of an instance for reading, and finds the rows that a command names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import click

from consumer_framework.core.errors import ConfigurationError, Problem, StoreError

from .options import no_such_instance
from .terminal import Refusal

# The store is imported late: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consumer_framework.adapters.store import Reader, Row

    from .options import Where

FINGERPRINT = click.option(
    "--fingerprint",
    metavar="F",
    help="Those of this cause: a fingerprint as 'list' shows it, or a part that no other has.",
)


def open_store(at: Where) -> Reader:
    """Open the store of an instance for reading.

    Raises:
        ConfigurationError: There is none, or this user may not read it.
        StoreError: It cannot be read.
    """
    from consumer_framework.adapters.store import Store  # noqa: PLC0415
    from consumer_framework.adapters.store.files import DATABASE  # noqa: PLC0415

    file = at.directory / DATABASE
    try:
        file.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise _no_store(at) from None
    except PermissionError:
        raise _not_permitted(file) from None
    try:
        return Store.read(at.directory)
    except StoreError:
        # SQLite needs a file beside it, also to read.
        if not os.access(at.directory, os.W_OK):
            raise _not_permitted(file) from None
        raise


def _not_permitted(file: Path) -> ConfigurationError:
    cure = "use sudo, or run this as the user that the instance runs as"
    return ConfigurationError(Problem("", "may not be read by this user", cure), source=str(file))


def _no_store(at: Where) -> ConfigurationError:
    if not at.file.exists():
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


def find_rows(store: Reader, numbers: Sequence[int], at: Where) -> list[Row]:
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


def find_fingerprint(store: Reader, wanted: str) -> str:
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


def choose(store: Reader, at: Where, fingerprint: str | None, *, everything: bool) -> list[Row]:
    """Find the rows that a command names: by numbers, by a fingerprint, or all.

    Rows of one key are in the order in which they were published.

    Raises:
        Refusal: It names them in two ways, or none, or some that are not there.
    """
    numbers = row_numbers(at.rest)
    if bool(numbers) + everything + (fingerprint is not None) != 1:
        raise Refusal("say which: row numbers, or --fingerprint F, or --all")
    if fingerprint is not None:
        fingerprint = find_fingerprint(store, fingerprint)
    rows = find_rows(store, numbers, at) if numbers else store.rows(fingerprint=fingerprint)
    by_number = {row.id: row for row in rows}
    return [by_number[number] for number in store.in_lane_order(by_number)]
