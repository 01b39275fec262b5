# SPDX-License-Identifier: GPL-2.0-or-later
"""The Django app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.exceptions import ImproperlyConfigured


class OutboxConfig(AppConfig):
    """The app of the outbox; its tables begin with ``fm_outbox``."""

    name = "consumer_framework.publishing.integrations.django"
    label = "fm_outbox"
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let ``manage.py check`` look at the settings."""
        checks.register(_check)


def _check(**_: Any) -> list[checks.CheckMessage]:
    from .outbox import make  # noqa: PLC0415 -- models cannot be imported before the app is ready

    try:
        make("default")
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="fm_outbox.E001")]
    return []
