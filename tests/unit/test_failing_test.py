# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine to-test``: a test that fails as a quarantined message did."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import json
import os
import runpy
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pika
import pytest
from click.testing import CliRunner
from hypothesis import given

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.cli import main
from consumer_framework.core.attempt import History, attempt_of
from consumer_framework.kit.anonymous import Anonymizer
from consumer_framework.kit.failing_test import FailedMessage, literal, source_of_test
from consumer_framework.testing import make_delivery

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = """
from consumer_framework import Consumer

class Builds(Consumer):
    async def handle(self, message):
        build = message.body["build"]
        assert self.config["greeting"] == "hello"
        assert "secret" in self.config["api_token"]
        self.greet(build["owner"], build["owner_mail"], build[KEY])

    def greet(self, owner, mail, version):
        # Both were replaced, and are still of the same person.
        assert owner.startswith("somebody-") and mail.startswith("somebody-")
"""
BODY = {
    "build": {
        "name": "kernel",
        "owner": "ralph",
        "owner_mail": "ralph@fedoraproject.org",
        "text": "by ralph, from 10.1.2.3",
    }
}
CONF = """
callback = "broken_builds:Builds"
[consumer_config]
greeting = "hello"
api_token = "ghp_0123456789012345678901234567"
[consumer_config.framework]
slots = 2
[consumer_config.framework.recovery]
delays = ["10s"]
"""


def fail(text):
    raise KeyError(text)


def failure(text="version of ralph"):
    try:
        fail(text)
    except KeyError as error:
        return attempt_of(error, 1_800_000_000.0)


class Place:
    """A directory with a consumer, its configuration and its quarantine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf = directory / "builds.toml"
        self.conf.write_text(CONF)
        self.state = directory / "state"
        self.state.mkdir()
        self.target = directory / "test_row.py"
        self.write("'version'")

    def write(self, key: str) -> None:
        (self.directory / "broken_builds.py").write_text(BROKEN.replace("KEY", key))

    def quarantine(self, body: bytes, *attempts: Any, crashes: int = 0, **properties: Any) -> None:
        made = pika.BasicProperties(
            **{"content_encoding": "utf-8", "headers": {}, "message_id": "m1", **properties}
        )
        delivery = make_delivery(body=body, routing_key="org.example.build")._replace(
            properties=made, history=History(attempts, crashes)
        )
        with closing(Store.open(self.state, limits=Limits())) as store:
            asyncio.run(store.quarantine(delivery, "KeyError: 'version of ralph' (2 attempts)"))

    def to_test(self, *words: object, code: int = 0) -> Any:
        command = ["quarantine", "to-test", "--conf", self.conf, "--state-dir", self.state, *words]
        done = CliRunner().invoke(main, list(map(str, command)))
        assert done.exit_code == code, (done.output, done.exception)
        return done

    def error(self, monkeypatch) -> str:
        """Run the test in this process; return its error."""
        monkeypatch.syspath_prepend(str(self.directory))
        sys.modules.pop("broken_builds", None)
        functions = runpy.run_path(str(self.target))
        with pytest.raises(AssertionError) as raised:
            functions["test_row_1_of_builds_is_handled"]()
        return str(raised.value)

    def pytest(self) -> subprocess.CompletedProcess[str]:
        words = ["-q", "-p", "no:cacheprovider", str(self.target)]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_the_test_fails_with_the_authors_error_until_the_consumer_is_mended(place):
    place.quarantine(json.dumps(BODY).encode(), failure(), failure())
    told = place.to_test(1, "--output", place.target)
    assert f"pytest {place.target}" in told.stderr
    broken = place.pytest()
    assert broken.returncode == 1, broken.stdout
    assert "KeyError: 'version'" in broken.stdout
    assert "broken_builds.py" in broken.stdout
    place.write("'name'")
    mended = place.pytest()
    assert mended.returncode == 0, mended.stdout
    assert "1 passed" in mended.stdout


def test_details_are_replaced_everywhere_and_shown_as_a_difference(place):
    place.quarantine(json.dumps(BODY).encode(), failure(), failure())
    told = place.to_test(1)
    for text in (told.stdout,):
        for detail in ("ralph", "fedoraproject", "10.1.2.3", "ghp_"):
            assert detail not in text
    assert "# Attempt 1 of 2, 2027-" in told.stdout
    assert "the traceback of attempt 1" in told.stdout
    assert "#   KeyError: 'version of somebody-1'" in told.stdout
    assert "somebody-1@example.org" in told.stdout
    assert "by somebody-1, from 192.0.2.1" in told.stdout
    assert '-    "owner": "ralph",' in told.stderr
    assert '+    "owner": "somebody-1",' in told.stderr
    assert "4 values replaced: look at the test" in told.stderr
    assert "owner" not in place.to_test(1, "--no-diff").stderr
    kept = place.to_test(1, "--keep", "Build", "--no-diff").stdout
    assert '"owner": "ralph"' in kept


def test_bytes_that_are_no_message_fail_as_such(place, monkeypatch):
    place.quarantine(b"\xff{ ralph@example.com, bob@redhat.com", failure("no message"))
    place.to_test(1, "-o", place.target)
    assert "bob" not in place.target.read_text()
    assert "UnicodeDecodeError" in place.error(monkeypatch)


def test_a_consumer_of_a_file_is_run_from_there(place, monkeypatch):
    place.quarantine(json.dumps(BODY).encode(), failure())
    place.conf.write_text(CONF.replace("callback", "# callback"))
    assert "names no callback" in place.to_test(1, code=2).output
    file = place.directory / "broken_builds.py"
    place.to_test(1, "-o", place.target, "--callback-file", f"{file}:Builds")
    assert "KeyError: 'version'" in place.error(monkeypatch)


def test_a_row_that_never_failed_is_refused_and_so_is_one_that_is_not_there(place):
    place.quarantine(b"{}")
    assert "row 1 has no failed attempt" in place.to_test(1, code=2).output
    assert "there is no row 7" in place.to_test(7, code=2).output
    assert "name one ROW" in place.to_test(1, 2, code=2).output
    place.conf.unlink()
    assert f"{place.conf}: there is no such file" in place.to_test(1, code=78).output


def test_a_message_that_killed_the_process_says_so(place):
    place.quarantine(b"{}", crashes=2)
    assert "may kill this one" in place.to_test(1).stdout


def test_a_file_that_is_there_is_not_overwritten(place):
    place.quarantine(b"{}", failure())
    place.target.write_text("mine")
    assert "is there already" in place.to_test(1, "-o", place.target, code=2).output
    assert place.target.read_text() == "mine"


def test_the_source_of_a_value_is_the_value():
    values = [
        {"a": [1, 2.5, None, True], "b'": 'x"y', "c": b"\xff", "long": ["x" * 40] * 5},
        [],
        dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        decimal.Decimal("1.50"),
        {"nested": {"deep": {"deeper": ["y" * 50, {"z": "w" * 60}]}}},
    ]
    for value in values:
        known = {"datetime": dt, "decimal": decimal}
        assert eval(literal(value), known) == value  # noqa: S307 -- this test wrote it
    assert literal(float("inf")) == 'float("inf")'
    assert literal("plain") == '"plain"'
    assert literal(object)[0] == '"'


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_any_body_makes_a_file_of_python(body):
    delivery = make_delivery(body=json.dumps({"body": body}).encode())
    delivery = delivery._replace(
        properties=pika.BasicProperties(headers={"h": body if isinstance(body, str) else ""}),
        history=History((failure(),)),
    )
    message = FailedMessage("a-b", 1, "why\n'''\"\"\"\\", delivery, "a:b", {"x": body})
    compile(source_of_test(message, Anonymizer()), "test", "exec")


def test_text_that_a_publisher_chose_does_nothing_to_a_terminal_nor_to_python(place):
    place.quarantine(b'{"a": "\\u001b[2J"}', failure("\x1b[2J\x00\u009b"))
    told = place.to_test(1)
    assert not {"\x1b", "\x00", "\u009b"}.intersection(told.output)
    assert r"\x1b[2J" in told.stdout
    compile(told.stdout, "test", "exec")


def test_a_body_that_is_nested_deeply_is_written_as_bytes(place):
    place.quarantine(b'{"a": ' * 400 + b'"you@redhat.com"' + b"}" * 400, failure())
    told = place.to_test(1)
    assert "BODY = b" in told.stdout
    assert "you@" not in told.stdout


# The rules.


def cleaned(value, *kept):
    names = Anonymizer(kept)
    names.learn(value)
    return names.cleaned(value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("password", "x", "secret-1"),
        ("api_key", "x", "secret-1"),
        ("githubToken", "x", "secret-1"),
        ("tokens", ["x", 7, None, True], ["secret-1", 0, None, True]),
        ("secret", {"a": "x"}, {"a": "secret-1"}),
        ("token_url", "x", "x"),
        ("email", "me", "somebody-1@example.org"),
        ("user", "ralph", "somebody-1"),
        ("user", {"name": "ralph", "group": "x"}, {"name": "somebody-1", "group": "x"}),
        ("users", ["ada", "bob", "ada"], ["somebody-1", "somebody-2", "somebody-1"]),
        ("user", "bodhi", "bodhi"),
        ("agent", "https://example.org/ralph", "https://example.org/ralph"),
        ("name", "kernel", "kernel"),
        ("ip", "10.1.2.3", "192.0.2.1"),
        ("text", "to you@redhat.com.", "to somebody-1@example.org."),
        ("text", "to you@example.org", "to you@example.org"),
        ("text", "from 10.1.2.3:80", "from 192.0.2.1:80"),
        ("text", "ip:10.1.2.3.", "ip:192.0.2.1."),
        ("text", "10.1.2.3: refused", "192.0.2.1: refused"),
        ("text", "from 10.1.2.3 and 127.0.0.1", "from 192.0.2.1 and 127.0.0.1"),
        ("text", "from fe80::1:2", "from 2001:db8::1"),
        ("text", "at 12:30:00", "at 12:30:00"),
        ("version", "6.12.1.0", "6.12.1.0"),
        ("text", "kernel-6.12.1.0-1", "kernel-6.12.1.0-1"),
        ("text", "Bearer abcdefghijkl", "Bearer secret-1"),
        ("text", "https://me:pass@host/x", "https://secret-1@host/x"),
        ("text", "ghp_0123456789012345678901234567", "secret-1"),
        ("text", "eyJhbGciOiJI.eyJzdWIiOiIx.abc", "secret-1"),
        ("text", "redis://:pass@host/0", "redis://secret-1@host/0"),
        ("text", "https://host/?api_key=abcd&n=1", "https://host/?api_key=secret-1&n=1"),
        ("text", "password=abcd1234, n=1", "password=secret-1, n=1"),
        ("text", "Authorization: Basic bWU6cGFzcw==", "Authorization: Basic secret-1"),
        ("text", '{"user": "ralph", "token": "x"}', '{"user": "somebody-1", "token": "secret-1"}'),
        ("text", r'"{\"token\": \"x\"}"', r'"{\"token\": \"secret-1\"}"'),
        ("text", r'{"token": "x\"y"}', '{"token": "secret-1"}'),
        ("text", "password = read2(x)", "password = read2(x)"),
        ("text", """x = '{"token": "x"}'""", """x = '{"token": "secret-1"}'"""),
        ("text", "the user: nobody knows", "the user: nobody knows"),
        (
            "body",
            b'[{"user": "ada", "otp": "\xff"}]',
            b'[{"user": "somebody-1", "otp": "secret-1"}]',
        ),
        ("people", {"you@redhat.com": 1}, {"somebody-1@example.org": 1}),
        ("hosts", {"10.1.2.3": 2}, {"192.0.2.1": 2}),
    ],
)
def test_a_value_is_replaced_for_its_key_or_for_its_form(key, value, expected):
    assert cleaned({key: value}) == {key: expected}


def test_a_detail_is_replaced_wherever_it_comes_again():
    value = {"agent": "ralph", "text": "ralph and ralphy", "list": ["by ralph"], "b": b"\xff ralph"}
    assert cleaned(value) == {
        "agent": "somebody-1",
        "text": "somebody-1 and ralphy",
        "list": ["by somebody-1"],
        "b": b"\xff somebody-1",
    }


def test_thousands_of_details_take_no_time_for_each_pair_of_them():
    # Each new detail once made a pattern of all details: these took a quarter of an hour.
    people = [f"person{n}@redhat.com" for n in range(5000)]
    assert len(set(cleaned({"cc": people})["cc"])) == len(people)


def test_a_kept_key_keeps_everything_below_it():
    value = {"Agent-Name": "ralph", "headers": {"token": "x"}, "token": "y"}
    assert cleaned(value, "agentName", "headers") == {**value, "token": "secret-1"}


def test_many_addresses_and_a_replacement_in_the_text_are_no_harm():
    ips = [f"10.0.{n // 200}.{n % 200 + 1}" for n in range(300)]
    assert len(set(cleaned({"ips": ips})["ips"])) > 200
    assert cleaned({"user": "somebody-1"}) == {"user": "somebody-1"}
