# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixtures of pytest that this package brings, for the ``conftest.py`` of a project.

::

    pytest_plugins = ["consumer_framework.pytest_plugin"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.publishing.capturing import CapturedMessages


@pytest.fixture
def capture_outbox() -> Iterator[CapturedMessages]:
    """Record the messages that a test publishes, in place of storing them."""
    from consumer_framework.publishing.capturing import capture_outbox  # noqa: PLC0415

    with capture_outbox() as captured:
        yield captured
