# SPDX-License-Identifier: GPL-2.0-or-later
"""Fedora's own consumers have the same effects under both commands.

Each consumer comes from PyPI, unmodified, and runs under ``fedora-messaging consume`` and then
under ``fm-consumer run``, with the same file and the same messages. A test is skipped if its
consumer cannot be installed.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from .installed_consumers import run_script
from .instance import until
from .outside_services import WebService
from .real_consumers import (
    PSYCOPG2,
    both_commands,
    installed,
    message,
    recorded,
    tagged,
)

if TYPE_CHECKING:
    from pathlib import Path


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


# -- fedbadges: an asyncio loop, a Twisted reactor and SQLAlchemy; publishes by twisted_publish


BADGES = ("fedbadges", "koji-fedoramessaging-messages")
BADGES_TABLES = """
import sys
from sqlalchemy import create_engine
from tahrir_api.model import DeclarativeBase
DeclarativeBase.metadata.create_all(create_engine(sys.argv[1]))
"""
BADGES_TOML = """
[consumer_config]
database_uri = "{database}"
datanommer_db_uri = "sqlite://"
datagrepper_url = "{url}/datagrepper"
fasjson_base_url = "{url}/fasjson/"
badges_repo = "{rules}"
email_domain = "fedoraproject.org"
[consumer_config.cache]
backend = "dogpile.cache.dbm"
arguments.filename = "{cache}"
[consumer_config.badge_issuer]
issuer_origin = "{url}"
issuer_name = "Fedora"
issuer_url = "{url}"
issuer_email = "badges@example.org"
"""
# JSON is YAML.
BADGE = {
    "name": "Tagger",
    "image_url": "https://example.org/tagger.png",
    "description": "Somebody tagged a build",
    "creator": "dudemcpants",
    "discussion": "https://example.org/1",
    "issuer_id": "fedora-project",
    "trigger": {"topic": "buildsys.tag"},
    "recipient": "message.body['user']",
}
FASJSON = {
    "swagger": "2.0",
    "info": {"title": "FASJSON", "version": "1"},
    "basePath": "/fasjson/v1",
    "paths": {
        "/users/{username}/": {
            "get": {
                "operationId": "get_user",
                "parameters": [
                    {"name": "username", "in": "path", "required": True, "type": "string"}
                ],
                "responses": {"200": {"description": "a user", "schema": {"type": "object"}}},
                "produces": ["application/json"],
            }
        }
    },
}


def kerberos_ticket(path: Path) -> Path:
    """Write a credentials cache of version 4, as MIT krb5's ccache_file_format.txt describes it.

    The services of these tests ask for no ticket; the client looks only if there is one.
    """

    def data(text: bytes) -> bytes:
        return struct.pack(">I", len(text)) + text

    def principal(*components: bytes) -> bytes:
        parts = b"".join(map(data, components))
        return struct.pack(">II", 1, len(components)) + data(b"EXAMPLE.ORG") + parts

    client, server = principal(b"badges"), principal(b"krbtgt", b"EXAMPLE.ORG")
    now = int(time.time())
    times = struct.pack(">IIII", now, now, now + 86400, 0)
    key, flags = struct.pack(">H", 18) + data(bytes(32)), bytes(5)
    ticket = client + server + key + times + flags + bytes(8) + data(b"ticket") + data(b"")
    path.write_bytes(struct.pack(">HH", 0x0504, 0) + client + ticket)
    return path


@both_commands
def test_fedbadges_awards_the_same_badges(world, command, tmp_path):
    python = installed("fedbadges", *BADGES)
    path = tmp_path / "tahrir.sqlite"
    run_script(python, BADGES_TABLES, f"sqlite:///{path}")
    rules = tmp_path / "badges/rules"
    rules.mkdir(parents=True)
    (rules / "tagger.yml").write_text(json.dumps(BADGE))
    messages = []
    for n, user in enumerate(["dudemcpants", "nobody", "dudemcpants", "bowlofeggs"]):
        one = tagged(n, "f40")
        one["headers"]["fedora_messaging_schema"] = "koji_fedoramessaging.tag.TagV1"
        one["body"]["user"] = user
        messages.append(one)
    pages: dict[str, Any] = {"/fasjson/specs/v1.json": FASJSON}
    for user in ("dudemcpants", "bowlofeggs"):
        pages[f"/fasjson/v1/users/{user}/"] = {"result": {"username": user}}

    def rows(statement: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(statement).fetchall()

    with WebService(pages=pages) as web:
        world.begin(
            command,
            python,
            "fedbadges.consumer:FedoraBadgesConsumer",
            BADGES_TOML.format(
                url=web.url,
                database=f"sqlite:///{path}",
                rules=rules.parent,
                cache=tmp_path / "cache",
            ),
            HOME=str(tmp_path),
            KRB5CCNAME=f"FILE:{kerberos_ticket(tmp_path / 'ticket')}",
        )
        until(lambda: rows("SELECT id FROM badges"), lambda: world.instance.log)
        world.consume(messages, lambda: True, publishes=2)
    assert world.ended == (0, 0)
    awarded = "SELECT nickname FROM assertions JOIN persons ON persons.id = person_id ORDER BY 1"
    assert rows(awarded) == [("bowlofeggs",), ("dudemcpants",)]
    assert [topic for topic, _ in world.published] == ["badges.badge.award"] * 2
    users = [body["user"]["username"] for _, body in world.published]
    assert users == ["bowlofeggs", "dudemcpants"]
