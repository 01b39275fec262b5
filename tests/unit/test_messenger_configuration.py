# SPDX-License-Identifier: GPL-2.0-or-later
"""A messenger is made from the configuration of fedora-messaging."""

import copy

import pytest
from fedora_messaging.config import DEFAULTS

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.secrets import redact
from consumer_framework.publishing.messengers import configured, endpoints_of
from consumer_framework.publishing.messengers.amqp import Amqp
from consumer_framework.publishing.messengers.dummy import Dummy
from consumer_framework.settings import OutboxSettings


def document(url=None, brokers=(), **values):
    made = {**copy.deepcopy(DEFAULTS), **values}
    if url is not None:
        made["amqp_url"] = url
    made["consumer_config"] = {"framework": {"brokers": list(brokers)}}
    return made


def test_the_endpoints_are_the_brokers_of_amqp_url_and_brokers_with_one_login():
    given = document("amqps://me:pass%2Fword@one/%2Fvhost?heartbeat=5", ["two:1234", "fe80::1"])
    assert endpoints_of(given, OutboxSettings()).urls == (
        "amqps://me:pass%2Fword@one:5671/%2Fvhost?heartbeat=5",
        "amqps://me:pass%2Fword@two:1234/%2Fvhost?heartbeat=5",
        "amqps://me:pass%2Fword@[fe80::1]:5671/%2Fvhost?heartbeat=5",
    )


def test_without_a_configuration_the_endpoint_is_the_broker_of_this_machine():
    [url] = endpoints_of(document(), OutboxSettings()).urls
    assert url.startswith("amqp://localhost:5672?")
    Amqp(endpoints_of(document(), OutboxSettings()))


def test_the_endpoints_of_the_outbox_come_instead_of_amqp_url():
    settings = OutboxSettings(endpoints=("amqp://a", "amqp://b"))
    assert endpoints_of(document("amqp://c"), settings).urls == ("amqp://a", "amqp://b")


def test_certificates_client_properties_and_the_timeout_are_taken_over():
    tls = {"ca_cert": "/ca", "certfile": "/cert", "keyfile": "/key"}
    found = endpoints_of(
        document(tls=tls, client_properties={"app": "me"}), OutboxSettings(lease=20)
    )
    assert (found.ca_cert, found.certfile, found.keyfile) == ("/ca", "/cert", "/key")
    assert found.client_properties == {"app": "me"}
    assert found.timeout == OutboxSettings(lease=20).endpoint_timeout < 20


@pytest.mark.parametrize("where", ["amqp_url", "endpoints"])
def test_the_password_of_an_endpoint_is_hidden_from_logs(where):
    url = f"amqp://me:p%40ss{where}@host"
    if where == "amqp_url":
        endpoints_of(document(url), OutboxSettings())
    else:
        endpoints_of(document(), OutboxSettings(endpoints=(url,)))
    assert where not in redact(f"cannot log in with p@ss{where} or p%40ss{where}")


def test_an_amqp_url_that_cannot_be_understood_is_refused_without_its_text():
    with pytest.raises(ConfigurationError, match="amqp_url: cannot be understood") as caught:
        endpoints_of(document("amqp://me:secret@host:port"), OutboxSettings())
    assert "secret" not in str(caught.value)


def test_the_messenger_fedora_gets_the_one_url_that_fedora_messaging_connects_to():
    found = endpoints_of(document("amqp://a", ["b"]), OutboxSettings(messenger="fedora"))
    assert found.urls == ("amqp://a",)


def test_a_messenger_is_made_by_its_name_with_its_options():
    assert isinstance(configured(document(), OutboxSettings()), Amqp)
    made = configured(document(), OutboxSettings(messenger="dummy", options={}))
    assert isinstance(made, Dummy)


def test_options_that_a_messenger_does_not_take_are_refused():
    settings = OutboxSettings(messenger="amqp", options={"colour": "red"})
    with pytest.raises(ConfigurationError, match=r"framework\.outbox\.options.*colour"):
        configured(document(), settings)


def test_a_messenger_that_is_not_there_is_refused_with_the_names_of_the_others():
    names = "amqp, dummy, fedmsg, fedora, kombu, proton, stomp"
    with pytest.raises(ConfigurationError, match=f'no messenger "smoke"; use one of {names}$'):
        configured(document(), OutboxSettings(messenger="smoke"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"messenger": "stmop"}, 'there is no messenger "stmop"; did you mean "stomp"?'),
        ({"messenger": "pigeon"}, 'there is no messenger "pigeon"; use one of amqp, '),
        (
            {"messenger": "stomp", "options": {"destnation": "/topic/{topic}"}},
            'options.destnation: unknown key; did you mean "destination"?',
        ),
        ({"options": {"wings": 2}}, "options.wings: unknown key; remove it"),
        ({"messenger": "stomp"}, "its scheme is not stomp or stomps"),
        ({"messenger": "kombu"}, "without the parameters of pika"),
    ],
)
def test_a_wrong_name_option_or_url_is_refused_with_a_cure(settings, told):
    with pytest.raises(ConfigurationError) as caught:
        configured(document(), OutboxSettings(**settings))
    assert told in str(caught.value)
