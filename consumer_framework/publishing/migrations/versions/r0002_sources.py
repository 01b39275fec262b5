# SPDX-License-Identifier: GPL-2.0-or-later
"""The deliveries whose handlers published messages: see :mod:`.sources`."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and its index."""
    options: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
    op.create_table(
        "fm_outbox_sources",
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("stored", sa.Double, nullable=False),
        **options,
    )
    op.create_index("fm_outbox_sources_stored", "fm_outbox_sources", ["stored"])


def downgrade() -> None:
    """Drop the table: a delivery that comes again publishes its messages again."""
    op.drop_table("fm_outbox_sources")
