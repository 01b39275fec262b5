# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at the outbox of a configuration: its messenger, its database, its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.errors import ConfigurationError, ExitCode, Problem
from consumer_framework.settings import OutboxSettings

from .findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from consumer_framework.publishing.store import OutboxStore
    from consumer_framework.settings import Settings

    from .findings import Finding

_PATH = "consumer_config.framework.outbox"
DATABASE = f"{_PATH}.database"
# The user is `fm-outbox-NAME`, and has 31 characters at most (systemd.exec(5)).
_LONGEST_NAME = 21


def relay_findings(name: str, *, as_service: bool) -> Iterator[Finding]:
    """Yield the findings about the name of a relay."""
    yield info("callback", "is not set: this is the configuration of a relay, fm-outbox@NAME")
    if as_service and len(name) > _LONGEST_NAME:
        what = f"{name!r} has {len(name)} characters; that of a relay has at most {_LONGEST_NAME}"
        yield warning("", what, "rename the file")


def outbox_findings(
    settings: Settings, name: str, absent: Collection[str], *, ask: bool, as_service: bool
) -> Iterator[Finding]:
    """Yield the findings about the outbox, if the configuration has one.

    Args:
        settings: The configuration.
        name: That of the instance or relay.
        absent: The TOML paths of the credentials that this process does not have.
        ask: Connect to a database server too. A SQLite file is looked at anyway.
        as_service: Systemd runs it, as another user than this one.
    """
    outbox = settings.framework.outbox
    if outbox == OutboxSettings():
        return
    if not any(path.startswith(f"{_PATH}.endpoints") or path == "amqp_url" for path in absent):
        yield from _messenger_findings(settings)
    if outbox.database is None:
        return
    if DATABASE in absent:
        yield info(DATABASE, "was not asked: that takes a credential that is not to be had here")
        return
    yield from _database_findings(outbox, name, ask=ask, as_service=as_service)


def _messenger_findings(settings: Settings) -> Iterator[Finding]:
    # Late: SQLAlchemy may be missing, and takes time.
    try:
        from consumer_framework.publishing.relaying import messenger_of  # noqa: PLC0415

        messenger_of(settings)
    except ConfigurationError as refusal:
        yield from map(error, refusal.problems)


def _database_findings(
    outbox: OutboxSettings, name: str, *, ask: bool, as_service: bool
) -> Iterator[Finding]:
    try:
        from consumer_framework.publishing.outbox import database_of  # noqa: PLC0415
        from consumer_framework.publishing.store import OutboxStore  # noqa: PLC0415

        store = OutboxStore.connect(database_of(outbox))
    except ConfigurationError as refusal:
        yield from map(error, refusal.problems)
        return
    try:
        if ask or store.is_sqlite:
            yield _answer(store, name, as_service=as_service)
        else:
            yield info(DATABASE, "the database was not asked", "add --broker")
    finally:
        store.close()


def _answer(store: OutboxStore, name: str, *, as_service: bool) -> Finding:
    from consumer_framework.publishing.store import OutboxError  # noqa: PLC0415

    if store.is_sqlite and not store.has_file:
        return info(DATABASE, f"{store.place} is not there yet", "the relay makes it")
    try:
        fault = store.fault_of_tables(f"fm-consumer outbox migrate {name}")
    except OutboxError as failure:
        if as_service and not store.is_sqlite and store.engine.url.host is None:
            cure = "the service is another user; see its log"
            return warning(DATABASE, f"does not let this user in: {failure}", cure)
        return error(Problem(DATABASE, str(failure)), ExitCode.TEMPORARY)
    if fault is not None:
        what, cure = fault
        return error(Problem(DATABASE, f"{store.place} {what}", cure), ExitCode.TEMPORARY)
    return info(DATABASE, f"{store.place} has its tables")
