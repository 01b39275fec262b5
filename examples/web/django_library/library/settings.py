# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of the project. Those of publishing are the apps, the middleware and FM_OUTBOX."""

import os

SECRET_KEY = os.environ.get("LIBRARY_SECRET_KEY", "only for this example")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "library.views"
INSTALLED_APPS = ["consumer_framework.publishing.integrations.django", "library"]
MIDDLEWARE = ["library.views.LibraryMiddleware"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("LIBRARY_DATABASE", "library.sqlite3"),
        # A transaction that will write waits for others at its beginning.
        "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE"},
    }
}
USE_TZ = True
FM_OUTBOX = {"topic_prefix": "org.example"}
