# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings and fixtures of all tests."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from consumer_framework.core import secrets

# A slow example on a busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the width of tables independent of the terminal; pytest-xdist sets these."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)


@pytest.fixture(autouse=True)
def _forget_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets of a test, which a process otherwise knows for life."""
    monkeypatch.setattr(secrets, "_patterns", secrets._Patterns({}))


@pytest.fixture
def short_tmp_path() -> Iterator[Path]:
    """Return a directory whose name leaves room for a socket: 107 bytes with its path (unix(7)).

    That of ``tmp_path`` becomes longer with the number of the runs that pytest knows.
    """
    with tempfile.TemporaryDirectory(prefix="fm-") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def _logging_is_put_back():
    root = logging.root
    loggers = [root, *(logging.getLogger(name) for name in list(root.manager.loggerDict))]
    before = [
        (
            logger,
            logger.level,
            logger.disabled,
            logger.propagate,
            logger.handlers[:],
            logger.filters[:],
        )
        for logger in loggers
    ]
    # This keeps the handlers of the test runner open.
    root.handlers = []
    yield
    for logger, level, disabled, propagate, handlers, filters in before:
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        logger.handlers, logger.filters = handlers, filters
    known = {logger for logger, *_ in before}
    for new in {logging.getLogger(name) for name in list(root.manager.loggerDict)} - known:
        new.setLevel(logging.NOTSET)
        new.disabled, new.propagate = False, True
        new.handlers, new.filters = [], []
