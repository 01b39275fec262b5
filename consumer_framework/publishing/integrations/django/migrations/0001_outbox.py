# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of the outbox."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations, models

from consumer_framework.publishing.integrations.django.tables import ChangeTables

_FIELDS: list[tuple[str, Any]] = [
    ("id", models.BigAutoField(primary_key=True, serialize=False)),
    ("message_id", models.CharField(max_length=255)),
    ("topic", models.CharField(max_length=255)),
    ("exchange", models.CharField(max_length=255)),
    ("body", models.BinaryField()),
    ("headers", models.TextField()),
    ("priority", models.SmallIntegerField(null=True)),
    ("ordering_key", models.CharField(default="", max_length=255)),
    ("created", models.FloatField()),
    ("due", models.FloatField(default=0.0)),
    ("attempts", models.IntegerField(default=0)),
    ("state", models.CharField(default="waiting", max_length=8)),
    ("reason", models.TextField(null=True)),
    ("claimed_by", models.CharField(max_length=64, null=True)),
    ("claimed_until", models.FloatField(null=True)),
    ("on_failure", models.CharField(default="spool", max_length=8)),
]
_INDEXES = [
    models.Index(fields=["state", "due", "id"], name="fm_outbox_due"),
    models.Index(fields=["ordering_key", "id"], name="fm_outbox_key"),
]


class Migration(migrations.Migration):
    """Version 0001 of the outbox's tables."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [
        migrations.SeparateDatabaseAndState(
            database_operations=[ChangeTables("base", "0001")],
            state_operations=[
                migrations.CreateModel(
                    name="OutboxMessage",
                    fields=_FIELDS,
                    options={"db_table": "fm_outbox", "indexes": _INDEXES},
                ),
            ],
        ),
    ]
