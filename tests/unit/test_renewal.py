# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS files that are read again; what a broker makes of them is tested with one."""

import pika
import pytest
from fedora_messaging import config

from consumer_framework.adapters import certificates
from consumer_framework.adapters.amqp.renewal import TlsOptions
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.settings import Tls
from consumer_framework.testing.broker_tls import Authority


class Options:
    """Upstream's, in the place of which others may come."""

    def clientConnectionForTLS(self, protocol):  # noqa: N802 -- Twisted's name
        return f"the first for {protocol}"


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


def test_other_files_are_for_the_next_connection_once_they_are_used(tls, pair):
    parameters = pika.URLParameters("amqps://localhost")
    options = TlsOptions(Options())
    use = options.prepare(parameters)
    assert options.clientConnectionForTLS("x") == "the first for x"
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)
    use()
    assert isinstance(parameters.credentials, pika.credentials.ExternalCredentials)
    tls["certfile"] = tls["keyfile"] = None
    options.prepare(parameters)()
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)


@pytest.mark.parametrize("text", ["no key", None], ids=["no PEM", "gone"])
def test_files_that_cannot_be_used_are_refused_and_nothing_changes(tls, pair, text):
    if text is None:
        pair.key.unlink()
    else:
        pair.key.write_text(text)
    parameters = pika.URLParameters("amqps://localhost")
    options = TlsOptions(Options())
    with pytest.raises(ConfigurationError) as refused:
        options.prepare(parameters)
    assert refused.value.problems[0].path == "tls"
    assert options.clientConnectionForTLS("x") == "the first for x"
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
