# SPDX-License-Identifier: GPL-2.0-or-later
"""Expires what is quarantined in instances that are stopped; one that runs does so itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from consumer_framework.adapters import config
from consumer_framework.adapters.journal import Journal, Limits
from consumer_framework.adapters.journal.files import DATABASE, described
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.settings import Framework

from .client import reached

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Rows that expire while an instance of this name could not start, and the seconds that it has to
# do so before the next ones.
AT_ONCE = 2000
PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Expiry:
    """What became of the old messages of an instance.

    Attributes:
        rows: So many were exported and deleted.
        file: What they were appended to; None where nothing was looked for.
        is_running: The instance runs, and was left alone.
    """

    rows: int = 0
    file: Path | None = None
    is_running: bool = False


def expire(
    instance: str,
    file: Path,
    directory: Path,
    now: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Expiry:
    """Export and delete what is quarantined for longer than ``quarantine_max_age``.

    Args:
        instance: Its name.
        file: Its configuration; only the framework's own table is looked at, for credentials and
            the handler are not there where no service is.
        directory: Its state directory.
        now: Seconds since the epoch.
        sleep: Waits for so many seconds, and so lets an instance start in the middle of it.

    Raises:
        ConfigurationError: The file cannot be read, or the table is not valid.
        ControlError: The instance runs, but this user may not ask it.
        JournalError: The journal cannot be written, or the file of expired messages.
    """
    max_age = _max_age(instance, file)
    if not _has_journal(directory):
        return Expiry()
    done = Expiry()
    while True:
        with reached(directory, instance) as running:
            if running is not None:
                return replace(done, is_running=True)
        limits = Limits(max_age)
        with closing(Journal.open(directory, instance=instance, limits=limits)) as journal:
            expired = asyncio.run(journal.expire(now, most=AT_ONCE))
        done = Expiry(done.rows + expired.rows, expired.file)
        if expired.rows < AT_ONCE:
            return done
        sleep(PAUSE)


def _max_age(instance: str, file: Path) -> float:
    author = config.read(file).get("consumer_config", {})
    table = author.get("framework", {}) if isinstance(author, dict) else None
    try:
        return Framework.model_validate(table).quarantine_max_age
    except ValidationError:
        cure = f"'fm-consumer check {instance}' says where"
        problem = Problem("consumer_config.framework", "is not valid", cure)
        raise ConfigurationError(problem, source=str(file)) from None


def _has_journal(directory: Path) -> bool:
    file = directory / DATABASE
    with described(file):
        # exists() takes a directory that may not be searched for an error on some Pythons only.
        try:
            file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True
