# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer check`` has a finding for each mistake, with its key and line, and no traceback."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import tempfile
import textwrap
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedora_messaging import config as upstream
from fedora_messaging import message as upstream_message

from consumer_framework.adapters import config
from consumer_framework.adapters.certificates import common_name
from consumer_framework.cli import main
from consumer_framework.core.errors import ExitCode
from consumer_framework.operate.check.fedora import fedora_findings
from tests.unit.broken_configurations import CORPUS, Broken, local, private, public

MODULE = """
import pydantic
from consumer_framework import Consumer

def function(message): pass

class Typed(Consumer):
    class Config(pydantic.BaseModel):
        name: str
    def handle(self, message): pass
"""


@pytest.fixture(autouse=True)
def _upstreams_configuration_is_put_back():
    conf, loaded = dict(upstream.conf.items()), upstream.conf.loaded
    yield
    upstream.conf.clear()
    dict.update(upstream.conf, conf)
    upstream.conf.loaded = loaded


@pytest.fixture(autouse=True)
def _the_reactor_is_that_of_the_tests(monkeypatch):
    monkeypatch.setattr("consumer_framework.runtime.reactor.install", lambda: None)


@pytest.fixture(autouse=True)
def _schemas_are_loaded_once(monkeypatch):
    # Each check looks through all packages for them, which takes most of its time.
    if not upstream_message._registry_loaded:
        upstream_message.load_message_classes()
    monkeypatch.setattr(upstream_message, "load_message_classes", lambda: None)


@pytest.fixture(scope="module")
def directory():
    """Has the module of the callback, and the certificates of three accounts."""
    # Below no directory that is closed to others, as those of pytest are.
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    (made / f"corpus_{made.name}.py").write_text(MODULE)
    for name in ("bodhi", "bodhi.stg", "fedora"):
        write_pair(made, name)
    with closing(sqlite3.connect(made / "messages.db")) as database:
        database.execute("CREATE TABLE messages (n TEXT UNIQUE, topic TEXT)")
    yield made
    shutil.rmtree(made)


def write_pair(directory: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    pem = serialization.Encoding.PEM
    signed = builder.sign(key, hashes.SHA256()).public_bytes(pem)
    (directory / f"{name}.pem").write_bytes(signed)
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / f"{name}.key").write_bytes(key.private_bytes(pem, form, plain))


@pytest.fixture
def check(directory, monkeypatch):
    """Check a file with this text; returns the report of the command."""
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv("STATE_DIRECTORY", str(directory / "state"))

    def check_text(text: str | bytes) -> Any:
        file = directory / "sample.toml"
        file.write_bytes(text if isinstance(text, bytes) else in_place(text, directory).encode())
        words = ["check", "--conf", str(file), "--json"]
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        report = json.loads(result.stdout)
        assert result.exit_code == report["exit_code"]
        return report

    return check_text


def in_place(text: str, directory: Path) -> str:
    names = {
        "CERT": directory / "bodhi.pem",
        "KEY": directory / "bodhi.key",
        "STAGING": directory / "bodhi.stg.pem",
        "STAGED": directory / "bodhi.stg.key",
        "DIRECTORY": directory,
        "DATABASE": f"sqlite:///{directory}/messages.db",
    }
    if '"FEDORA"' in text:
        names |= {"FEDORA": directory / "fedora.pem", "KEY": directory / "fedora.key"}
    for name, file in names.items():
        text = text.replace(f'"{name}"', f'"{file}"')
    return text.replace("MODULE", f"corpus_{directory.name}")


def test_the_corpus_has_no_name_twice():
    assert len({case.name for case in CORPUS}) == len(CORPUS) > 60


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name.replace(" ", "-"))
def test_a_mistake_is_found_with_its_key_and_its_line(check, case: Broken):
    findings = check(case.text)["findings"]
    told = [f for f in findings if (f["level"], f["path"]) == (case.level, case.path)]
    found = [f for f in told if case.words in f"{f['message']}; {f['cure']}"]
    assert len(found) == 1, findings
    assert found[0]["line"] == case.line


@pytest.mark.parametrize("text", [local(), private()])
def test_a_file_without_a_mistake_has_no_warning(check, text):
    report = check(text)
    assert (report["errors"], report["warnings"]) == (0, 0), report


def test_the_public_broker_has_the_warning_that_its_queues_do_not_last_and_no_other(check):
    report = check(public())
    assert (report["errors"], report["warnings"]) == (0, 1), report
    assert "an account on /pubsub" in report["findings"][0]["cure"]


@pytest.mark.parametrize(
    "text",
    [
        private().replace("fedoraproject.org", "example.org"),
        private().replace("fedoraproject.org", "notfedoraproject.org"),
        private(more='[consumer_config.framework]\nprofile = "none"'),
    ],
)
def test_the_rules_of_fedora_are_for_fedoras_broker_only(check, text):
    told = check(text.replace("passive_declares = true", "passive_declares = false"))
    assert not [f for f in told["findings"] if "/pubsub" in f["message"]]
    assert told["errors"] == 0


def test_the_name_of_an_account_is_that_in_its_certificate(directory):
    assert common_name(directory / "bodhi.stg.pem") == "bodhi.stg"
    assert common_name(directory / "bodhi.key") is None
    assert common_name(directory / "gone") is None


# Files that nobody wrote.

ROOT = Path(__file__).resolve().parents[2]
# The long form is that of `make chaos`.
COUNT = 10_000 if os.environ.get("CHAOS") == "full" else 150
VALUES = (
    *("{}", "[]", "[[]]", "[{}]", "true", "nan", "-inf", "0", "-1", "9" * 30, "1e400", '""'),
    *("1979-05-27", "07:32:00", '"\\u0000"', '"credential:x"', '"' + "x" * 300 + '"', "'%'"),
    *('"amqps://u:p@[::1"', '"amqp://h:99999/"', '"5m"', "{ a = { b = [1, 'c'] } }"),
)
PIECES = (*VALUES, "[", "]", "{", "}", "=", ".", ",", "#", '"', '"""', "'''", "\n", "\r", "\x00")


def garbled(text: str, chance: random.Random) -> bytes:
    """Return *text* with one to four changes."""
    for _ in range(chance.randint(1, 4)):
        text = chance.choice(_CHANGES)(text, chance)
    raw = text.encode()
    if chance.random() < 0.05:
        at = chance.randrange(len(raw) + 1)
        raw = raw[:at] + bytes([chance.randrange(256)]) + raw[at:]
    return raw


def _other_value(text: str, chance: random.Random) -> str:
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    key, equals, _ = lines[at].partition(" = ")
    lines[at] = f"{key}{equals}{chance.choice(VALUES)}" if equals else lines[at]
    return "\n".join(lines)


def _other_lines(text: str, chance: random.Random) -> str:
    lines = text.split("\n")
    some, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[some] = chance.choice(["", lines[other], f"{lines[some]}\n{lines[other]}"])
    return "\n".join(lines)


def _inserted(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] + chance.choice(PIECES) + text[at:]


def _cut(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] + text[at + chance.randint(1, 30) :]


_CHANGES = (_other_value, _other_value, _other_value, _other_lines, _inserted, _cut)


def test_no_garbled_file_ends_the_check_with_a_traceback(check, directory):
    chance = random.Random(14)  # noqa: S311 -- the same files each time
    texts = [case.text for case in CORPUS]
    texts += [file.read_text() for file in sorted((ROOT / "examples").rglob("*.toml"))]
    texts = [in_place(text, directory) for text in texts]
    codes = {*map(int, ExitCode)}
    for _ in range(COUNT):
        raw = garbled(chance.choice(texts), chance)
        report = check(raw)
        assert report["exit_code"] in codes
        for finding in report["findings"]:
            assert finding["line"] is None or 1 <= finding["line"] <= raw.count(b"\n") + 1


# The page about Fedora's broker.

PAGE = ROOT / "docs/howto/use-fedoras-broker.md"


def shown(language: str) -> list[str]:
    """Return the blocks of the steps of the page."""
    fence = " {3}```"
    found = re.findall(
        rf"^{fence}{language}\n(.*?)^{fence}$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return [textwrap.dedent(block) for block in found]


def with_files(text: str) -> str:
    text = text.replace("sample:Sample", "MODULE:function")
    named = re.sub(r'^(ca_cert|certfile) = ".*"$', r'\1 = "CERT"', text, flags=re.MULTILINE)
    return re.sub(r'^keyfile = ".*"$', 'keyfile = "KEY"', named, flags=re.MULTILINE)


def test_the_page_shows_files_that_follow_the_rules_and_the_real_findings(check):
    public_file, private_file = map(with_files, shown("toml"))
    said, refused = shown("text")
    told = said_by(check(public_file.replace('"CERT"', '"FEDORA"')))
    assert told == [line for line in said.splitlines() if not line.startswith("sample.toml")]
    assert check(private_file)["warnings"] == check(private_file)["errors"] == 0
    (line,) = refused.splitlines()
    other = private_file.replace("bodhi_updates", "pagure_updates")
    assert line.replace("/etc/fedora-messaging/", "") in said_by(check(other))


def said_by(report: Any) -> list[str]:
    lines = []
    for f in report["findings"]:
        place = f"sample.toml:{f['line']}" if f["line"] else "sample.toml"
        path = f"{f['path']}: " if f["path"] else ""
        cure = f"; {f['cure']}" if f["cure"] else ""
        lines.append(f"{f['level']}: {place}: {path}{f['message']}{cure}")
    return lines


def test_a_relay_has_no_queues_to_check(check, directory):
    text = in_place(private(("passive_declares = true\n", "")), directory)
    settings = config.examine(written(directory, text)).settings
    found = [finding.problem.path for finding in fedora_findings(settings, "bodhi")]
    assert found == ["amqp_url", "passive_declares"]
    found = [f.problem.path for f in fedora_findings(settings, "bodhi", consumes=False)]
    assert found == ["amqp_url"]


def written(directory: Path, text: str) -> Path:
    file = directory / "relay.toml"
    file.write_text(text)
    return file
