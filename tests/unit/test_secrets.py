# SPDX-License-Identifier: GPL-2.0-or-later
"""The process neither shows nor stores a secret that it knows."""

from __future__ import annotations

import json
import logging

import pytest

from consumer_framework.adapters import config, log
from consumer_framework.adapters.store.records import attempt_columns
from consumer_framework.adapters.systemd.notify import one_ascii_line
from consumer_framework.cli import terminal
from consumer_framework.core.attempt import attempt_of
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.secrets import hide, redact, redacted
from consumer_framework.settings import Settings

CANARY = "c4n/ary p\"ass'wörd"


@pytest.fixture
def _known():
    hide(CANARY, "credential:token")


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize(
    "form",
    [
        CANARY,
        repr({"a": CANARY}),
        json.dumps({"a": CANARY}),
        repr(CANARY.encode()),
        "amqp://u:c4n%2Fary%20p%22ass%27w%C3%B6rd@h/",
    ],
)
def test_a_secret_is_found_in_the_forms_that_text_has(form):
    shown = redact(f"before {form} after")
    assert "c4n" not in shown
    assert "<credential:token>" in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


def test_every_line_of_a_long_secret_is_secret():
    hide("-----BEGIN KEY-----\nMIIEvQIBADANBg+kqhkiG9w0B\n}\n", "credential:key")
    assert redact("line MIIEvQIBADANBg+kqhkiG9w0B}") == "line <credential:key>}"


@pytest.fixture
def _short():
    hide("fedora", "the password of amqp_url")
    hide("bodhi", "credential:hook")
    hide("", "nothing")


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    "text",
    [
        "org.fedoraproject.prod.bodhi.update",
        "consuming from fedora",
        "KeyError: 'fedora'",
        "{'project': 'fedora', 'routing_key': 'bodhi'}",
        "amqp://fedora:<the password of amqp_url>@h/",
        "password=fedora38",
    ],
)
def test_a_plain_word_is_shown_where_no_secret_is_expected(text):
    assert redact(text) == text


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("amqps://fedora:", "@broker/vhost"),
        ("Config(password='", "')"),
        ('{"Api-Token": "', '"}'),
        ('{\\"secret\\": \\"', '\\"}'),
        ("client_secret = ", ""),
        ("Authorization: Bearer ", "\n"),
        ("headers={'Authorization': b'Bearer ", "'}"),
        ("response=b'\\x00user\\x00", "'"),
    ],
)
def test_a_plain_word_is_hidden_where_a_secret_is_expected(before, after):
    hidden = redact(f"{before}fedora{after}")
    assert hidden == f"{before}<the password of amqp_url>{after}"


@pytest.mark.usefixtures("_short")
def test_a_plain_word_is_hidden_after_the_name_of_its_credential():
    assert (
        redact("Config(hook='bodhi', of='bodhi')") == "Config(hook='<credential:hook>', of='bodhi')"
    )
    assert redacted({"hook": "bodhi", "of": ["bodhi"], "token": ["bodhi"]}) == {
        "hook": "<credential:hook>",
        "of": ["bodhi"],
        "token": ["<credential:hook>"],
    }


@pytest.mark.parametrize(
    ("secret", "is_hidden"),
    [
        ("fedora-messaging", False),
        ("production", False),
        ("fedora40", False),
        ("Summer2024", True),
        ("p@ssw/rd", True),
        ("9f86d081884c7d65", True),
        ("correct horse battery staple", True),
    ],
)
def test_a_secret_that_no_text_has_by_chance_is_hidden_everywhere(secret, is_hidden):
    hide(secret, "x")
    assert redact(f"-{secret}-") == ("-<x>-" if is_hidden else f"-{secret}-")


def test_the_longest_of_two_secrets_is_hidden_and_the_first_label_stays():
    hide("s3cret-1", "a")
    hide("s3cret-1-and-more", "b")
    hide("s3cret-1-and-more", "c")
    assert redact("s3cret-1 s3cret-1-and-more") == "<a> <b>"


@pytest.mark.usefixtures("_known")
def test_a_value_for_json_keeps_its_form():
    value = {"a": [CANARY, 5, None, (True, f"x{CANARY}")], CANARY: {}}
    assert redacted(value) == {
        "a": ["<credential:token>", 5, None, [True, "x<credential:token>"]],
        CANARY: {},
    }


@pytest.fixture
def _records():
    factory = logging.getLogRecordFactory()
    log.hide_secrets()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.usefixtures("_known", "_records")
def test_no_log_record_shows_a_secret(caplog):
    logger = logging.getLogger("some.library")
    logger.warning("with %s in it", CANARY)
    try:
        int(CANARY)
    except ValueError:
        logger.exception("failed")
    logger.error("no exception", exc_info=True)  # noqa: LOG014 -- people do
    assert "c4n" not in caplog.text
    assert caplog.text.count("<credential:token>") >= 2
    assert "Traceback (most recent call last)" in caplog.text


@pytest.mark.usefixtures("_records")
def test_a_record_without_secrets_is_unchanged(caplog):
    try:
        int("harmless")
    except ValueError:
        logging.getLogger("some.library").exception("failed")
    (record,) = caplog.records
    assert record.exc_info
    assert "'harmless'" in caplog.text


@pytest.mark.usefixtures("_known")
def test_status_output_and_store_do_not_show_a_secret(capsys):
    assert one_ascii_line(f"x {CANARY}") == "x <credential:token>"
    terminal.complain(ConfigurationError(Problem("a", CANARY, CANARY)))
    terminal.print_json({"a": CANARY})
    assert terminal.safe(CANARY) == "<credential:token>"
    assert terminal.safe_lines(f"a\n{CANARY}") == "a\n<credential:token>"
    columns = attempt_columns(attempt_of(ValueError(CANARY), 0))
    assert "c4n" not in repr(columns) + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("amqp://u:p%40ssw%2Frd@h/", ["p%40ssw%2Frd", "p@ssw/rd"]),
        ("amqp://u:fedora@h/", ["amqp://u:fedora@h/"]),
        ("amqp://guest:guest@h/", []),
        ("amqp://[:/", []),
    ],
)
def test_a_password_of_the_url_is_a_secret_although_it_is_no_credential(tmp_path, url, hidden):
    path = tmp_path / "x.toml"
    path.write_text(f'amqp_url = "{url}"\nunknown = 1')
    with pytest.raises(ConfigurationError):
        config.load(path)
    for form in hidden:
        assert "<the password of amqp_url>" in redact(form)
        assert url.split(":")[2].partition("@")[0] not in redact(form)
    assert redact("guest") == "guest"


def test_settings_do_not_show_values_that_may_be_secret():
    settings = Settings.model_validate(
        {
            "amqp_url": f"amqp://{CANARY}",
            "queues": {},
            "bindings": [],
            "client_properties": {"a": CANARY},
            "consumer_config": {"a": CANARY},
            "log_config": {"a": CANARY},
        }
    )
    for text in (repr(settings), str(settings), f"{settings}"):
        assert "c4n" not in text
