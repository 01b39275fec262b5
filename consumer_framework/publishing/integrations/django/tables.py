# SPDX-License-Identifier: GPL-2.0-or-later
"""The operation of this app's migrations: it runs the SQL of the outbox's own migrations.

So the tables have one definition, and the relay finds its version in them, whoever made them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import router
from django.db.migrations.operations.base import Operation

from consumer_framework.publishing.migrations import BASE, VERSION_TABLE, statements

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class ChangeTables(Operation):
    """Bring the tables from one version to another. Tables that have it already are left alone.

    Args:
        before: The version before, or :data:`.migrations.BASE` for no tables.
        after: The version after.
    """

    def __init__(self, before: str, after: str) -> None:
        self.before = before
        self.after = after

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the models alone: other operations describe them."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, *_: Any
    ) -> None:
        """Make the change, unless the tables have it."""
        self._change(app_label, schema_editor, self.before, self.after)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, *_: Any
    ) -> None:
        """Take the change back."""
        self._change(app_label, schema_editor, self.after, self.before)

    def describe(self) -> str:
        """Return the change for people."""
        return f"Bring the tables of the outbox from version {self.before} to {self.after}"

    def _change(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, before: str, after: str
    ) -> None:
        connection = schema_editor.connection
        if not router.allow_migrate(connection.alias, app_label, model_name="outboxmessage"):
            return
        if not schema_editor.collect_sql and _version(connection) != before:
            return
        for statement in statements(_dialect(connection), before, after):
            schema_editor.execute(statement, None)


def _version(connection: BaseDatabaseWrapper) -> str:
    if VERSION_TABLE not in connection.introspection.table_names():
        return BASE
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 -- a constant
        row = cursor.fetchone()
    return str(row[0]) if row else BASE


def _dialect(connection: Any) -> str:
    is_mariadb = connection.vendor == "mysql" and connection.mysql_is_mariadb
    return "mariadb" if is_mariadb else str(connection.vendor)
