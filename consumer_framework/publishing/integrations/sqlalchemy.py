# SPDX-License-Identifier: GPL-2.0-or-later
"""SQLAlchemy applications: the outbox beside their own tables.

A session or a connection needs nothing of this module: ``outbox.publish(message, session=session)``
inserts in its transaction, and ``publish_async`` does with asynchronous ones. The outbox may be
made from the engine of the application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["include_name"]

# The prefix of the outbox's tables, and of nothing else.
_PREFIX = "fm_outbox"


def include_name(
    name: str | None,
    type_: Literal[
        "schema", "table", "column", "index", "unique_constraint", "foreign_key_constraint"
    ],
    parent_names: Mapping[str, str | None],  # noqa: ARG001 -- alembic passes it
) -> bool:
    """Keep the outbox's tables out of ``alembic revision --autogenerate``.

    The outbox has migrations of its own. Without this function alembic sees tables that the
    application does not declare, and drops them. It goes into ``env.py``::

        context.configure(..., include_name=include_name)

    Returns:
        False for the tables of the outbox.
    """
    return not (type_ == "table" and name is not None and name.startswith(_PREFIX))
