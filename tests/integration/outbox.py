# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers of the tests of the outbox."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from consumer_framework.publishing.message import Outgoing

SQLITE, POSTGRESQL, MARIADB = "sqlite", "postgresql", "mariadb"
on_every_database = pytest.mark.parametrize(
    "outbox_url", [SQLITE, POSTGRESQL, MARIADB], indirect=True
)
on_servers = pytest.mark.parametrize("outbox_url", [POSTGRESQL, MARIADB], indirect=True)

NOW = 1_700_000_000.0
_numbers = itertools.count(1)


def message(key: str = "", **changes: Any) -> Outgoing:
    """Return a message that no other call returns."""
    values: dict[str, Any] = {
        "id": f"id-{next(_numbers)}",
        "topic": "app.done",
        "body": b'{"n": 1}',
        "headers": {"fedora_messaging_severity": 20},
        "exchange": "amq.topic",
        "ordering_key": key,
        "created": NOW,
    }
    return Outgoing(**{**values, **changes})


def spooled(*messages: Outgoing, on_failure: str = "spool") -> list[tuple[Outgoing, str]]:
    return [(one, on_failure) for one in messages]
