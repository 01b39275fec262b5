# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger of the project, as its settings name it."""

from typing import TYPE_CHECKING

from django.apps import AppConfig
from django.conf import settings

from consumer_framework.publishing.integrations.pdc import messenger

if TYPE_CHECKING:
    from consumer_framework.publishing.integrations.pdc import PdcMessenger


class MessagingConfig(AppConfig):
    """Has the messenger: ``apps.get_app_config("messaging").messenger``."""

    name = "pdc.messaging"
    messenger: "PdcMessenger"

    def ready(self) -> None:
        """Make the messenger. It stores in the project's database; a relay sends."""
        # Late: this module imports models.
        from consumer_framework.publishing.integrations.django.outbox import (  # noqa: PLC0415
            outbox,
        )

        self.messenger = messenger(settings.MESSAGE_BUS, outbox())
