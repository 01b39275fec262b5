# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS files that are read again; what a broker makes of them is tested with one."""

from pathlib import Path

import pika
import pytest
from fedora_messaging import config

from consumer_framework.adapters import certificates
from consumer_framework.adapters.amqp.connection import TlsOptions
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.settings import Tls
from consumer_framework.testing.broker.tls import Authority


@pytest.fixture
def tls():
    """The table of fedora-messaging's configuration."""
    before = dict(config.conf.items())
    config.conf.update({"amqp_url": "amqps://localhost", "tls": dict.fromkeys(Tls.model_fields)})
    yield config.conf["tls"]
    config.conf.clear()
    config.conf.update(before)


@pytest.fixture
def pair(tls, tmp_path):
    authority = Authority(tmp_path)
    issued = authority.issue("client")
    tls["ca_cert"] = str(authority.certificate)
    tls["certfile"], tls["keyfile"] = str(issued.certificate), str(issued.key)
    return issued


@pytest.fixture
def parameters():
    return pika.URLParameters("amqps://localhost")


def test_other_files_are_for_the_next_connection(tls, pair, parameters):
    options = TlsOptions(parameters)
    use = options.prepare()
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)
    use()
    assert isinstance(parameters.credentials, pika.credentials.ExternalCredentials)
    tls["certfile"] = tls["keyfile"] = None
    options.for_host("localhost")
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)


def test_a_ca_file_that_was_replaced_is_used_at_the_next_connection(tls, pair, parameters):
    options = TlsOptions(parameters)
    first = options.for_host("one")
    assert options.for_host("one") is not first
    Path(tls["ca_cert"]).write_text("half a file")
    with pytest.raises(Exception, match=r"certificate|PEM"):
        options.for_host("never connected to")


def test_files_that_are_being_replaced_leave_those_of_before_in_use(tls, pair, parameters, caplog):
    options = TlsOptions(parameters)
    before = options.for_host("one")
    pair.key.write_text("half a key")
    assert options.for_host("one") is before
    assert "the files of [tls] cannot be used; those of before still are" in caplog.text


@pytest.mark.parametrize("text", ["no key", None], ids=["no PEM", "gone"])
def test_files_that_cannot_be_used_are_refused_and_nothing_changes(tls, pair, parameters, text):
    if text is None:
        pair.key.unlink()
    else:
        pair.key.write_text(text)
    options = TlsOptions(parameters)
    with pytest.raises(ConfigurationError) as refused:
        options.prepare()
    assert refused.value.problems[0].path == "tls"
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)


def test_a_file_is_another_one_by_its_contents(tls, pair):
    def look():
        return certificates.digests(Tls(certfile=tls["certfile"], keyfile=tls["keyfile"]))

    before = look()
    assert look() == before
    assert before["ca_cert"] == ""
    pair.certificate.write_text("another")
    after = look()
    assert after["certfile"] != before["certfile"]
    assert after["keyfile"] == before["keyfile"]
    pair.certificate.unlink()
    assert look()["certfile"] == ""
