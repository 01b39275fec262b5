# SPDX-License-Identifier: GPL-2.0-or-later
"""A Django project in the process of the tests, with databases that a test chooses.

Django has one configuration for each process: a test gets it by the fixture ``project``.
"""

from __future__ import annotations

import json
from typing import Any

import django
import pymysql
import sqlalchemy as sa
from django.conf import settings
from django.core.management import call_command
from django.db import connections

APP = "consumer_framework.publishing.integrations.django"
MIDDLEWARE = f"{APP}.middleware.OutboxMiddleware"


def configure() -> None:
    """Configure Django, once in the process."""
    if settings.configured:
        return
    pymysql.install_as_MySQLdb()
    settings.configure(
        INSTALLED_APPS=[APP],
        DATABASES={"default": database("sqlite://"), "other": database("sqlite://")},
        ROOT_URLCONF=__name__,
        SECRET_KEY="test",  # noqa: S106 -- no secret
        ALLOWED_HOSTS=["testserver"],
        USE_TZ=True,
        FM_OUTBOX={"topic_prefix": "org.example"},
    )
    django.setup()


# The tests put their views here.
urlpatterns: list[Any] = []


def database(url: str) -> dict[str, Any]:
    """Return Django's settings for the database at *url*."""
    parsed = sa.make_url(url)
    engine = {"mariadb": "mysql"}.get(parsed.get_backend_name(), parsed.get_backend_name())
    if engine == "sqlite":
        options: dict[str, Any] = {"timeout": 20}
        if django.VERSION >= (5, 1):
            options["transaction_mode"] = "IMMEDIATE"
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parsed.database or ":memory:",
            "OPTIONS": options,
        }
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": parsed.database,
        "USER": parsed.username,
        "HOST": parsed.host,
        "PORT": parsed.port,
    }


def use(**databases: dict[str, Any]) -> None:
    """Let the project have *databases*, by alias, and make their tables."""
    forget()
    connections.settings.clear()
    connections.settings.update(connections.configure_settings(databases))
    for alias in databases:
        call_command("migrate", database=alias, verbosity=0)


def forget() -> None:
    """Close the connections of this thread."""
    for alias in list(connections):
        connections[alias].close()
        del connections[alias]


def bodies(rows: Any) -> list[Any]:
    """Return the bodies of rows of the store."""
    return [json.loads(row.message.body) for row in rows]
