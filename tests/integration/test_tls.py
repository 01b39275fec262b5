# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS works with client certificates from a credentials directory, as on Fedora's broker."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from consumer_framework.testing.broker.tls import Authority, TlsBroker

from .instance import FM_CONSUMER, publish, queue_table, until
from .reloading import ask, handled_once, published_all_the_time, reloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .instance import Instance

HANDLER = 'def handler(message): note("handled", message)\n'
TLS = """
[tls]
ca_cert = "credential:ca"
certfile = "credential:cert"
keyfile = "credential:key"
"""


@pytest.fixture(scope="module")
def broker(broker, tmp_path_factory) -> Iterator[TlsBroker]:
    """Start a node that demands certificates; the session's fixture checks the programs."""
    with TlsBroker(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture(scope="module")
def consumer(broker) -> Any:
    """Return the certificate of the consuming user."""
    return broker.add_certificate_user("consumer.example.org")


@pytest.fixture
def connect(broker, queue_name, start, tmp_path) -> Callable[..., Instance]:
    """Return a function that starts an instance with credentials: *ca*, *cert* and *key*."""

    def start_instance(url: str = "", tls: str = TLS, **credentials: Path) -> Any:
        directory = tmp_path / "credentials"
        directory.mkdir(mode=0o700, exist_ok=True)
        for name, file in credentials.items():
            shutil.copy(file, directory / name)
        return start(
            url or broker.tls_url,
            tls + queue_table(queue_name),
            HANDLER,
            environment={"CREDENTIALS_DIRECTORY": str(directory)},
        )

    return start_instance


def test_an_instance_consumes_as_the_user_that_its_certificate_names(
    broker, consumer, connect, queue_name
):
    ca = broker.authority.certificate
    instance = connect(ca=ca, cert=consumer.certificate, key=consumer.key).ready()
    publish(broker.url, queue_name, [1, 2])
    instance.noted("handled", 2)
    said = broker.ctl("list_connections", "user", "ssl", "auth_mechanism")
    assert said.split("\n")[1:-1] == ["consumer.example.org\ttrue\tEXTERNAL"]
    assert instance.stop() == 0


@pytest.fixture
def refused(connect):
    """Return a function that starts an instance and returns its exit code and log."""

    def refused_one(tls: str = TLS, url: str = "", **files: Path) -> tuple[int, str]:
        instance = connect(url, tls, **files)
        return instance.wait(), instance.log

    return refused_one


@pytest.fixture
def retold(refused):
    """Return `refused` with retries, because the broker's alert may be lost with the connection."""

    def refused_with_words(words: str, tls: str = TLS, **files: Path) -> Any:
        said = []
        for _ in range(5):
            exit_code, log = refused(tls, **files)
            said.append(log)
            if exit_code != 14 or words in log:
                break
            assert "the broker ended the TLS connection without a word" in log
        assert words in said[-1]
        return exit_code

    return refused_with_words


def test_a_broker_that_the_ca_does_not_vouch_for_ends_it(consumer, refused, tmp_path):
    other = Authority(tmp_path, "other").certificate
    exit_code, said = refused(ca=other, cert=consumer.certificate, key=consumer.key)
    assert exit_code == 14
    assert "the broker's certificate is refused: tls.ca_cert does not vouch for it" in said


def test_a_certificate_that_has_ended_ends_it(broker, retold):
    old = broker.authority.issue("consumer.example.org", days=-1, file="old")
    words = "refuses the client certificate of tls.certfile: it has ended"
    ca = broker.authority.certificate
    assert retold(words, ca=ca, cert=old.certificate, key=old.key) == 14


def test_a_certificate_of_another_authority_ends_it(broker, retold, tmp_path):
    other = Authority(tmp_path, "other").issue("consumer.example.org")
    words = "tls.certfile: it does not know who issued it"
    ca = broker.authority.certificate
    assert retold(words, ca=ca, cert=other.certificate, key=other.key) == 14


def test_a_client_without_a_certificate_is_told_that_it_needs_one(broker, retold):
    tls = '[tls]\nca_cert = "credential:ca"\n'
    words = "demands a client certificate: give tls.certfile and tls.keyfile"
    assert retold(words, tls, ca=broker.authority.certificate) == 14


def test_a_certificate_of_nobody_ends_it(broker, refused):
    nobody = broker.authority.issue("nobody")
    ca = broker.authority.certificate
    exit_code, said = refused(ca=ca, cert=nobody.certificate, key=nobody.key)
    assert exit_code == 14
    assert "Login was refused using authentication mechanism EXTERNAL" in said


def test_a_missing_key_ends_it_before_the_broker_is_asked(broker, consumer, refused):
    exit_code, said = refused(ca=broker.authority.certificate, cert=consumer.certificate)
    assert exit_code == 78
    what = 'tls.keyfile: the credential "key" was not given to this service; it has ca, cert; '
    assert what in said
    assert "to /etc/credstore/fm-consumer.instance.key (systemd 254 or newer)" in said


def test_a_key_of_another_certificate_ends_it(broker, consumer, refused):
    other = broker.authority.issue("other")
    ca = broker.authority.certificate
    exit_code, said = refused(ca=ca, cert=consumer.certificate, key=other.key)
    assert exit_code == 78
    assert "is not the key of" in said


def test_a_port_without_tls_is_named_as_one(broker, consumer, refused):
    ca = broker.authority.certificate
    url = f"amqps://localhost:{broker.port}/%2F"
    exit_code, said = refused(url=url, ca=ca, cert=consumer.certificate, key=consumer.key)
    assert exit_code == 14
    assert "the port does not speak TLS: is it the one for amqp://?" in said


def test_a_check_sees_what_a_start_would_see(broker, consumer, tmp_path):
    directory = tmp_path / "credentials"
    directory.mkdir()
    shutil.copy(broker.authority.certificate, directory / "ca")
    for file, name in ((consumer.certificate, "cert"), (consumer.key, "key")):
        shutil.copy(file, directory / f"fm-consumer.sample.{name}")
    (tmp_path / "checked.py").write_text("def handler(message): pass\n")
    configuration = tmp_path / "sample.toml"

    def check(tls: str) -> tuple[int, str]:
        configuration.write_text(
            f'amqp_url = "{broker.tls_url}"\ncallback = "checked:handler"\n{tls}'
        )
        done = subprocess.run(
            [FM_CONSUMER, "check", "--broker", "--conf", configuration],
            env={
                **os.environ,
                "PYTHONPATH": str(tmp_path),
                "CREDENTIALS_DIRECTORY": str(directory),
                "STATE_DIRECTORY": str(tmp_path / "state"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    exit_code, said = check(TLS)
    assert exit_code == 0, said
    assert "takes the connection" in said
    exit_code, said = check('[tls]\nca_cert = "credential:ca"\n')
    assert exit_code == 14
    assert "the broker demands a client cert" in said or "TLS connection without a word" in said
    exit_code, said = check('[tls]\nca_cert = "credential:gone"\n')
    assert exit_code == 78
    assert 'tls.ca_cert: the credential "gone" was not given to this service; it has ca, fm' in said


def test_a_password_may_be_a_credential_and_a_connection_without_a_key_uses_it(
    broker, connect, queue_name, tmp_path
):
    broker.add_user("reader", "s3/cr:et@%", configure=".*", write=".*", read=".*")
    password = tmp_path / "password"
    password.write_text("s3/cr:et@%\n")
    url = f"amqp://reader:credential:password@localhost:{broker.port}/%2F"
    instance = connect(url, tls="", password=password).ready()
    assert "reader\tfalse\tPLAIN" in broker.ctl("list_connections", "user", "ssl", "auth_mechanism")
    assert instance.stop() == 0
    assert "s3" not in instance.log


# Files that change while messages are handled.

SLOW = """
def handler(message):
    note("begin", message)
    time.sleep(0.02)
    note("handled", message)
"""


@pytest.fixture
def files(tmp_path) -> Path:
    """Make the directory of an instance's certificate, where it is renewed."""
    directory: Path = tmp_path / "files"
    directory.mkdir()
    return directory


def _renew(files: Path, pair: Any) -> None:
    shutil.copy(pair.certificate, files / "cert")
    shutil.copy(pair.key, files / "key")


@pytest.fixture
def consuming(broker, consumer, queue_name, start, files) -> Any:
    """Start an instance whose certificate is in *files*."""
    _renew(files, consumer)
    ca = broker.authority.certificate
    tls = f'[tls]\nca_cert = "{ca}"\ncertfile = "{files}/cert"\nkeyfile = "{files}/key"\n'
    return start(broker.tls_url, tls + queue_table(queue_name), SLOW).ready()


def users(broker) -> set[str]:
    return set(broker.ctl("list_connections", "user").split("\n")[1:-1]) - {"guest"}


def test_a_renewed_certificate_is_in_use_after_a_reload_and_no_message_runs_twice(
    broker, consuming, queue_name, files
):
    renewed = broker.add_certificate_user("renewed.example.org")
    with published_all_the_time(broker.url, queue_name) as published:
        consuming.noted("handled", 20)
        _renew(files, renewed)
        answers = ask(consuming)
        assert {change["path"]: change["takes"] for change in answers[-1]["changes"]} == {
            "tls.certfile": "reconnect",
            "tls.keyfile": "reconnect",
        }
        assert "connecting again" in answers[-2]["step"]
        before = len(consuming.notes("handled"))
        consuming.noted("handled", before + 20)
        until(lambda: users(broker) == {"renewed.example.org"}, "the new one is shown")
    notes = handled_once(consuming, "handled", published)
    assert [note["body"]["n"] for note in notes] == published, "in order, too"
    assert "connecting again with other settings" in consuming.log
    assert reloaded(consuming) == {}
    assert consuming.stop() == 0


def test_files_that_do_not_fit_are_refused_and_the_connection_stays(
    broker, consuming, queue_name, files
):
    (files / "key").write_text("no key")
    (problem,) = ask(consuming)[-1]["problems"]
    assert problem["path"] == "tls.keyfile"
    assert consuming.log.count("consuming from") == 1
    publish(broker.url, queue_name, [1])
    consuming.noted("handled", 1)
    assert consuming.stop() == 0
