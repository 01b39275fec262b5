# SPDX-License-Identifier: GPL-2.0-or-later
"""The migrations of the outbox's tables, as alembic runs them.

:meth:`.OutboxStore.migrate` runs them. They keep their version in a table of their own,
``fm_outbox_version``, so that they do not meet the migrations of the application whose database
the outbox shares. An application that uses alembic itself excludes the tables with the prefix
``fm_outbox`` from its ``--autogenerate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION_TABLE = "fm_outbox_version"
# The version of the tables that this code needs; the name of the newest migration.
HEAD = "0002"


def upgrade(connection: Connection) -> None:
    """Bring the tables to :data:`HEAD`, in the transaction of *connection*."""
    # alembic takes a tenth of a second to import, and only a migration needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
