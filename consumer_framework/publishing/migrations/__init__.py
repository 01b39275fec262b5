# SPDX-License-Identifier: GPL-2.0-or-later
"""The migrations of the outbox's tables, as alembic runs them.

:meth:`.OutboxStore.migrate` runs them. They keep their version in a table of their own,
``fm_outbox_version``, so that they do not meet the migrations of the application whose database
the outbox shares. An application that uses alembic itself leaves these tables out of its
``--autogenerate``: see :mod:`.integrations.sqlalchemy`.

A framework with migrations of its own, such as Django, runs the :func:`statements` of ours.

The revision of a migration is the number of its version, such as ``0003``. If programs of an older
version may go on using the tables, because the migration only adds, the revision names the oldest
such version too: ``0003_for_0002``. So a relay that was not updated yet can restart, see
:func:`serves`.
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
_FOR = "_for_"


def serves(found: str) -> bool:
    """Tell whether this code can use tables of the version *found*.

    Args:
        found: The revision of the newest migration that was run.
    """
    version, _, oldest = found.partition(_FOR)
    return (oldest or version) <= _own_version() <= version


def is_newer(found: str) -> bool:
    """Tell whether tables of the version *found* were made by a newer program than this one."""
    return found.partition(_FOR)[0] > _own_version()


def _own_version() -> str:
    return HEAD.partition(_FOR)[0]


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
