# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the migrations on the connection that :func:`.migrations.upgrade` passes."""

from alembic import context

from consumer_framework.publishing.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
# The caller owns the transaction: no begin_transaction() here.
context.run_migrations()
