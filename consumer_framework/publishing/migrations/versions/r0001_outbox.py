# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of the outbox."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _options() -> dict[str, Any]:
    """Return the table options: keys are compared byte by byte, with their spaces."""
    is_mariadb = getattr(op.get_context().dialect, "is_mariadb", False)
    options = {
        "engine": "InnoDB",
        "charset": "utf8mb4",
        "collate": "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_bin",
    }
    return {
        f"{name}_{key}": value for name in ("mysql", "mariadb") for key, value in options.items()
    }


def _columns() -> list[sa.Column[Any]]:
    """Return the columns of the messages."""
    long_text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
    return [
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("message_id", sa.String(255), nullable=False),
        sa.Column("topic", sa.String(255), nullable=False),
        sa.Column("exchange", sa.String(255), nullable=False),
        sa.Column(
            "body",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"),
            nullable=False,
        ),
        sa.Column("headers", long_text, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=True),
        sa.Column("ordering_key", sa.String(255), nullable=False, server_default=""),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("due", sa.Double, nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("state", sa.String(8), nullable=False, server_default="waiting"),
        sa.Column("reason", sa.Text, nullable=True),
        sa.Column("claimed_by", sa.String(64), nullable=True),
        sa.Column("claimed_until", sa.Double, nullable=True),
        sa.Column("on_failure", sa.String(8), nullable=False, server_default="spool"),
    ]


def upgrade() -> None:
    """Create the tables and the indexes."""
    options = _options()
    op.create_table(
        "fm_outbox",
        *_columns(),
        # No id is ever used twice.
        sqlite_autoincrement=True,
        **options,
    )
    op.create_index("fm_outbox_due", "fm_outbox", ["state", "due", "id"])
    op.create_index("fm_outbox_key", "fm_outbox", ["ordering_key", "id"])
    op.create_table(
        "fm_outbox_counts",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
        **options,
    )
    op.create_table(
        "fm_outbox_lease",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("until", sa.Double, nullable=False),
        **options,
    )


def downgrade() -> None:
    """Drop the tables, with every message in them."""
    for table in ("fm_outbox_lease", "fm_outbox_counts", "fm_outbox"):
        op.drop_table(table)
