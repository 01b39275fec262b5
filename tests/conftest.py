# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

import pytest


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as they are, whoever runs the tests; pytest-xdist sets these."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
