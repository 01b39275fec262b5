# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of a new SQLite file, as all migrations together make them.

A program's first message may come to such a file, and alembic takes half a second to import. A test
compares these tables with those of the migrations.
"""

from . import HEAD

STATEMENTS = (
    """CREATE TABLE fm_outbox_version (
        version_num VARCHAR(32) NOT NULL,
        CONSTRAINT fm_outbox_version_pkc PRIMARY KEY (version_num)
    )""",
    """CREATE TABLE fm_outbox (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        message_id VARCHAR(255) NOT NULL,
        topic VARCHAR(255) NOT NULL,
        exchange VARCHAR(255) NOT NULL,
        body BLOB NOT NULL,
        headers TEXT NOT NULL,
        priority SMALLINT,
        ordering_key VARCHAR(255) DEFAULT '' NOT NULL,
        created DOUBLE NOT NULL,
        due DOUBLE DEFAULT '0' NOT NULL,
        attempts INTEGER DEFAULT '0' NOT NULL,
        state VARCHAR(8) DEFAULT 'waiting' NOT NULL,
        reason TEXT,
        claimed_by VARCHAR(64),
        claimed_until DOUBLE,
        on_failure VARCHAR(8) DEFAULT 'spool' NOT NULL
    )""",
    "CREATE INDEX fm_outbox_due ON fm_outbox (state, due, id)",
    "CREATE INDEX fm_outbox_key ON fm_outbox (ordering_key, id)",
    """CREATE TABLE fm_outbox_counts (
        name VARCHAR(32) NOT NULL,
        value BIGINT NOT NULL,
        PRIMARY KEY (name)
    )""",
    """CREATE TABLE fm_outbox_lease (
        name VARCHAR(32) NOT NULL,
        owner VARCHAR(64) NOT NULL,
        until DOUBLE NOT NULL,
        PRIMARY KEY (name)
    )""",
    """CREATE TABLE fm_outbox_sources (
        source VARCHAR(64) NOT NULL,
        run VARCHAR(64) NOT NULL,
        stored DOUBLE NOT NULL,
        PRIMARY KEY (source)
    )""",
    "CREATE INDEX fm_outbox_sources_stored ON fm_outbox_sources (stored)",
    f"INSERT INTO fm_outbox_version (version_num) VALUES ('{HEAD}')",  # noqa: S608 -- our own
)
