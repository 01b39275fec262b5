# SPDX-License-Identifier: GPL-2.0-or-later
"""PDC's settings, as they are written there, describe a way to send."""

import socket
import ssl
import tomllib
from typing import Any

import pytest

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.secrets import redact
from consumer_framework.publishing.integrations import pdc
from consumer_framework.publishing.integrations.message_bus import BACKEND, read

# The dictionaries of PDC's documentation.
DUMMY = {"MLP": ""}
FEDMSG = {"MLP": "fedmsg"}
KOMBU: dict[str, Any] = {
    "MLP": "kombu",
    "URL": "amqp://guest:guest@example.com:5672//",
    "EXCHANGE": {"name": "pdc", "type": "topic", "durable": False},
    "OPTIONS": {
        # Set these two items to config `kombu` to use ssl.
        "login_method": "EXTERNAL",
        "ssl": {
            "ca_certs": "",
            "keyfile": "",
            "certfile": "",
            "cert_reqs": 2,  # ssl.CERT_REQUIRED,
        },
    },
}
PROTON = {
    "MLP": "proton",
    "URL": "amqps://example.com:5671/com.redhat.pdc",
    "CERT_FILE": "",
    "KEY_FILE": "",
}
STOMP = {
    "MLP": "stomp",
    "HOST_AND_PORTS": [
        ("stomp.example1.com", 61613),
        ("stomp.example2.com", 61613),
        ("stomp.example3.com", 61613),
    ],
    "TOPIC": "pdc",
    "CERT_FILE": "",
    "KEY_FILE": "",
}


@pytest.fixture(autouse=True)
def fedmsg_d(tmp_path, monkeypatch):
    """Return the directory with the configuration of fedmsg."""
    place = tmp_path / "fedmsg.d"
    place.mkdir()
    monkeypatch.setenv("FEDMSG_CONFIG", str(place))
    return place


def refused(bus):
    with pytest.raises(ConfigurationError) as raised:
        read(bus, "pdc")
    return str(raised.value)


@pytest.mark.parametrize("bus", [DUMMY, {}, {"MLP": None}])
def test_without_a_name_nothing_is_sent(bus):
    found = read(bus, "pdc")
    assert (found.messenger, found.endpoints.urls) == ("dummy", ())


def test_kombu_keeps_topic_exchange_and_options():
    found = read(KOMBU, "pdc")
    assert found.messenger == "kombu"
    assert found.endpoints.urls == ("amqp://guest:guest@example.com:5672//",)
    assert found.exchange == "pdc"
    assert found.address(".compose") == ".compose"
    # The texts "" of the example are places for paths.
    assert found.options == {"login_method": "EXTERNAL", "ssl": {"cert_reqs": ssl.CERT_REQUIRED}}
    assert KOMBU["OPTIONS"]["ssl"]["ca_certs"] == ""


def test_kombu_takes_several_brokers():
    for urls in ["amqp://one//;amqp://two//", ["amqp://one//", "amqp://two//"]]:
        found = read({"MLP": "kombu", "URL": urls}, "pdc")
        assert found.endpoints.urls == ("amqp://one//", "amqp://two//")
        assert found.exchange == ""


def test_proton_puts_the_path_of_the_url_before_the_topic():
    found = read(PROTON, "pdc")
    assert found.messenger == "proton"
    assert found.endpoints.urls == ("amqps://example.com:5671",)
    assert found.endpoints.certfile is None
    assert found.address(".compose") == "com.redhat.pdc.compose"
    several = {**PROTON, "URL": ["amqps://one/topic://pdc", "amqps://two/topic://pdc"]}
    assert read(several, "pdc").address(".compose") == "topic://pdc.compose"
    several["URL"] = ["amqps://one/pdc", "amqps://two/other"]
    assert "MESSAGE_BUS.URL" in refused(several)
    assert read({**PROTON, "URL": "amqps://one"}, "pdc").address(".a") == ".a"


def test_stomp_puts_its_topic_before_the_topic():
    found = read(STOMP, "pdc")
    assert found.messenger == "stomp"
    assert found.endpoints.urls == tuple(f"stomp://stomp.example{n}.com:61613" for n in (1, 2, 3))
    assert found.options == {"destination": "/topic/{topic}"}
    assert found.address(".compose") == "pdc.compose"


def test_stomp_with_a_certificate_uses_tls():
    found = read({**STOMP, "CERT_FILE": "c", "KEY_FILE": "k", "CA_FILE": "a"}, "pdc")
    assert {url.partition(":")[0] for url in found.endpoints.urls} == {"stomps"}
    endpoints = found.endpoints
    assert (endpoints.ca_cert, endpoints.certfile, endpoints.keyfile) == ("a", "c", "k")
    plain = read({**STOMP, "CERT_FILE": "c", "USE_SSL": False}, "pdc")
    assert plain.endpoints.urls[0].startswith("stomp://")
    tls = {**STOMP, "USE_SSL": True, "HOST_AND_PORTS": [["::1", "61614"]]}
    assert read(tls, "pdc").endpoints.urls == ("stomps://[::1]:61614",)


def test_a_password_is_part_of_the_url_and_hidden():
    bus = {**STOMP, "USER": "m/e", "PASSWORD": "s:cret-word/9"}
    assert read(bus, "pdc").endpoints.urls[0].startswith("stomp://m%2Fe:s%3Acret-word%2F9@stomp.")
    assert "cret-word" not in redact("it is s:cret-word/9, or s%3Acret-word%2F9")


@pytest.mark.parametrize(
    ("bus", "told"),
    [
        ({"MLP": "komboo"}, ["MESSAGE_BUS.MLP", '"komboo"', 'did you mean "kombu"?']),
        ({"MLP": "qqq"}, ['use one of "", "amqp"', '"stomp"']),
        ({"MLP": 1}, ["MESSAGE_BUS.MLP", "no text"]),
        ({**STOMP, "HOST_AND_PORT": []}, ["HOST_AND_PORT", 'did you mean "HOST_AND_PORTS"?']),
        ({"MLP": "stomp"}, ["HOST_AND_PORTS", "61613"]),
        ({**STOMP, "HOST_AND_PORTS": ["one"]}, ["HOST_AND_PORTS"]),
        ({**STOMP, "HOST_AND_PORTS": [("one", "x")]}, ["HOST_AND_PORTS"]),
        ({**STOMP, "USE_SSL": "no"}, ["USE_SSL", "True or False"]),
        ({"MLP": "kombu"}, ["MESSAGE_BUS.URL"]),
        ({"MLP": "kombu", "URL": ["amqp://a", 1]}, ["MESSAGE_BUS.URL"]),
        ({**KOMBU, "EXCHANGE": "pdc"}, ["MESSAGE_BUS.EXCHANGE", "no dictionary"]),
        ({**KOMBU, "EXCHANGE": {"name": 1}}, ["EXCHANGE.name"]),
        ({"MLP": "proton"}, ["MESSAGE_BUS.URL", "amqps://HOST:5671/ADDRESS"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_the_cure(bus, told):
    text = refused(bus)
    assert all(word in text for word in told), text


def test_all_problems_are_told_at_once():
    text = refused({"MLP": "stomp", "HOST": 1, "TOPIC": 2})
    assert all(key in text for key in ("HOST", "TOPIC", "HOST_AND_PORTS"))


def test_a_class_of_pdc_itself_is_a_messenger_of_ours_and_others_are_imported():
    path = "pdc.apps.messaging.backends.{}"
    for cls, name in [("dummy.DummyMessenger", "dummy"), ("capture.TestMessenger", "capture")]:
        assert read({"BACKEND": path.format(cls), "MLP": "stomp"}, "pdc").messenger == name
    found = read({**STOMP, "BACKEND": path.format("stomp.StompMessenger")}, "pdc")
    assert found.messenger == "stomp"
    other = read({"BACKEND": "my.messengers.StompMessenger"}, "pdc")
    assert (other.messenger, other.options) == (
        BACKEND,
        {"backend": "my.messengers.StompMessenger"},
    )
    assert other.address(".compose") == ".compose"


def test_a_messenger_by_entry_point_gets_urls_options_and_exchange():
    bus = {"MLP": "amqp", "URL": "amqp://a", "EXCHANGE": {"name": "x"}, "TOPIC": "pdc"}
    found = read({**bus, "OPTIONS": {"some": 1}, "CERT_FILE": "c"}, "pdc")
    assert (found.messenger, found.endpoints.urls) == ("amqp", ("amqp://a",))
    assert (found.exchange, found.options, found.endpoints.certfile) == ("x", {"some": 1}, "c")
    assert found.address(".compose") == "pdc.compose"
    assert read({"MLP": "fedora"}, "pdc").endpoints.urls == ()


# fedmsg


HOST = socket.gethostname().split(".", 1)[0]


def test_fedmsg_is_configured_where_fedmsg_is(fedmsg_d):
    (fedmsg_d / "a.py").write_text(
        "import os\nconfig = dict(topic_prefix='org.fedoraproject', environment='prod',\n"
        f"    endpoints={{'pdc.{HOST}': ['tcp://127.0.0.1:3000', 'tcp://127.0.0.1:3001']}},\n"
        f"    sign_messages=True, certnames={{'pdc.{HOST}': 'pdc-{HOST}'}})\n"
    )
    (fedmsg_d / "b.py").write_text("config = {'endpoints': {'other': 'tcp://127.0.0.1:4000'}}")
    (fedmsg_d / "not_read.txt").write_text("!")
    found = read(FEDMSG, "pdc")
    assert found.endpoints.urls == ("tcp://127.0.0.1:3000", "tcp://127.0.0.1:3001")
    assert found.endpoints.certfile == f"/etc/pki/fedmsg/pdc-{HOST}.crt"
    assert found.endpoints.keyfile == f"/etc/pki/fedmsg/pdc-{HOST}.key"
    assert found.options == {"sign_messages": True}
    assert found.address(".compose") == "org.fedoraproject.prod.pdc.compose"
    assert found.address("compose.") == "org.fedoraproject.prod.pdc.compose"


def test_fedmsg_that_is_active_connects_to_its_relay(fedmsg_d, monkeypatch):
    one = fedmsg_d / "one.py"
    one.write_text(
        "config = {'active': True, 'relay_inbound': 'tcp://hub:2003', 'sign_messages': True,\n"
        f"    'ssldir': '/pki', 'certnames': {{'shell.{HOST}': 'shell', 'x.{HOST}': 'x'}}}}"
    )
    monkeypatch.setenv("FEDMSG_CONFIG", str(one))
    found = read(FEDMSG, "pdc")
    assert found.endpoints.urls == ("tcp://hub:2003",)
    assert found.options == {"sign_messages": True, "active": True}
    assert found.endpoints.certfile == "/pki/shell.crt"
    assert found.address(".compose") == "com.example.dev.pdc.compose"
    one.write_text(one.read_text() + "; config['cert_prefix'] = 'x'")
    assert read(FEDMSG, "pdc").endpoints.keyfile == "/pki/x.key"


def test_keys_of_the_dictionary_come_before_those_of_fedmsg():
    bus = {**FEDMSG, "URL": "tcp://*:3000", "TOPIC": "org.fedoraproject.stg.pdc"}
    found = read({**bus, "CERT_FILE": "c", "KEY_FILE": "k"}, "other")
    assert found.address(".compose") == "org.fedoraproject.stg.pdc.compose"
    assert found.options == {"sign_messages": True}
    assert read(bus, "other").options == {"sign_messages": False}


def test_fedmsg_without_a_place_is_refused_with_the_cure(fedmsg_d):
    assert f'endpoints["pdc.{HOST}"]' in refused(FEDMSG)
    (fedmsg_d / "a.py").write_text("config = {'sign_messages': True}")
    assert f'certnames["pdc.{HOST}"]' in refused(FEDMSG)
    (fedmsg_d / "a.py").write_text("config = 1 / 0")
    assert "ZeroDivisionError" in refused(FEDMSG)
    (fedmsg_d / "a.py").write_text("konfig = {}")
    assert 'sets "config"' in refused(FEDMSG)


# The configuration of a relay


def test_a_relay_gets_the_same_settings_as_a_file(fedmsg_d):
    bus = {**KOMBU, "CERT_FILE": "/c.pem", "CA_FILE": '/"ä"'}
    bus["OPTIONS"] = {**bus["OPTIONS"], "ssl": {"cert_reqs": ssl.CERT_REQUIRED}, "x": [1.5, True]}
    found = tomllib.loads(pdc.configuration(bus, "postgresql:///pdc"))
    assert found == {
        "tls": {"ca_cert": '/"ä"', "certfile": "/c.pem"},
        "consumer_config": {
            "framework": {
                "outbox": {
                    "database": "postgresql:///pdc",
                    "messenger": "kombu",
                    "endpoints": ["amqp://guest:guest@example.com:5672//"],
                    "options": {
                        "login_method": "EXTERNAL",
                        "ssl": {"cert_reqs": 2},
                        "x": [1.5, True],
                    },
                }
            }
        },
    }
    assert tomllib.loads(pdc.configuration(DUMMY, "sqlite:////x"))["consumer_config"]
    with pytest.raises(ConfigurationError, match="cannot be written to a file"):
        pdc.configuration({**KOMBU, "OPTIONS": {"x": object()}}, "sqlite:////x")


def test_the_file_of_a_relay_is_written_for_a_module_of_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bus_settings.py").write_text(f"MESSAGE_BUS = {STOMP!r}")
    assert pdc._main(["bus_settings", "sqlite:////var/lib/pdc/outbox.sqlite3"]) == 0
    written = tomllib.loads(capsys.readouterr().out)
    assert written["consumer_config"]["framework"]["outbox"]["messenger"] == "stomp"
    assert pdc._main(["no_such_settings", "sqlite:////x"]) == 78
    assert "No module named 'no_such_settings'" in capsys.readouterr().err
    (tmp_path / "wrong_settings.py").write_text("MESSAGE_BUS = {'MLP': 'stmp'}")
    assert pdc._main(["wrong_settings", "sqlite:////x"]) == 78
    assert 'did you mean "stomp"' in capsys.readouterr().err


@pytest.mark.parametrize("given", [None, [], "kombu"])
def test_settings_that_are_no_dictionary_are_refused(given):
    with pytest.raises(ConfigurationError, match="MESSAGE_BUS: is no dictionary, but"):
        read(given, "pdc")
