# SPDX-License-Identifier: GPL-2.0-or-later
"""The migrations of the outbox's tables, as alembic runs them.

:meth:`.OutboxStore.migrate` runs them. They keep their version in a table of their own,
``fm_outbox_version``, so that they do not meet the migrations of the application whose database
the outbox shares. An application that uses alembic itself leaves these tables out of its
``--autogenerate``: see :mod:`.integrations.sqlalchemy`.

A framework with migrations of its own, such as Django, runs the :func:`statements` of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

VERSION_TABLE = "fm_outbox_version"
# The version of the tables that this code needs; the name of the newest migration.
HEAD = "0002"
# The version of a database without the tables.
BASE = "base"


def upgrade(connection: Connection) -> None:
    """Bring the tables to :data:`HEAD`, in the transaction of *connection*."""
    # alembic takes a tenth of a second to import, and only a migration needs it.
    from alembic import command  # noqa: PLC0415

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def statements(dialect: str, before: str, after: str) -> list[str]:
    """Return the SQL statements that change the tables from one version to another.

    Args:
        dialect: ``"sqlite"``, ``"postgresql"``, ``"mariadb"`` or ``"mysql"``.
        before: The version that the tables have; :data:`BASE` for no tables.
        after: The version that they get. An earlier one than *before* takes the changes back.
    """
    from alembic import command  # noqa: PLC0415 -- as above

    script = _Script()
    config = _config()
    config.attributes.update(dialect=dialect, script=script)
    is_upgrade = before == BASE or (after != BASE and after > before)
    change = command.upgrade if is_upgrade else command.downgrade
    change(config, f"{before}:{after}", sql=True)
    return script.statements


class _Script:
    """The text that alembic writes: one statement, or one comment, at a time."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def write(self, text: str) -> None:
        statement = text.strip().removesuffix(";")
        if not statement.startswith("--"):
            self.statements.append(statement)

    def flush(self) -> None:
        """Nothing is kept back."""


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 -- as above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
