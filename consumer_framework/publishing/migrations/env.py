# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the migrations on the connection that :func:`.migrations.upgrade` passes, or write them."""

from alembic import context

from consumer_framework.publishing.migrations import VERSION_TABLE

_attributes = context.config.attributes
if context.is_offline_mode():
    context.configure(
        dialect_name=_attributes["dialect"],
        output_buffer=_attributes["script"],
        literal_binds=True,
        version_table=VERSION_TABLE,
    )
else:
    context.configure(connection=_attributes["connection"], version_table=VERSION_TABLE)
# The caller owns the transaction: no begin_transaction() here.
context.run_migrations()
