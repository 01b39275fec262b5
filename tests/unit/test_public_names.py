# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages for authors have all their public names, and import them late."""

import subprocess
import sys

import pytest

import consumer_framework
import consumer_framework.testing

HEAVY = {"fedora_messaging", "jsonschema", "pydantic", "sqlalchemy", "twisted"}


@pytest.mark.parametrize("package", [consumer_framework, consumer_framework.testing])
def test_each_public_name_can_be_imported_and_is_listed(package):
    assert sorted(package._MODULES) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'Cosnumer'"):
        package.Cosnumer  # noqa: B018


def test_the_packages_are_imported_without_their_parts():
    code = "import consumer_framework.testing, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "consumer_framework.testing" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())
