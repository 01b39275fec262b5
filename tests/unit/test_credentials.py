# SPDX-License-Identifier: GPL-2.0-or-later
"""``credential:NAME`` in a configuration: the value in its place, and the value's source."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from typing import Any

import pytest

from consumer_framework.adapters.systemd.credentials import (
    CredentialSettings,
    NoCredentials,
    ServiceCredentials,
    UnitCredentials,
)
from consumer_framework.core import secrets
from consumer_framework.settings.credentials import (
    Reference,
    UnavailableError,
    references,
    substitute,
)


class Safe:
    """Credentials of a test."""

    def __init__(self, **known: str) -> None:
        self.known = known

    def text(self, name: str) -> str:
        if name == "far":
            raise UnavailableError("is far", "go there", elsewhere=True)
        if name not in self.known:
            raise UnavailableError("is not there", "make it")
        return self.known[name]

    def file(self, name: str) -> str:
        self.text(name)
        return f"/run/credentials/{name}"


# Where it stands.


@pytest.mark.parametrize(
    ("document", "becomes"),
    [
        ({"topic_prefix": "credential:a"}, {"topic_prefix": "A"}),
        ({"consumer_config": {"x": ["y", {"z": "credential:a"}]}}, None),
        ({"topic_prefix": "not credential:a"}, {"topic_prefix": "not credential:a"}),
        ({"topic_prefix": "Credential:a"}, {"topic_prefix": "Credential:a"}),
        ({"credential:a": 5}, {"credential:a": 5}),
        ({"tls": {"keyfile": "credential:a"}}, {"tls": {"keyfile": "/run/credentials/a"}}),
        ({"x": {"tls": {"keyfile": "credential:a"}}}, {"x": {"tls": {"keyfile": "A"}}}),
        ({"n": 1, "b": True, "f": 1.5}, {"n": 1, "b": True, "f": 1.5}),
        ({"amqp_url": "credential:url"}, {"amqp_url": "amqps://u:p@h/%2F"}),
    ],
)
def test_a_string_that_names_a_credential_is_replaced_by_its_contents(document, becomes):
    safe = Safe(a="A", url="amqps://u:p@h/%2F")
    found = substitute(document, safe)
    assert found.document == (becomes or {"consumer_config": {"x": ["y", {"z": "A"}]}})
    assert (found.problems, found.unseen) == ((), ())


@pytest.mark.parametrize(
    ("url", "becomes"),
    [
        ("amqps://u:credential:p@h:5671/v", "amqps://u:a%2Fb%40c%3A%20%25d@h:5671/v"),
        ("amqp://u:credential:p@h", "amqp://u:a%2Fb%40c%3A%20%25d@h"),
        ("amqp://:credential:p@h", "amqp://:a%2Fb%40c%3A%20%25d@h"),
        ("amqp://u:credential:with%40sign@h", "amqp://u:S@h"),
        # A password that looks like one, a user, a vhost, a host: nothing is replaced.
        ("amqp://u:credential%3Ap@h", None),
        ("amqp://credential:p@h", None),
        ("amqp://u:p@h/credential:p@", None),
        ("amqp://u:p@credential:p@h", None),
        ("amqp://h:credential:p", None),
    ],
)
def test_a_password_in_the_url_may_be_a_credential(url, becomes):
    safe = Safe(p="a/b@c: %d", **{"with@sign": "S"})
    assert substitute({"amqp_url": url}, safe).document == {"amqp_url": becomes or url}


def test_the_urls_of_the_outbox_may_have_credentials():
    safe = Safe(db="a/b", whole="postgresql:///app", e="s")
    outbox = {
        "database": "postgresql+psycopg://u:credential:db@h/x",
        "endpoints": ["stomp://u:credential:e@h", "credential:whole"],
    }
    document = {"consumer_config": {"framework": {"outbox": outbox}}}
    found = substitute(document, safe).document["consumer_config"]["framework"]["outbox"]
    assert found == {
        "database": "postgresql+psycopg://u:a%2Fb@h/x",
        "endpoints": ["stomp://u:s@h", "postgresql:///app"],
    }


def test_the_contents_of_a_credential_are_not_substituted_again():
    safe = Safe(a="credential:b", b="B", url="amqp://u:credential:b@h")
    document = {"topic_prefix": "credential:a", "amqp_url": "credential:url"}
    assert substitute(document, safe).document == {
        "topic_prefix": "credential:b",
        "amqp_url": "amqp://u:credential:b@h",
    }


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "x" * 256, "..", "ä", "tab\t"])
def test_a_name_that_systemd_would_refuse_is_refused(name):
    (problem,) = substitute({"topic_prefix": f"credential:{name}"}, Safe()).problems
    assert problem.path == "topic_prefix"
    assert "can have no such name" in problem.message


def test_every_missing_credential_is_reported_with_its_key():
    document = {
        "amqp_url": "amqps://u:credential:one@h/v",
        "consumer_config": {"list": ["x", "credential:two"]},
        "tls": {"keyfile": "credential:three"},
    }
    found = substitute(document, Safe())
    assert [str(problem) for problem in found.problems] == [
        'amqp_url: the credential "one" is not there; make it',
        'consumer_config.list[1]: the credential "two" is not there; make it',
        'tls.keyfile: the credential "three" is not there; make it',
    ]
    assert found.absent == {"amqp_url", "consumer_config.list[1]", "tls.keyfile"}
    # So that the rest of the file can be looked at.
    assert found.document["amqp_url"] == "amqps://u:unknown@h/v"
    assert substitute({"amqp_url": "credential:x"}, Safe()).document == {"amqp_url": "amqps://"}


def test_credentials_that_only_the_service_sees_are_reported_apart():
    found = substitute({"a": "credential:far", "b": "credential:gone"}, Safe())
    assert [str(p) for p in found.unseen] == ['a: the credential "far" is far; go there']
    assert [p.path for p in found.problems] == ["b"]


def test_references_are_found_without_looking_them_up():
    document = {"amqp_url": "amqp://u:credential:p@h", "x": [{"y z": "credential:q"}], "z": "w"}
    assert references(document) == (Reference("amqp_url", "p"), Reference('x[0]."y z"', "q"))


# In the service.


@pytest.fixture
def store(tmp_path):
    def write(*names: str, content: bytes = b"text\n", directory: str = "credentials") -> Any:
        (tmp_path / directory).mkdir(exist_ok=True)
        for name in names:
            (tmp_path / directory / name).write_bytes(content)
        return tmp_path / directory

    return write


def why_not(act, *args):
    with pytest.raises(UnavailableError) as caught:
        act(*args)
    return caught.value


def test_a_credential_of_the_service_is_a_file_without_its_last_newline(store, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(store("one", content=b"a\n\n")))
    directory = ServiceCredentials.of_process("sample")
    assert directory.text("one") == "a\n"
    assert directory.file("one") == str(store() / "one")


def test_the_name_with_the_instance_stands_before_the_short_one(store):
    path = store("key", content=b"short")
    store("fm-consumer.sample.key", content=b"full")
    assert ServiceCredentials(path, "sample").text("key") == "full"
    assert ServiceCredentials(path, "other").text("key") == "short"
    assert ServiceCredentials(path, "other").text("fm-consumer.sample.key") == "full"


def test_without_a_directory_the_cure_is_to_let_systemd_start_it(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    directory = ServiceCredentials.of_process("sample")
    assert (directory.exist, directory.configuration) == (False, None)
    error = why_not(directory.text, "key")
    assert error.what == "cannot be read: there is no $CREDENTIALS_DIRECTORY"
    assert "systemctl start fm-consumer@sample" in error.cure
    assert not error.elsewhere


def test_a_missing_credential_is_reported_with_the_existing_ones_and_the_cure(store):
    error = why_not(ServiceCredentials(store("b", "a", "fm-consumer.toml"), "sample").file, "key")
    assert error.what == "was not given to this service; it has a, b"
    for words in (
        "write it to /etc/credstore/fm-consumer.sample.key (systemd 254 or newer)",
        "LoadCredential=key:FILE with systemctl edit fm-consumer@sample",
        "systemd-creds encrypt",
    ):
        assert words in error.cure
    error = why_not(ServiceCredentials(store("x", directory="d") / "none", "sample").text, "key")
    assert error.what.endswith("/none: No such file or directory")


def test_a_credential_that_is_no_text_is_valid_only_as_a_file(store):
    directory = ServiceCredentials(store("key", content=b"\xff\n"), "sample")
    error = why_not(directory.text, "key")
    assert error.what.startswith("is not UTF-8: byte 0 of ")
    assert directory.file("key").endswith("/key")


def test_a_credential_that_cannot_be_read_is_reported_with_the_reason(store):
    (store() / "key").mkdir()
    directory = ServiceCredentials(store(), "sample")
    for act in (directory.text, directory.file):
        assert why_not(act, "key").what.endswith("/key: Is a directory")


def test_the_configuration_may_be_a_credential_too(store):
    assert ServiceCredentials(store("key"), "sample").configuration is None
    path = store("fm-consumer.toml")
    assert ServiceCredentials(path, "sample").configuration == path / "fm-consumer.toml"


def test_the_contents_of_a_credential_are_a_secret_from_then_on(store):
    ServiceCredentials(store("key", content=b"hunter2\n"), "sample").text("key")
    assert secrets.redact("its key: hunter2.") == "its key: <credential:key>."


# Outside of the service.

PROPERTIES = {
    "LoadState": "loaded",
    "LoadCredential": [
        ["stored", "stored"],
        ["fm-consumer.toml", "/etc/fedora-messaging/sample.toml"],
        ["key", "/etc/100%/key"],
        ["twice", "/b"],
    ],
    "LoadCredentialEncrypted": [["hidden", "/etc/hidden"], ["twice", "/a"]],
    "SetCredential": [["plain", [97]]],
    "SetCredentialEncrypted": [["literal", [97, 98, 99]]],
    "ImportCredential": ["fm-consumer.sample.*"],
}


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """Programs that answer for systemd."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answers(**programs: str) -> None:
        for name, script in programs.items():
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)

    return answers


def answer(**properties: Any) -> str:
    """Print properties as busctl does."""
    typed = {name: {"type": "?", "data": value} for name, value in properties.items()}
    return f"cat <<'END'\n{json.dumps({'type': 'a{sv}', 'data': [typed]})}\nEND"


def test_systemd_reports_the_credentials_of_a_unit(systemd):
    systemd(busctl=answer(**PROPERTIES))
    settings = CredentialSettings.of_unit("fm-consumer@sample.service")
    assert settings == CredentialSettings(
        files={
            "fm-consumer.toml": "/etc/fedora-messaging/sample.toml",
            "key": "/etc/100%/key",
            "stored": "stored",
            "hidden": "/etc/hidden",
            "twice": "/b",
        },
        encrypted=frozenset({"hidden"}),
        literal=frozenset({"plain", "literal"}),
        imports=("fm-consumer.sample.*",),
    )


def test_systemd_is_asked_for_the_unit_by_its_name_on_the_bus(systemd, tmp_path):
    systemd(busctl=f'echo "$@" > {tmp_path}/asked; {answer(**PROPERTIES)}')
    CredentialSettings.of_unit("fm-consumer@a-b.service")
    assert "/unit/fm_2dconsumer_40a_2db_2eservice " in (tmp_path / "asked").read_text()


def test_an_old_systemd_imports_nothing(systemd):
    properties = {**PROPERTIES}
    del properties["ImportCredential"]
    systemd(busctl=answer(**properties), systemctl="echo 'systemd 252 (252.39)'")
    settings = CredentialSettings.of_unit("x.service")
    assert settings is not None
    assert (settings.imports, settings.too_old) == ((), 252)
    systemd(systemctl="exit 1")
    assert CredentialSettings.of_unit("x.service") == replace(settings, too_old=0)


@pytest.mark.parametrize(
    "said", ["exit 1", "", "echo '{}'", "echo '[]'", answer(), answer(LoadState="not-found")]
)
def test_a_systemd_that_does_not_know_the_unit_tells_nothing_of_it(systemd, said):
    systemd(busctl=said)
    assert CredentialSettings.of_unit("x.service") is None


def test_without_systemd_the_credentials_of_a_unit_are_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert CredentialSettings.of_unit("x.service") is None


@pytest.fixture
def elsewhere(tmp_path):
    stores = [tmp_path / "etc", tmp_path / "run"]

    def look(handed: CredentialSettings | None = None) -> UnitCredentials:
        imports = CredentialSettings(imports=("fm-consumer.sample.*",))
        return UnitCredentials(lambda: handed or imports, "sample", stores)

    return look


def test_an_administrator_sees_the_credentials_that_would_be_imported(elsewhere, store):
    store("fm-consumer.sample.key", content=b"one", directory="run")
    assert elsewhere().text("key") == "one"
    path = store("fm-consumer.sample.key", content=b"two", directory="etc")
    assert elsewhere().text("key") == "two"
    assert elsewhere().file("key") == str(path / "fm-consumer.sample.key")


def test_a_credential_that_the_unit_does_not_load_is_a_problem_even_where_it_exists(
    elsewhere, store
):
    path = store("key", "fm-consumer.sample.old", directory="etc")
    error = why_not(elsewhere().text, "key")
    assert error.what == "is given to this service by nothing in its unit"
    assert not error.elsewhere
    assert "LoadCredential=key:FILE" in error.cure
    error = why_not(elsewhere(CredentialSettings(too_old=252)).text, "old")
    assert error.what.endswith(
        f"unit: {path}/fm-consumer.sample.old is there, but systemd 252 is older than 254, "
        "and imports nothing by itself"
    )


def test_a_credential_is_read_from_the_path_that_the_unit_loads(elsewhere, store, tmp_path):
    path = store("key", content=b"text", directory="etc")
    store("file", "_odd", content=b"part", directory="many")
    handed = CredentialSettings(
        {"key": str(path / "key"), "stored": "key", "many": str(tmp_path / "many"), "a": "/none"}
    )
    assert elsewhere(handed).text("key") == "text"
    assert elsewhere(handed).text("stored") == "text"
    assert elsewhere(handed).text("many_file") == "part"
    assert elsewhere(CredentialSettings({"key": "key"})).file("key") == str(path / "key")
    assert why_not(elsewhere(handed).text, "a").what == (
        "is to be loaded from /none, which is not there"
    )
    assert why_not(elsewhere(handed).text, "many_none").what.startswith("is given to this")
    error = why_not(elsewhere(CredentialSettings({"b": "b"})).text, "b")
    assert error.what == "is to be loaded from /etc/credstore/b, which is not there"


def test_a_credential_that_only_systemd_sees_is_no_problem_for_an_administrator(
    elsewhere, store, tmp_path, monkeypatch
):
    store("fm-consumer.sample.key", directory="etc.encrypted")
    handed = CredentialSettings({"secret": "/x"}, frozenset({"secret"}), frozenset({"literal"}))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        asked = CredentialSettings({"asked": str(tmp_path / "socket")})
        whys = [
            why_not(elsewhere().text, "key"),
            why_not(elsewhere(handed).file, "secret"),
            why_not(elsewhere(handed).text, "literal"),
            why_not(elsewhere(asked).text, "asked"),
            why_not(NoCredentials().text, "key"),
            why_not(NoCredentials().file, "key"),
        ]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    whys.append(why_not(elsewhere(CredentialSettings({"loop": str(loop)})).text, "loop"))
    path = store("closed", directory="etc")
    monkeypatch.setattr(os, "access", lambda *_: False)
    whys.append(
        why_not(elsewhere(CredentialSettings({"closed": str(path / "closed")})).text, "closed")
    )
    assert all(why.elsewhere for why in whys)
    assert all(why.what.startswith("cannot be checked here: ") for why in whys)
    assert whys[-1].cure == "run this as root"
