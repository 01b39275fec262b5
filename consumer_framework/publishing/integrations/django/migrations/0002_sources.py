# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of deliveries whose handlers published messages."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations

from consumer_framework.publishing.integrations.django.tables import ChangeTables


class Migration(migrations.Migration):
    """Version 0002 of the outbox's tables."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("fm_outbox", "0001_outbox")]
    operations: ClassVar[list[Any]] = [ChangeTables("0001", "0002")]
