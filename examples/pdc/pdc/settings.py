# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of the project. MESSAGE_BUS is as PDC's documentation has it."""

import os
from typing import Any

SECRET_KEY = os.environ.get("PDC_SECRET_KEY", "only for this example")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "pdc.compose.views"
USE_TZ = True
INSTALLED_APPS = [
    "consumer_framework.publishing.integrations.django",
    "pdc.messaging",
    "pdc.compose",
]
MIDDLEWARE = [
    # First: it ends the transaction of a request, when PDC's own middleware is done.
    "consumer_framework.publishing.integrations.django.middleware.OutboxMiddleware",
    "pdc.messaging.middleware.MessagingMiddleware",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("PDC_DATABASE", "pdc.sqlite3"),
        "ATOMIC_REQUESTS": True,
        "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Messaging Bus Config
MESSAGE_BUS: dict[str, Any] = {
    "MLP": "kombu",
    "URL": os.environ.get("PDC_BROKER", "amqp://guest:guest@localhost:5672//"),
    "EXCHANGE": {
        "name": os.environ.get("PDC_EXCHANGE", "amq.topic"),
        "type": "topic",
        "durable": True,
    },
    "OPTIONS": {},
}
