# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples work; newcomers read and run them first."""

import asyncio
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

import pytest
from fedora_messaging import config
from fedora_messaging.message import Message, get_message

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.topics import matches
from consumer_framework.settings import parse_consumer_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAMPLE_TOML = EXAMPLES / "sample.toml"

demo = runpy.run_path(str(EXAMPLES / "demo" / "messages.py"))
functions = runpy.run_path(str(EXAMPLES / "functions.py"))
Sample = runpy.run_path(str(EXAMPLES / "sample.py"))["Sample"]


@pytest.fixture(autouse=True)
def _default_configuration():
    # Messages read it when they are made; the file of this host must not affect a test.
    with mock.patch.dict(config.conf, config.DEFAULTS):
        yield


@pytest.fixture
def messages():
    return list(demo["stream"](demo["ONE_ROUND"]))


@pytest.fixture
def make_sample():
    def make(**settings):
        sample = Sample(Sample.Config(**settings))
        sample.setup()
        return sample

    return make


def over_the_wire(message: Message) -> Message:
    return get_message(message._encoded_routing_key, message._properties, message._encoded_body)


def test_the_demo_publishes_many_message_classes_of_four_applications(messages):
    assert len({type(message) for message in messages}) >= 8
    assert {message.app_name for message in messages} == {"anitya", "bodhi", "Koji", "Pagure"}


def test_every_demo_message_is_valid_and_of_a_schema_that_is_not_deprecated(messages):
    for message in messages:
        message.validate()
        assert not message.deprecated


def test_every_demo_message_arrives_as_it_was_published(messages):
    for message in messages:
        arrived = over_the_wire(message)
        assert type(arrived) is type(message)
        assert arrived == message
        assert arrived.id == message.id


def test_every_demo_message_has_the_texts_that_its_class_shows_to_people(messages):
    for message in messages:
        assert message.summary
        assert message.summary != message.topic
        assert str(message)
        assert message.url is None or message.url.startswith("https://")


def test_demo_messages_have_ids_of_their_own_even_when_the_story_starts_again():
    count = 2 * demo["ONE_ROUND"]
    assert len({message.id for message in demo["stream"](count)}) == count


def test_the_demo_names_the_schema_that_is_not_installed():
    with pytest.raises(demo["SchemaMissingError"], match=r"no\.such\.schema"):
        demo["build"]("no.such.schema", {})


def test_the_sample_prints_a_line_for_each_message_and_counts_it(messages, make_sample, capsys):
    sample = make_sample()
    for message in messages:
        sample.handle(over_the_wire(message))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line == f"{message.app_name:>7}: {message.summary}"
    assert sample.apps == {"anitya": 3, "Pagure": 12, "Koji": 9, "bodhi": 18}


def test_the_sample_prints_its_digest_at_the_end(messages, make_sample, capsys):
    sample = make_sample()
    for message in messages:
        sample.handle(message)
    capsys.readouterr()
    sample.teardown()
    first, *packages = capsys.readouterr().out.splitlines()
    assert first.startswith("42 messages")
    assert {line.split()[1] for line in packages} == {
        "lanternfish",
        "python-sundial",
        "rust-pebble",
    }


def test_the_sample_writes_its_digest_where_the_configuration_says(messages, make_sample, tmp_path):
    path = tmp_path / "digest.json"
    sample = make_sample(digest=path)
    sample.handle(messages[0])
    sample.teardown()
    assert json.loads(path.read_text()) == {
        "apps": {"anitya": 1},
        "packages": {"lanternfish": 1},
    }


def test_the_sample_skips_messages_about_packages_that_are_not_watched(
    messages, make_sample, capsys
):
    sample = make_sample(packages=["python-*"])
    for message in messages:
        sample.handle(message)
    assert set(sample.packages) == {"python-sundial"}
    assert len(capsys.readouterr().out.splitlines()) == sample.apps.total()


def test_the_sample_prints_the_fields_that_its_line_names(messages, make_sample, capsys):
    comment = next(message for message in messages if message.topic.endswith("update.comment"))
    make_sample(line="{message.packages} {message.usernames} {message.url}").handle(comment)
    assert capsys.readouterr().out == f"['lanternfish'] ['hazel', 'rowan'] {comment.url}\n"


def test_the_sample_handles_a_message_whose_schema_is_not_installed(make_sample, capsys):
    make_sample().handle(Message(topic="org.fedoraproject.prod.new.thing", body={"a": 1}))
    assert capsys.readouterr().out == "   None: org.fedoraproject.prod.new.thing\n"


def test_a_line_with_an_unknown_field_stops_the_sample_at_its_start():
    sample = Sample(Sample.Config(line="{message.sumary}"))
    with pytest.raises(AttributeError, match="sumary"):
        sample.setup()


def test_a_misspelt_setting_of_the_sample_is_refused():
    with pytest.raises(ConfigurationError, match="pakages"):
        parse_consumer_config(Sample.Config, {"pakages": ["kernel"]})


def test_fedora_messaging_accepts_the_configuration_of_the_sample():
    conf = config.LazyConfig().load_config(str(SAMPLE_TOML))
    assert set(conf["queues"]) == {"sample"}
    assert set(conf["qos"]) == {"prefetch_size", "prefetch_count"}


def test_the_configuration_of_the_sample_shows_the_defaults_of_every_setting():
    shown = tomllib.loads(SAMPLE_TOML.read_text().replace("# digest = ", "digest = "))
    settings = shown["consumer_config"]
    assert set(settings) == set(Sample.Config.model_fields)
    del settings["digest"]
    assert parse_consumer_config(Sample.Config, settings) == Sample.Config()


def test_the_bindings_of_the_sample_cover_every_demo_message(messages):
    keys = tomllib.loads(SAMPLE_TOML.read_text())["bindings"][0]["routing_keys"]
    for message in messages:
        assert any(matches(key, message.topic) for key in keys)


def test_the_function_and_the_coroutine_function_print_summaries(messages, capsys):
    functions["show"](messages[0])
    asyncio.run(functions["show_later"](messages[0]))
    assert capsys.readouterr().out.splitlines() == [messages[0].summary] * 2


@pytest.mark.parametrize(
    ("settings", "numbers"), [({}, ["1.", "2."]), ({"start": 7}, ["7.", "8."])]
)
def test_the_class_reads_its_settings_from_the_configuration(messages, capsys, settings, numbers):
    with mock.patch.dict(config.conf, {"consumer_config": settings}):
        callback = functions["Numbered"]()
    for message in messages[:2]:
        callback(message)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == numbers


def test_without_rabbitmq_the_demo_replays_its_messages_and_says_so():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo" / "run.py", "--count", "6"],
        # Erlang is not found there.
        env={**os.environ, "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "there is no private RabbitMQ: " in done.stdout
    assert "6 messages: 6 succeeded" in done.stdout
    assert re.search(r"\nall +6 +6\n", done.stdout)
