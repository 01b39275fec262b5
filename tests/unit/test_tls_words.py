# SPDX-License-Identifier: GPL-2.0-or-later
"""Why there is no TLS connection, in words."""

from __future__ import annotations

import ssl

import pytest
from OpenSSL import SSL
from pika.exceptions import IncompatibleProtocolError

from consumer_framework.adapters.amqp import faults


def openssl(reason: str) -> SSL.Error:
    return SSL.Error([("SSL routines", "", "first"), ("SSL routines", "", reason)])


def of_python(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "text")
    error.reason = reason
    return error


def of_pika(text: str) -> IncompatibleProtocolError:
    return IncompatibleProtocolError(f'StreamLostError: ("Stream connection lost: {text}",)')


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (openssl("certificate verify failed"), "tls.ca_cert does not vouch"),
        (openssl("tls alert certificate expired"), "tls.certfile: it has ended"),
        (openssl("sslv3 alert certificate expired"), "tls.certfile: it has ended"),
        (of_python("TLSV1_ALERT_UNKNOWN_CA"), "does not know who issued it"),
        (of_python("WRONG_VERSION_NUMBER"), "the port does not speak TLS"),
        (
            of_pika("SSLError(1, '[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 (_ssl.c:25)')"),
            "demands a client certificate",
        ),
        (of_pika("SSLEOFError(8, 'EOF occurred in violation of protocol')"), "without a word"),
        (openssl("unexpected eof while reading"), "without a word"),
    ],
)
def test_what_openssl_says_is_said_in_the_words_of_the_file(error, words):
    assert words in faults.tls_words(error)
    assert words in faults.one_line(error)
    assert faults.is_known(error)


@pytest.mark.parametrize(
    "error",
    [openssl("something new"), SSL.Error(), of_python("NEW"), ValueError("x"), None, of_pika("x")],
)
def test_what_is_unknown_is_left_to_others(error):
    assert faults.tls_words(error) == ""
