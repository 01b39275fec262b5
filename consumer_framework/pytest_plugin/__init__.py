# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin of pytest: fixtures for the tests of consumers, and a guard for published messages.

pytest finds :mod:`.fixtures` by its entry point ``consumer_framework``, so a project does nothing
for it, and ``-p no:consumer_framework`` turns it off. Where ``PYTEST_DISABLE_PLUGIN_AUTOLOAD`` is
set, ``-p consumer_framework.pytest_plugin`` or this line of a ``conftest.py`` loads it::

    pytest_plugins = ["consumer_framework.pytest_plugin"]

Nothing heavy is imported before a test takes a fixture: pytest loads the plugin in every project
of its environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_NAME = "consumer_framework"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin, unless its entry point did."""
    if not pluginmanager.has_plugin(_NAME):
        from . import fixtures  # noqa: PLC0415 -- pytest rewrites its asserts if it is loaded late

        pluginmanager.register(fixtures, _NAME)
