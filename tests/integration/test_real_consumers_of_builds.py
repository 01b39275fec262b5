# SPDX-License-Identifier: GPL-2.0-or-later
"""Fedora's own consumers of builds have the same effects under both commands.

As in ``test_real_consumers.py``, which has the other ones.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from typing import Any

from .installed_consumers import python_path, run_script
from .outside_services import WebService, self_signed
from .real_consumers import (
    PSYCOPG2,
    both_commands,
    installed,
    message,
    tagged,
)

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
            # Five messages and the answer, which comes to its own queue too. Our command has no
            # line for a message that succeeds: the consumer's own counts the one that comes twice.
            lines = {"fedora-messaging": ("Successfully consumed message", 6)}
            line, count = lines.get(command, ("Received message from fedora-messaging", 7))
            is_answered = world.instance.log.count(line) == count
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


# -- message-tagging-service: tags the builds of modules by rules


TAGGER = """
class BaseConfiguration:
    dry_run = False
    mbs_api_url = "{url}/mbs/"
    koji_profile = "koji"
    koji_cert = "{certificate}"
    keytab = None
    principal = None
    messaging_backend = "fedora-messaging"
    log_level = "INFO"
    rules_file_url = "{url}/rules.yaml"
    build_state = "ready"
    build_state_msg_filter = ["ready", "done"]
"""
# JSON is YAML.
TAGGER_RULES = [
    {
        "id": "Modular updates",
        "type": "module",
        "description": "All modules of the distribution",
        "rule": {"dependencies": {"requires": {"platform": r"^(?P<platform>f\d+)$"}}},
        "destinations": r"\g<platform>-modular-updates-candidate",
    }
]


def module_build(number: int, state: str, **more: Any) -> dict[str, Any]:
    body = {"id": number, "name": "ripgrep", "stream": "master", "version": f"2024{number}"}
    body |= {"context": "c0ffee42", "state_name": state, **more}
    return message("org.fedoraproject.prod.mbs.module.state.change", body)


def module_of(platform: str) -> dict[str, str]:
    """Return the answer of the build service for a module that needs *platform*."""
    needs = [{"requires": {"platform": [platform]}}]
    return {"modulemd": json.dumps({"data": {"name": "ripgrep", "dependencies": needs}})}


@both_commands
def test_the_message_tagging_service_tags_the_same_modules(world, command, tmp_path):
    # Without python-qpid-proton, which a compiler builds for minutes, for another kind of broker.
    python = installed(
        "mts",
        *("koji", "PyYAML", "requests", "prometheus_client", "psutil", "Flask", "setuptools<81"),
        without_dependencies=("message-tagging-service",),
    )
    certificate = self_signed(tmp_path / "koji.pem")
    koji = tmp_path / ".koji/config"
    koji.parent.mkdir()
    configuration = tmp_path / "config.py"
    methods = {"sslLogin": {"session-id": 1, "session-key": "key"}, "tagBuild": 7}
    methods["getAPIVersion"] = 1
    pages = {
        "/rules.yaml": TAGGER_RULES,
        "/mbs/module-builds/2?verbose=True": module_of("f40"),
        "/mbs/module-builds/3?verbose=True": module_of("el9"),
    }
    messages = [
        module_build(1, "ready", scratch=True),
        module_build(2, "ready"),
        module_build(4, "build"),
        module_build(3, "ready"),
    ]
    with WebService(pages=pages) as web, WebService({}, methods, certificate) as hub:
        configuration.write_text(TAGGER.format(url=web.url, certificate=certificate))
        koji.write_text(f"[koji]\nserver = {hub.url}/kojihub\nserverca = {certificate}\n")
        world.begin(
            command,
            python,
            "message_tagging_service.consumer:consume",
            MTS_CONFIG_FILE=str(configuration),
            HOME=str(tmp_path),
        )
        world.consume(messages, lambda: True, publishes=3)
    assert world.ended == (0, 0)
    tagged_with = "f40-modular-updates-candidate"
    builds = [f"{name}-master-20242.c0ffee42" for name in ("ripgrep", "ripgrep-devel")]
    calls = [call[1] for call in hub.calls if call[0] == "tagBuild"]
    assert calls == [(tagged_with, build) for build in builds]
    assert [topic for topic, _ in world.published] == [
        "build.tag.requested",
        "build.tag.requested",
        "build.tag.unmatched",
    ]
    requested = [body for _, body in world.published if "nvr" in body]
    assert sorted(body["nvr"] for body in requested) == sorted(builds)
    assert requested[0]["destination_tags"] == [{"tag": tagged_with, "task_id": 7}]


# -- copr-messaging: the base class of those who follow Copr's builds


def copr_build(
    number: int, topic: str, schema: str = "base.message", **more: Any
) -> dict[str, Any]:
    body = {"build": number, "chroot": "fedora-40-x86_64", "copr": "rust", "owner": "dude"}
    body |= {"pkg": "ripgrep", "version": "14.1.0-1.fc40", "user": "dude", "status": 1, "pid": 1}
    body |= {"what": "a build", "who": "worker", "ip": None, **more}
    return message(f"org.fedoraproject.prod.{topic}", body, fedora_messaging_schema=schema)


@both_commands
def test_the_printer_of_copr_prints_the_same_builds(world, command):
    python = installed("copr-messaging", "copr-messaging")
    messages = [
        # Its message class, and the base class: it finds the class by the topic then.
        copr_build(1, "copr.build.start", "copr.build.start"),
        copr_build(2, "copr.build.end"),
        copr_build(3, "copr.chroot.start"),
        copr_build(4, "copr.build.end", status=0),
    ]

    def printed():
        found = r'^build_chroot_(\w+)\(\): Id: .*?"build": (\d)'
        return re.findall(found, world.instance.log, re.MULTILINE | re.DOTALL)

    world.begin(command, python, "copr_messaging.fedora:Printer")
    world.consume(messages, lambda: len(printed()) == 3)
    assert world.ended == (0, 0)
    assert printed() == [("started", "1"), ("ended", "2"), ("ended", "4")]
