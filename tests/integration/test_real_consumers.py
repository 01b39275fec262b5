# SPDX-License-Identifier: GPL-2.0-or-later
"""Fedora's own consumers have the same effects under both commands.

Each consumer comes from PyPI, unmodified, and runs under ``fedora-messaging consume`` and then
under ``fm-consumer run``, with the same file and the same messages. A test is skipped if its
consumer cannot be installed.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pika
import pytest

from .installed_consumers import REPOSITORY, install, python_path, run_script
from .instance import HEADERS, until
from .outside_services import PostgreSQL, WebService, self_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMMANDS = {
    "fedora-messaging": ["from fedora_messaging.cli import cli; cli()", "consume"],
    "fm-consumer": ["from consumer_framework.cli import main; main()", "run"],
}
PSYCOPG2 = "postgresql+psycopg2"
RECORDED = os.environ.get("RECORDED_MESSAGES", "*/data/fedora-messages.jsonl")

both_commands = pytest.mark.parametrize("command", COMMANDS)


def message(topic: str, body: Any, **headers: Any) -> dict[str, Any]:
    """Return a message as `fedora_messaging.message.dumps` writes it."""
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{topic} {body}")),
        "topic": topic,
        "body": body,
        "headers": {**HEADERS, "sent-at": "2024-05-01T12:00:00+00:00", **headers},
    }


def recorded(*topics: str) -> list[dict[str, Any]]:
    """Return real messages of Fedora's services with one of *topics* in their topic."""
    found = sorted(REPOSITORY.parent.glob(RECORDED))
    if not found:
        pytest.skip(f"no recorded messages: RECORDED_MESSAGES={RECORDED} names no file")
    lines = [json.loads(line) for path in found for line in path.read_text().split("\n") if line]
    return [line for line in lines if any(topic in line["topic"] for topic in topics or [""])]


@dataclass
class World:
    """One run of a consumer, with its queues and the messages that it published.

    Attributes:
        ended: Its exit code, and the number of messages that it left on the queue.
        published: Topic and body of each message that it published.
    """

    url: str
    start: Callable[..., Any]
    name: str = field(default_factory=lambda: f"real.{uuid.uuid4()}")
    ended: tuple[int, int] = (-1, -1)
    published: list[tuple[str, Any]] = field(default_factory=list)
    instance: Any = None

    def __post_init__(self) -> None:
        self._queues: list[str] = []
        self._connection = pika.BlockingConnection(pika.URLParameters(self.url))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()
        self._channel.exchange_declare(self.name, "topic", durable=True)
        self._channel.queue_declare(self.name, durable=True)
        self._channel.queue_bind(self.name, self.name, "in.#")
        self._all = self.queue(self.name, "#")

    def close(self) -> None:
        self._channel.exchange_delete(self.name)
        for queue in (self.name, *self._queues):
            self._channel.queue_delete(queue)
        self._connection.close()

    def queue(self, exchange: str, key: str) -> str:
        """Bind a new queue, and return its name."""
        name: str = self._channel.queue_declare("").method.queue
        self._queues.append(name)
        self._channel.queue_bind(name, exchange, key)
        return name

    def depth(self, queue: str) -> int:
        count: int = self._channel.queue_declare(queue, passive=True).method.message_count
        return count

    def take(self, queue: str) -> list[tuple[Any, Any, Any]]:
        """Empty *queue*, and return its messages."""
        found: list[tuple[Any, Any, Any]] = []
        while (got := self._channel.basic_get(queue, True))[0] is not None:
            found.append(got)
        return found

    def begin(
        self, command: str, python: Path, callback: str, toml: str = "", **environment: str
    ) -> None:
        """Start the consumer under *command*."""
        queue = f'[queues."{self.name}"]\ndurable = true\nauto_delete = false\nexclusive = false\n'
        binding = f'queue = "{self.name}"\nexchange = "{self.name}"\nrouting_keys = ["in.#"]\n'
        self.instance = self.start(
            self.url,
            f"{queue}arguments = {{}}\n[[bindings]]\n{binding}",
            "",
            extra=f'publish_exchange = "{self.name}"\n{toml}',
            command=[str(python), "-c", *COMMANDS[command], "--callback", callback],
            environment={
                "PYTHONPATH": python_path(),
                "RUNTIME_DIRECTORY": "",
                **environment,
            },
        )

    def consume(
        self, messages: list[dict[str, Any]], is_done: Callable[[], bool], publishes: int = 0
    ) -> None:
        """Publish *messages*, wait until *is_done* and *publishes* messages came, and stop it.

        The last message must have an effect, because the consumer stops after it.
        """
        until(
            lambda: self._consumers() == 1,
            lambda: f"it consumes\n{self.instance.log}",
        )
        for one in messages:
            properties = pika.BasicProperties(
                message_id=one["id"],
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                headers=one["headers"],
            )
            body = json.dumps(one["body"]).encode()
            self._channel.basic_publish(self.name, f"in.{one['topic']}", body, properties)
        seen = len(messages) + publishes
        until(
            lambda: self.depth(self.name) == 0 and self.depth(self._all) == seen and is_done(),
            lambda: f"all is done\n{self.instance.log[-5000:]}",
        )
        self.ended = self.instance.stop(), self.depth(self.name)
        self.published = self._published({one["id"] for one in messages})

    def _consumers(self) -> int:
        count: int = self._channel.queue_declare(self.name, passive=True).method.consumer_count
        return count

    def _published(self, given: set[str]) -> list[tuple[str, Any]]:
        found = [
            (method.routing_key, json.loads(body))
            for method, properties, body in self.take(self._all)
            if properties.message_id not in given
        ]
        return sorted(found, key=repr)


@pytest.fixture
def world(broker, start) -> Iterator[World]:
    made = World(broker.url, start)
    yield made
    made.close()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    programs = PostgreSQL.programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed")
    with PostgreSQL(programs) as running:
        yield running


def installed(name: str, *requirements: str) -> Path:
    """Return the Python that has the consumer, or skip the test."""
    python = install(name, requirements)
    if isinstance(python, str):
        pytest.skip(f"{name} does not install: {python}")
    return python


# -- robosignatory: signs packages that koji tagged, or that a message asks for


SIGUL = """#!/bin/sh
# Records how it was called, and "signs".
echo "$@" >> "$SIGUL_CALLS"
while [ $# -gt 0 ]; do
    if [ "$1" = --output ]; then echo signature > "$2"; fi
    shift
done
"""
SIGNED = (
    "--batch --user-name tester --passphrase-file /dev/null sign-rpms --store-in-koji "
    "--koji-only -k primary --v3-signature fedora-40 bash-1.x86_64 bash-2.x86_64"
)
ROBOSIGNATORY = """
[consumer_config.signing]
backend = "sigul"
user = "tester"
passphrase_file = "/dev/null"
[consumer_config.xml]
key = "fedora-40"
[consumer_config.koji_instances.primary]
url = "{url}/kojihub"
[consumer_config.koji_instances.primary.options]
authmethod = "ssl"
cert = "{certificate}"
serverca = "{certificate}"
max_retries = 1
[[consumer_config.koji_instances.primary.tags]]
from = "f40-signing-pending"
to = "f40-updates-testing-pending"
key = "fedora-40"
keyid = "a15b79cc"
"""


def tagged(build: int, tag: str) -> dict[str, Any]:
    body = {"build_id": build, "name": "bash", "version": "5.2", "release": f"{build}.fc40"}
    body |= {"tag": tag, "tag_id": 1, "instance": "primary", "user": "bodhi", "owner": "bodhi"}
    return message("org.fedoraproject.prod.buildsys.tag", body)


@both_commands
def test_robosignatory_signs_the_same_packages(world, command, tmp_path):
    python = installed("robosignatory", "robosignatory", "koji", "setuptools<81")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sigul").write_text(SIGUL)
    (programs / "sigul").chmod(0o755)
    signed = tmp_path / "signed"
    signed.touch()
    certificate = self_signed(tmp_path / "koji.pem")
    rpms = [{"id": n, "nvr": f"bash-{n}", "arch": "x86_64"} for n in (1, 2)]
    methods = {
        "sslLogin": {"session-id": 1, "session-key": "key"},
        "listRPMs": rpms,
        "queryRPMSigs": [],
        "tagBuild": 7,
        # This fails once: the consumer raises Nack, and the message comes again.
        "writeSignedRPM": RuntimeError("koji is being restarted"),
    }
    messages = [
        tagged(1, "f40-signing-pending"),
        tagged(2, "epel9-signing-pending"),
        tagged(3, "f40-signing-pending"),
        message("org.fedoraproject.prod.other", {}),
        message("org.fedoraproject.prod.robosignatory.xml-sign", {"not": "a string"}),
    ]
    with WebService(methods=methods, certificate=certificate) as koji:

        def called(method):
            return [call for call in koji.calls if call[0] == method]

        world.begin(
            command,
            python,
            "robosignatory.consumer:Consumer",
            ROBOSIGNATORY.format(url=koji.url, certificate=certificate),
            PATH=f"{programs}:{os.environ['PATH']}",
            SIGUL_CALLS=str(signed),
        )

        def is_done():
            # Five messages, one of them twice, and the answer, which comes to its own queue too.
            received = world.instance.log.count("Received message from fedora-messaging")
            is_answered = received == 7 or command != "fm-consumer"
            return len(called("tagBuild")) == 2 and is_answered

        world.consume(messages, is_done, publishes=1)
    assert world.ended == (0, 0)
    moved = {call[1][1] for call in called("tagBuild")}
    assert moved == {1, 3}
    assert len(called("writeSignedRPM")) == 5
    # The package that koji refused was signed twice.
    assert signed.read_text().splitlines() == [SIGNED] * 3
    [(topic, body)] = world.published
    assert topic == "in.org.fedoraproject.prod.robosignatory.xml-sign.finished"
    assert body == {"body": {"not": "a string"}, "error": "Refusing to sign non-string"}


# -- datanommer: stores every message in PostgreSQL


DATANOMMER_TABLES = """
import sys
from sqlalchemy import create_engine, text
import datanommer.models as models
engine = create_engine(sys.argv[1])
with engine.begin() as connection:
    # The tables need no TimescaleDB for what is tested here.
    connection.execute(text(
        "CREATE FUNCTION create_hypertable(text, text) RETURNS text LANGUAGE sql AS 'SELECT $1'"
    ))
models.DeclarativeBase.metadata.create_all(engine)
"""


def database(postgresql, python: Path, statements: str, **environment: str) -> str:
    """Make a database, and its tables with a Python script."""
    name = f"db_{uuid.uuid4().hex}"
    postgresql.query("postgres", f"CREATE DATABASE {name}")
    run_script(python, statements, postgresql.url(name, PSYCOPG2), **environment)
    return name


@both_commands
@pytest.mark.parametrize("source", ["made", "recorded"])
def test_datanommer_stores_the_same_rows(world, postgresql, command, source):
    python = installed("datanommer", "datanommer.consumer")
    if source == "recorded":
        messages = recorded()
    else:
        messages = [message("org.example.nom", {"n": n, "text": "\u2028 ü"}) for n in range(50)]
    name = database(postgresql, python, DATANOMMER_TABLES)
    toml = f'[consumer_config]\ndatanommer_sqlalchemy_url = "{postgresql.url(name, PSYCOPG2)}"\n'
    world.begin(command, python, "datanommer.consumer:Nommer", toml)

    def stored():
        statement = "SELECT msg_id, topic, msg, headers ->> 'sent-at' FROM messages ORDER BY id"
        return postgresql.query(name, statement)

    world.consume(messages, lambda: len(stored()) >= len(messages))
    assert world.ended == (0, 0)
    assert [row.split("|")[0] for row in stored()] == [one["id"] for one in messages]
    for row, one in zip(stored(), messages, strict=True):
        _, topic, rest = row.split("|", 2)
        assert topic == f"in.{one['topic']}"
        assert json.loads(rest.rpartition("|")[0]) == one["body"]
    assert world.published == []


# -- the-new-hotness: looks new versions up, reports them in Bugzilla, and publishes


HOTNESS = """
[consumer_config]
mdapi_url = "{url}/mdapi"
dist_git_url = "{url}/dist-git"
requests_retries = 0
[consumer_config.bugzilla]
url = "{url}/xmlrpc.cgi"
api_key = "key"
"""


def new_version(project: str, *, mapped: bool) -> dict[str, Any]:
    mapping = {"distro": "Fedora", "package_name": project}
    described = {"id": 1, "name": project, "homepage": "https://example.org", "version": "2.0"}
    described |= {"versions": ["2.0", "1.0"], "stable_versions": ["2.0", "1.0"]}
    described |= {"backend": "GitHub", "ecosystem": "pypi", "regex": None, "version_url": None}
    described |= {"created_on": 1.0, "updated_on": 1.0, "version_prefix": None}
    body = {
        "project": described,
        "distro": None,
        "message": {
            "upstream_versions": ["2.0"],
            "versions": ["2.0", "1.0"],
            "old_version": "1.0",
            "project": described,
            "stable_versions": ["2.0"],
            "agent": "anitya",
            "packages": [mapping] if mapped else [],
            "odd_change": False,
        },
    }
    topic = "org.release-monitoring.prod.anitya.project.version.update.v2"
    return message(topic, body, fedora_messaging_schema="anitya.project.version.update.v2")


BUG = {"id": 42, "bug_id": 42, "weburl": "https://example.org/42", "summary": "new version"}
BUG |= {"bug_status": "NEW", "status": "NEW", "assigned_to": "nobody"}


@both_commands
def test_the_new_hotness_reports_the_same_versions(world, command):
    python = installed("the-new-hotness", "the-new-hotness")
    methods = {
        "Bugzilla.version": {"version": "5.0.4"},
        "Bugzilla.extensions": {"extensions": {}},
        "Bug.search": {"bugs": []},
        "Bug.create": {"id": 42},
        "Bug.get": {"bugs": [BUG]},
    }
    pages = {
        "/dist-git/_dg/anitya/rpms/tracked": {"monitoring": "monitoring"},
        "/dist-git/_dg/anitya/rpms/ignored": {"monitoring": "no-monitoring"},
        "/mdapi/koji/srcpkg/tracked": {"version": "1.0", "release": "1.fc40"},
    }
    messages = [
        new_version("unmapped", mapped=False),
        new_version("ignored", mapped=True),
        message("org.fedoraproject.prod.other", {}),
        new_version("tracked", mapped=True),
    ]
    with WebService(methods=methods, pages=pages) as web:
        world.begin(
            command,
            python,
            "hotness.hotness_consumer:HotnessConsumer",
            HOTNESS.format(url=web.url),
        )
        world.consume(messages, lambda: True, publishes=3)
    assert world.ended == (0, 0)
    assert [topic for topic, _ in world.published] == [
        "hotness.update.bug.file",
        "hotness.update.drop",
        "hotness.update.drop",
    ]
    looked_up = [call for call in web.calls if isinstance(call, str)]
    assert [path for path in looked_up if path in pages] == [
        "/dist-git/_dg/anitya/rpms/ignored",
        "/dist-git/_dg/anitya/rpms/tracked",
        "/mdapi/koji/srcpkg/tracked",
    ]
    [reported] = [call[1][0] for call in web.calls if call[0] == "Bug.create"]
    assert reported["summary"] == "tracked-2.0 is available"


# -- fmn: an asyncio consumer that is called in a thread


FMN = ("fmn[consumer,database,sqlite,api]", "koji-fedoramessaging-messages")
FMN_RULES = """
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
import sys
from fmn.database.main import Base
from fmn.database.model import Destination, GenerationRule, Rule, TrackingRule, User
engine = create_engine(sys.argv[1])
Base.metadata.create_all(engine)
with Session(engine) as session:
    rule = Rule(name="follow bash", user=User(name="dudemcpants"))
    rule.tracking_rule = TrackingRule(
        name="artifacts-followed", params=[{"type": "rpms", "name": "bash"}]
    )
    generation = GenerationRule(rule=rule)
    generation.destinations = [Destination(protocol="email", address="dude@example.org")]
    session.add(rule)
    session.commit()
"""


@both_commands
def test_fmn_sends_the_same_notifications(world, command, tmp_path, broker):
    python = installed("fmn", *FMN)
    path = tmp_path / "fmn.sqlite"
    run_script(python, FMN_RULES, f"sqlite:///{path}")
    messages = []
    for n in range(1, 20):
        one = tagged(n, "f40")
        one["headers"]["fedora_messaging_schema"] = "koji_fedoramessaging.tag.TagV1"
        one["body"]["name"] = "bash" if n % 2 else "zsh"
        messages.append(one)
    toml = f'[consumer_config.send_queue]\namqp_url = "{broker.url}"\n'
    notifications = world.queue("amq.direct", "send.email")
    pages = {"/v1/users/dudemcpants/": {"result": {"username": "dudemcpants"}}}
    with WebService(pages=pages) as fasjson:
        world.begin(
            command,
            python,
            "fmn.consumer.consumer:Consumer",
            toml,
            DATABASE__SQLALCHEMY__URL=f"sqlite+aiosqlite:///{path}",
            SERVICES__FASJSON_URL=fasjson.url,
        )
        world.consume(messages, lambda: world.depth(notifications) >= 10)
    assert world.ended == (0, 0)
    sent = [json.loads(body) for _, _, body in world.take(notifications)]
    assert [one["headers"]["Subject"].split()[1] for one in sent] == [
        f"bash-5.2-{n}.fc40" for n in range(1, 20, 2)
    ]
    assert fasjson.calls == ["/v1/users/dudemcpants/"]


@both_commands
def test_fmn_that_cannot_be_set_up_ends_with_the_same_exit_code(world, command, tmp_path):
    python = installed("fmn", *FMN)
    toml = '[consumer_config.send_queue]\namqp_url = "amqp://127.0.0.1:1/"\n'
    path = tmp_path / "fmn.sqlite"
    world.begin(
        command,
        python,
        "fmn.consumer.consumer:Consumer",
        toml,
        DATABASE__SQLALCHEMY__URL=f"sqlite+aiosqlite:///{path}",
    )
    assert world.instance.wait() == 1
    assert "AMQPConnectionError" in world.instance.log


# -- bodhi: marks the packages that robosignatory signed, in PostgreSQL


BODHI_BUILDS = """
import sys
from bodhi.server import initialize_db
from bodhi.server.config import config
from bodhi.server.models import Base, Release, ReleaseState, RpmBuild, RpmPackage
from bodhi.server.util import transactional_session_maker
config.load_config()
Base.metadata.create_all(initialize_db(config))
with transactional_session_maker()() as session:
    release = Release(
        name="F40", long_name="Fedora 40", version="40", id_prefix="FEDORA", branch="f40",
        dist_tag="f40", stable_tag="f40-updates", testing_tag="f40-updates-testing",
        candidate_tag="f40-updates-candidate", pending_signing_tag="f40-signing-pending",
        pending_testing_tag="f40-updates-testing-pending",
        pending_stable_tag="f40-updates-pending", override_tag="f40-override",
        state=ReleaseState.current,
    )
    package = RpmPackage(name="bash")
    session.add_all([release, package])
    for n in range(1, 4):
        session.add(RpmBuild(nvr=f"bash-5.2-{n}.fc40", package=package, release=release))
"""
# These modules come with Fedora and are not on PyPI. The test does not need their work.
ABSENT = ("rpm", "librepo", "createrepo_c")
BODHI = """
[app:main]
use = egg:bodhi-server
sqlalchemy.url = {url}
authtkt.secret = secret
session.secret = secret
celery_config = {celery}
"""


@both_commands
def test_bodhi_marks_the_same_builds_as_signed(world, postgresql, command, tmp_path):
    python = installed("bodhi", "bodhi-server", "setuptools<81")
    name = f"db_{uuid.uuid4().hex}"
    postgresql.query("postgres", f"CREATE DATABASE {name}")
    ini = tmp_path / "bodhi.ini"
    celery = tmp_path / "celeryconfig.py"
    celery.touch()
    ini.write_text(BODHI.format(url=postgresql.url(name, PSYCOPG2), celery=celery))
    for absent in ABSENT:
        (tmp_path / f"{absent}.py").touch()
    run_script(python, BODHI_BUILDS, BODHI_CONFIG=str(ini), PYTHONPATH=str(tmp_path))
    messages = [
        tagged(1, "f40-updates-testing-pending"),
        tagged(2, "f40"),
        tagged(4, "f40-updates-testing-pending"),
        message("org.fedoraproject.prod.other", {}),
        tagged(3, "f40-updates-testing-pending"),
    ]
    world.begin(
        command,
        python,
        "bodhi.server.consumers:Consumer",
        BODHI_CONFIG=str(ini),
        PYTHONPATH=f"{python_path()}:{tmp_path}",
    )

    def signed():
        return postgresql.query(name, "SELECT nvr FROM builds WHERE signed ORDER BY nvr")

    world.consume(messages, lambda: len(signed()) == 2)
    assert world.ended == (0, 0)
    assert signed() == ["bash-5.2-1.fc40", "bash-5.2-3.fc40"]
