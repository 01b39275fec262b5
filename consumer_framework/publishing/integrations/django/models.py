# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of the outbox as a model of Django.

The columns are those of ``consumer_framework/publishing/migrations``, whose SQL the migrations of
this app run. The counts, the lease of the relay and the version of the tables have no models: only
the relay uses them.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class OutboxMessage(models.Model):
    """A message that was accepted for publishing. The relay deletes it after it was sent.

    Attributes:
        state: ``"waiting"``, or ``"dead"`` if it can never be sent.
        due: When it may be sent, in seconds since the epoch; 0 for at once.
        reason: The last failure.
    """

    id = models.BigAutoField(primary_key=True)
    message_id = models.CharField(max_length=255)
    topic = models.CharField(max_length=255)
    exchange = models.CharField(max_length=255)
    body = models.BinaryField()
    headers = models.TextField()
    priority = models.SmallIntegerField(null=True)
    ordering_key = models.CharField(max_length=255, default="")
    created = models.FloatField()
    due = models.FloatField(default=0.0)
    attempts = models.IntegerField(default=0)
    state = models.CharField(max_length=8, default="waiting")
    reason = models.TextField(null=True)  # noqa: DJ001 -- the relay writes NULL
    claimed_by = models.CharField(max_length=64, null=True)  # noqa: DJ001
    claimed_until = models.FloatField(null=True)
    on_failure = models.CharField(max_length=8, default="spool")

    class Meta:
        """The name of the table, and its indexes."""

        app_label = "fm_outbox"
        db_table = "fm_outbox"
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["state", "due", "id"], name="fm_outbox_due"),
            models.Index(fields=["ordering_key", "id"], name="fm_outbox_key"),
        ]

    def __str__(self) -> str:
        return f"{self.topic} ({self.message_id})"
