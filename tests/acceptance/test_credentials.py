# SPDX-License-Identifier: GPL-2.0-or-later
"""The hardened unit takes secrets as systemd's credentials; the broker wants certificates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from consumer_framework.adapters.systemd.credentials import IMPORTS_SINCE
from consumer_framework.testing.broker.tls import TlsBroker

from .service import bodies, publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .container import Container
    from .service import Service

REFRESHES_SINCE = 260
CANARY = "canary-7b1f-secret"
TLS = '[tls]\nca_cert = "credential:ca"\ncertfile = "credential:cert"\nkeyfile = "credential:key"\n'
TOKEN = f'[consumer_config]\ntoken = "credential:token"\nown = "{CANARY}"\n'
# It prints its secrets reversed, so that no redaction hides them.
KEEPER = """
import os
from consumer_framework import Consumer, Recovery

class Keeper(Consumer):
    recovery = Recovery(immediate=0, delays=())

    def handle(self, message):
        token = self.config["token"]
        if message.body.get("poison"):
            raise ValueError(f"refused: {token}")
        print(f"handled {message.id}", flush=True)
        print(f"token {token[::-1]}", flush=True)
        print(f"uid {os.getuid()}", flush=True)
"""


@pytest.fixture(scope="module")
def broker(broker, tmp_path_factory) -> Iterator[TlsBroker]:
    """Start a node that demands certificates; the overridden fixture checks the programs."""
    with TlsBroker(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture(scope="module")
def keys(host, broker) -> None:
    """Write files in the container that root alone may read."""
    pair = broker.add_certificate_user("consumer.example.org")
    files = {"ca": broker.authority.certificate, "cert": pair.certificate, "key": pair.key}
    for name, file in files.items():
        host.write(f"/etc/pki/consumer/{name}.pem", file.read_text(), mode=0o600)
    host.write("/etc/pki/consumer/token", f"{CANARY}-token\n", mode=0o600)
    host.run("chmod", "700", "/etc/pki/consumer")
    host.write("/usr/local/lib/consumers/keeper.py", KEEPER)


def hand_over(host: Container, name: str, *, encrypted: tuple[str, ...] = ()) -> None:
    """Write the drop-in of credentials that works with every systemd."""
    sources = {n: f"/etc/pki/consumer/{n}.pem" for n in ("ca", "cert", "key")}
    sources |= {"token": "/etc/pki/consumer/token"}
    lines = ["[Service]"]
    for credential, source in sources.items():
        if credential in encrypted:
            target = f"/etc/pki/consumer/{name}.{credential}.cred"
            host.run("systemd-creds", "encrypt", f"--name={credential}", source, target)
            lines.append(f"LoadCredentialEncrypted={credential}:{target}")
        else:
            lines.append(f"LoadCredential={credential}:{source}")
    host.write(
        f"/etc/systemd/system/fm-consumer@{name}.service.d/credentials.conf", "\n".join(lines)
    )
    host.run("systemctl", "daemon-reload")


@pytest.fixture
def secretive(make, host, keys, broker, queue):
    """Return a function that makes instances over TLS, whose file root alone may read."""

    def make_one(name: str) -> Service:
        service: Service = make(name)
        file = f"/etc/fedora-messaging/{name}.toml"
        service.configure(broker.tls_url, queue, extra="")
        text = host.run("cat", file).stdout
        text = text.replace("acceptance_consumer:Sample", "keeper:Keeper")
        host.write(file, f"{text}\n{TLS}\n{TOKEN}", mode=0o600)
        return service

    return make_one


def test_tls_files_and_the_configuration_may_be_roots_alone(
    secretive, make, host, keys, broker, queue
):
    hand_over(host, "closed", encrypted=("token",) if has_encryption(host) else ())
    service = secretive("closed")
    service.systemctl("start")
    said = broker.ctl("list_connections", "user", "ssl", "auth_mechanism")
    assert "consumer.example.org\ttrue\tEXTERNAL" in said
    publish(broker, queue, bodies(3))
    service.until(lambda: len(service.noted("handled")) == 3, "they are handled")
    assert service.noted("token")[0] == f"{CANARY}-token"[::-1]
    assert service.noted("uid")[0] != "0"
    assert readers_of_secrets(host, service) == []
    publish(broker, queue, bodies(1, poison=True))
    service.until(lambda: "1 quarantined" in service.show("StatusText"), "one is set aside")
    for command in (
        ("status", "closed", "--json"),
        ("check", "closed", "--broker"),
        ("check", "closed", "--json"),
        ("explain", "ValueError", "closed", "--json"),
        ("quarantine", "list", "closed", "--json"),
        ("quarantine", "export", "closed"),
    ):
        exit_code, said = fm_consumer(host, *command)
        assert CANARY not in said
        assert exit_code == 0, f"{command}\n{said}"
    assert CANARY not in service.systemctl("status").stdout + service.systemctl("show").stdout
    exit_code, said = fm_consumer(host, "quarantine", "show", "closed", "1")
    assert "ValueError: refused: <credential:token>" in said
    service.systemctl("stop")
    said = service.journal("--output=export")
    assert "ValueError: refused: <credential:token>" in said
    assert CANARY not in said
    assert host.run("grep", "-rl", CANARY, "/var/lib/fedora-messaging", check=False).stdout == ""


def test_root_hands_a_changed_file_over_and_a_reload_says_what_stays(secretive, host, keys):
    hand_over(host, "reloaded")
    service = secretive("reloaded")
    service.systemctl("start")
    file = "/etc/fedora-messaging/reloaded.toml"
    exit_code, said = fm_consumer(host, "reload", "reloaded")
    assert exit_code == 0, said
    assert "these credentials are as they were: ca, cert, key, token; if not, restart" in said
    assert "was changed" not in said
    # Only root may read the file: the command sends it.
    host.run("sed", "-i", "$ a # changed", file)
    exit_code, said = fm_consumer(host, "reload", "reloaded")
    assert (exit_code, "nothing has changed" in said) == (0, True), said
    host.run("sed", "-i", '$ a [consumer_config.framework]\\nrate = "5/s"', file)
    exit_code, said = fm_consumer(host, "reload", "reloaded")
    assert (exit_code, "consumer_config.framework.rate" in said) == (0, True), said
    if systemd_version(host) >= REFRESHES_SINCE:
        service.systemctl("reload")
        _, said = fm_consumer(host, "reload", "reloaded")
        assert "was changed" not in said
        host.run("sed", "-i", "$ a # changed again", file)
    # A file that everybody may read needs no such copy.
    host.run("chmod", "644", file)
    _, said = fm_consumer(host, "reload", "reloaded")
    assert "was changed" not in said


def fm_consumer(host: Container, *words: str) -> tuple[int, str]:
    """Run an administrator's command, with the consumer's module installed."""
    program = ("env", "PYTHONPATH=/usr/local/lib/consumers", "fm-consumer")
    result = host.run(*program, *words, check=False)
    return result.returncode, result.stdout + result.stderr


def systemd_version(host: Container) -> int:
    return int(host.run("systemctl", "--version").stdout.split()[1])


def has_encryption(host: Container) -> bool:
    return host.run("systemd-creds", "setup", check=False).returncode == 0


def readers_of_secrets(host: Container, service: Service) -> list[str]:
    """Return the secrets of the running service that /proc shows."""
    pid = service.show("MainPID")
    script = f"cat /proc/{pid}/cmdline /proc/{pid}/environ; ps -eo args"
    shown = host.run("sh", "-c", script).stdout
    return re.findall(CANARY, shown)


def test_an_administrator_checks_what_the_service_will_have(secretive, host, keys):
    service = secretive("checked")
    exit_code, said = fm_consumer(host, "check", "checked")
    assert exit_code == 78
    assert 'tls.keyfile: the credential "key" is given to this service by nothing' in said
    assert "LoadCredential=key:FILE with systemctl edit fm-consumer@checked" in said
    hand_over(host, "checked")
    exit_code, said = fm_consumer(host, "check", "checked", "--broker")
    assert exit_code == 0, said
    assert "is closed to the service's user fm-checked: systemd gives it a copy" in said
    assert "takes the connection" in said
    assert service.show("ActiveState") == "inactive"


def test_a_credential_that_the_service_lacks_ends_it_with_the_cure(secretive, host, keys):
    hand_over(host, "lacking")
    drop_in = "/etc/systemd/system/fm-consumer@lacking.service.d/credentials.conf"
    host.run("sed", "-i", "/=token:/d", drop_in)
    host.run("systemctl", "daemon-reload")
    service = secretive("lacking")
    assert service.systemctl("start", check=False).returncode != 0
    assert service.show("ExecMainStatus") == "78"
    said = service.journal("-p", "err")
    assert (
        "/etc/fedora-messaging/lacking.toml: consumer_config.token: the credential "
        '"token" was not given to this service; it has ca, cert, key; '
    ) in said
    assert CANARY not in service.journal()


def test_a_new_systemd_imports_the_credential_store(secretive, host, keys, broker, queue):
    for name in ("ca", "cert", "key"):
        source = f"/etc/pki/consumer/{name}.pem"
        host.run("install", "-Dm600", source, f"/etc/credstore/fm-consumer.imported.{name}")
    stored = "/etc/credstore/fm-consumer.imported.token"
    host.run("install", "-Dm600", "/etc/pki/consumer/token", stored)
    service = secretive("imported")
    exit_code, said = fm_consumer(host, "check", "imported", "--broker")
    version = systemd_version(host)
    if version < IMPORTS_SINCE:
        assert exit_code == 78
        assert f"{stored} is there, but systemd {version} is older than 254" in said
        return
    assert exit_code == 0, said
    hidden = "/etc/credstore.encrypted/fm-consumer.imported.token"
    host.run("mkdir", "-p", "/etc/credstore.encrypted")
    host.run("systemd-creds", "encrypt", "--name=fm-consumer.imported.token", stored, hidden)
    host.run("rm", stored)
    exit_code, said = fm_consumer(host, "check", "imported")
    assert exit_code == 0, said
    assert 'the credential "token" cannot be checked here: it is encrypted' in said
    service.systemctl("start")
    publish(broker, queue, bodies(1))
    service.until(lambda: service.noted("token") == [f"{CANARY}-token"[::-1]], "it is decrypted")


def test_a_copy_that_systemd_cannot_make_keeps_the_service_from_starting(secretive, host, keys):
    hand_over(host, "uncopied")
    host.run(
        *("sed", "-i", "s:/etc/pki/consumer/token:/etc/pki/consumer/none:"),
        "/etc/systemd/system/fm-consumer@uncopied.service.d/credentials.conf",
    )
    host.run("systemctl", "daemon-reload")
    service = secretive("uncopied")
    assert service.systemctl("start", check=False).returncode != 0
    assert service.show("ExecMainStatus") == "243"
    _, said = fm_consumer(host, "check", "uncopied")
    assert "is to be loaded from /etc/pki/consumer/none, which is not there" in said
