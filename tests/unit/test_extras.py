# SPDX-License-Identifier: GPL-2.0-or-later
"""Each extra for use works with its own packages alone, and names itself where they are missing."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Uses the packages of the extra. {name} is the name of a messenger too.
MESSENGER = """
from consumer_framework.publishing.messengers import Endpoints, find
find("{name}")(Endpoints(({url!r},)){options})
"""
DATABASE = """
from consumer_framework.publishing.store import create_engine
create_engine({url!r}).dialect.dbapi.connect
"""
USES = {
    "broker": "import consumer_framework.testing.broker.tls",
    "django": "import consumer_framework.publishing.integrations.django",
    "fedmsg": MESSENGER.format(
        name="fedmsg", url="tcp://127.0.0.1:9940", options=", sign_messages=False"
    ),
    "kombu": MESSENGER.format(name="kombu", url="amqp://host", options=""),
    "mariadb": DATABASE.format(url="mariadb://host/name"),
    "new": "import consumer_framework.kit.project_template",
    "otel": """
from consumer_framework.runtime.assembly.plan import check_traces
from consumer_framework.settings import Framework
check_traces(Framework(traces=True))
""",
    "postgresql": DATABASE.format(url="postgresql://host/name"),
    "proton": MESSENGER.format(name="proton", url="amqp://host", options=""),
    "stomp": MESSENGER.format(name="stomp", url="stomp://host", options=""),
    "testing": """
from fedora_messaging.message import Message
from consumer_framework.testing import messages
messages(Message)
""",
    "top": "import consumer_framework.cli.top_screen",
    "watch": """
import pathlib
from consumer_framework.kit.development.changes import Changes
Changes(pathlib.Path.cwd(), [])
""",
}
# Stands for the library libpq of the system.
WITH = {"postgresql": {"psycopg-binary"}}
# The extras whose lack is told by `find`.
MESSENGERS = {"fedmsg": "zmq", "kombu": "kombu", "proton": "proton", "stomp": "stomp"}

# Only the modules of some distributions can be imported: of others not even those that are
# installed.
BLOCK = """
import importlib.abc, importlib.metadata, json, re, sys
allowed = set(json.loads(sys.argv[1]))
owners = importlib.metadata.packages_distributions()
def is_allowed(name):
    return re.sub(r"[-_.]+", "-", name).lower() in allowed
names = {module for module, owned_by in owners.items() if not any(map(is_allowed, owned_by))}
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def closure(requirements: list[str], extras: frozenset[str] = frozenset()) -> set[str]:
    """Return the distributions that pip installs for *requirements*, with those that they need."""
    found: set[str] = set()
    waiting = [(Requirement(text), extras) for text in requirements]
    while waiting:
        requirement, of = waiting.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in of or {""}):
            continue
        name = canonicalize_name(requirement.name)
        if name == "consumer-framework":
            further = [text for extra in requirement.extras for text in EXTRAS[extra]]
        elif name in found and not requirement.extras:
            continue
        else:
            found.add(name)
            further = distribution(name).requires or []
        waiting += [(Requirement(text), frozenset(requirement.extras)) for text in further]
    return found


def run(allowed: set[str], code: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        BLOCK + code,
        json.dumps(sorted(allowed | {"consumer-framework"})),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_extra_for_use_has_a_use():
    development = {"demo", "schemas", "test", "lint", "rpm", "docs", "bench", "dev"}
    assert set(USES) == set(EXTRAS) - development


@pytest.mark.parametrize("name", list(USES))
def test_an_extra_works_with_its_own_packages_alone(name):
    try:
        allowed = closure([*PROJECT["dependencies"], *EXTRAS[name]])
    except PackageNotFoundError as error:
        pytest.skip(f"a package of the extra is not installed: {error}")
    done = run(allowed | WITH.get(name, set()), USES[name])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(MESSENGERS))
def test_a_messenger_without_its_packages_names_the_commands_that_install_them(name):
    done = run(closure(PROJECT["dependencies"]), USES[name])
    assert "ConfigurationError" in done.stderr
    assert f"No module named '{MESSENGERS[name]}" in done.stderr
    assert f"pip install 'consumer-framework[{name}]'" in done.stderr
    assert f"dnf install python3-consumer-framework+{name}" in done.stderr


def test_traces_without_their_packages_name_the_commands_that_install_them():
    done = run(closure(PROJECT["dependencies"]), USES["otel"])
    assert "ConfigurationError" in done.stderr
    assert "No module named 'opentelemetry" in done.stderr
    assert "pip install 'consumer-framework[otel]'" in done.stderr
    assert "dnf install python3-consumer-framework+otel" in done.stderr


def test_a_strategy_for_messages_without_hypothesis_names_the_command_that_installs_it():
    done = run(closure(PROJECT["dependencies"]), USES["testing"])
    assert "pip install 'consumer-framework[testing]'" in done.stderr
