# SPDX-License-Identifier: GPL-2.0-or-later
"""The databases of the tests of the outbox."""

import pytest

SQLITE, POSTGRESQL, MARIADB = "sqlite", "postgresql", "mariadb"
on_every_database = pytest.mark.parametrize(
    "outbox_url", [SQLITE, POSTGRESQL, MARIADB], indirect=True
)
on_servers = pytest.mark.parametrize("outbox_url", [POSTGRESQL, MARIADB], indirect=True)
