# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

import logging

import hypothesis
import pytest

from consumer_framework.core import secrets

# A machine that does other things too is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as they are, whoever runs the tests; pytest-xdist sets these."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)


@pytest.fixture(autouse=True)
def _secrets_of_one_test_are_none_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process knows its secrets for life; one that runs tests would know those of all tests."""
    monkeypatch.setattr(secrets, "_known", secrets._Known({}))


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
    # So that no handler of the test runner's is closed.
    root.handlers = []
    yield
    for logger, level, disabled, propagate, handlers, filters in before:
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        logger.handlers, logger.filters = handlers, filters
