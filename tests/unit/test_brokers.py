# SPDX-License-Identifier: GPL-2.0-or-later
"""The URLs of the brokers of an instance."""

import pytest
from fedora_messaging.config import DEFAULTS

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.settings import parse
from consumer_framework.settings.brokers import addresses
from consumer_framework.settings.credentials import references

LOGIN = "amqps://user:p%40ss@one:1/%2Fpubsub"


@pytest.mark.parametrize(
    ("url", "brokers", "expected"),
    [
        ("amqp://", [], ["localhost:5672"]),
        ("amqps://one", ["two", "three:3"], ["one:5671", "two:5671", "three:3"]),
        ("amqp://one:1", ["two", "amqp://three"], ["one:1", "two:1", "three:5672"]),
        ("amqp://one", ["one:5672", "two", "two"], ["one:5672", "two:5672"]),
        (
            "amqp://[fd00::1]:1",
            ["fd00::2", "[fd00::3]:3"],
            ["[fd00::1]:1", "[fd00::2]:1", "[fd00::3]:3"],
        ),
    ],
)
def test_the_broker_of_the_url_is_first_and_each_is_there_once(url, brokers, expected):
    assert [str(address) for address in addresses(url, brokers)] == expected


def parsed(brokers, url=LOGIN):
    config = {"framework": {"brokers": brokers}}
    document = {**DEFAULTS, "log_config": None, "monitoring": None, "consumer_config": config}
    return parse({**document, "amqp_url": url}, default_bindings=True)


def test_a_url_may_repeat_the_login_of_amqp_url():
    settings = parsed(["amqps://two", "amqps://user:p%40ss@three/%2Fpubsub", "four:4"])
    assert [address.name for address in settings.brokers] == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("broker", "says"),
    [
        ("", r"brokers\[0\].*HOST:PORT"),
        ("two:x", r"brokers\[0\].*HOST:PORT"),
        ("two:0", r"brokers\[0\].*HOST:PORT"),
        ("http://two", r"brokers\[0\].*HOST:PORT"),
        ("[fd00::1", r"brokers\[0\].*HOST:PORT"),
        ("amqp://two", r"brokers\[0\].*amqp:// where amqp_url is amqps://"),
        ("amqps://user:secret@two", r"brokers\[0\].*another user, password or virtual host"),
        ("amqps://two/other", r"brokers\[0\].*another user, password or virtual host"),
    ],
)
def test_a_broker_that_contradicts_amqp_url_is_refused_and_not_shown(broker, says):
    with pytest.raises(ConfigurationError, match=says) as refused:
        parsed([broker])
    assert "secret" not in str(refused.value)


def test_an_invalid_amqp_url_is_reported_by_another_check():
    assert parsed(["two"], "amqp://[one").framework.brokers == ("two",)


def test_the_password_of_a_broker_may_be_a_credential():
    brokers = ["amqps://user:credential:password@two"]
    document = {"consumer_config": {"framework": {"brokers": brokers}}}
    assert [reference.name for reference in references(document)] == ["password"]
