# SPDX-License-Identifier: GPL-2.0-or-later
"""The words for a refusal of the broker, and for TLS that fails."""

import ssl

import pika.exceptions as pika_errors
import pytest
from fedora_messaging.exceptions import BadDeclaration
from OpenSSL import SSL
from twisted.internet import error as twisted_errors

from consumer_framework.adapters.amqp import faults
from consumer_framework.core.errors import ExitCode, Fault

QUEUE = {"queue": "one", "durable": True}
BINDING = {"queue": "one", "exchange": "amq.topic", "routing_key": "a.#"}


def closed(code, text="TEXT"):
    return pika_errors.ChannelClosedByBroker(code, text)


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (403, "passive_declares = true"),
        (404, "create it on the broker"),
        (405, "stop the other connection"),
        (406, "make its table under [queues] match"),
        (541, "see the broker's log"),
    ],
)
def test_a_refused_queue_is_named_with_what_to_do(code, cure):
    fault = faults.declaration_fault(BadDeclaration("queue", QUEUE, closed(code)))
    assert fault.exit_code == ExitCode.BAD_DECLARATION == 10
    assert str(fault).startswith(f'the broker refuses the queue "one": {code} TEXT; ')
    assert cure in str(fault)


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (403, "the right to bind"),
        (404, "create the exchange"),
        (406, "see the broker's log"),
    ],
)
def test_a_refused_binding_is_named_with_what_to_do(code, cure):
    fault = faults.declaration_fault(BadDeclaration("binding", BINDING, closed(code)))
    assert fault.exit_code == ExitCode.BAD_DECLARATION
    assert str(fault).startswith(
        'the broker refuses the binding of queue "one" to exchange "amq.topic" with "a.#": '
        f"{code} TEXT; "
    )
    assert cure in str(fault)


@pytest.mark.parametrize(
    ("code", "exit_code", "word"),
    [(403, ExitCode.PERMISSION, "right to read"), (404, ExitCode.BAD_DECLARATION, "is gone")],
)
def test_a_refused_consumer_has_upstreams_exit_code(code, exit_code, word):
    fault = faults.consume_fault(closed(code), "one")
    assert isinstance(fault, Fault)
    assert fault.exit_code == exit_code
    assert '"one"' in str(fault)
    assert word in str(fault)


def test_a_deleted_queue_has_upstreams_exit_code():
    fault = faults.canceled_fault("one")
    assert fault.exit_code == ExitCode.CANCELED == 12
    assert '"one"' in str(fault)


@pytest.mark.parametrize("make", [faults.handshake_fault, faults.connection_fault])
def test_a_refused_connection_names_the_broker_and_has_upstreams_exit_code(make):
    error = pika_errors.ProbableAuthenticationError(closed(403))
    fault = make(error, "broker.example.org:5671")
    assert fault.exit_code == ExitCode.CONNECTION == 14
    assert "broker.example.org:5671" in str(fault)
    assert "authentication failed" in str(fault)
    assert "\n" not in str(fault)


@pytest.mark.parametrize("code", [501, 502, 503, 504, 505, 530, 540])
def test_errors_of_this_client_are_permanent(code):
    assert faults.is_permanent(pika_errors.ConnectionClosedByBroker(code, "TEXT"))


@pytest.mark.parametrize("code", [200, 311, 313, 320, 402, 403, 404, 405, 406, 506, 541])
def test_errors_of_the_broker_are_not_permanent(code):
    assert not faults.is_permanent(pika_errors.ConnectionClosedByBroker(code, "TEXT"))


# As RabbitMQ 4.3 writes it: with lines, and cut to 255 bytes.
DEPRECATED = (
    "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nBy default, this feature "
    "is not permitted anymore.\nThe feature will be removed from a future major RabbitMQ version, "
    "regardless of the configuration; actual version to be determined.\nTo..."
)


def test_a_deprecated_feature_that_the_broker_does_not_permit_is_permanent_and_has_a_cure():
    error = pika_errors.ConnectionClosedByBroker(541, DEPRECATED)
    assert faults.is_permanent(error)
    fault = faults.connection_fault(error, "broker:5672")
    assert fault.exit_code == ExitCode.BAD_DECLARATION
    assert "broker:5672 does not permit its deprecated feature transient_nonexcl" in str(fault)
    assert "set durable = true, or exclusive = true, for each of [queues], or let" in str(fault)
    assert str(fault).endswith("deprecated_features.permit.transient_nonexcl_queues = true")
    assert "\n" not in str(fault)


def test_another_deprecated_feature_is_named_with_the_setting_that_permits_it():
    text = "INTERNAL_ERROR - Feature `global_qos` is deprecated.\nIts use is not permitted"
    error = pika_errors.ConnectionClosedByBroker(541, text)
    fault = str(faults.connection_fault(error, "broker"))
    assert fault.endswith(
        "; let its administrators set deprecated_features.permit.global_qos = true"
    )
    assert not faults.is_permanent(pika_errors.ConnectionClosedByBroker(320, text))


@pytest.mark.parametrize("error", [None, ValueError(), pika_errors.AMQPConnectionError(3), "501"])
def test_an_error_without_a_reply_code_is_not_permanent(error):
    assert faults.reply_code(error) == 0
    assert not faults.is_permanent(error)


def test_a_reply_code_that_is_no_number_is_ignored():
    error = ValueError()
    error.reply_code = "501"  # type: ignore[attr-defined]
    assert faults.reply_code(error) == 0


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (TimeoutError("no answer to the handshake"), False),
        (pika_errors.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), False),
        (pika_errors.ConnectionClosedByBroker(541, "INTERNAL_ERROR - vhost is down"), False),
        (pika_errors.ConnectionClosedByBroker(403, "ACCESS_REFUSED"), True),
        (pika_errors.ConnectionClosedByBroker(530, "NOT_ALLOWED"), True),
        (pika_errors.ProbableAuthenticationError(), True),
        (pika_errors.ProbableAccessDeniedError(), True),
        (pika_errors.IncompatibleProtocolError("x"), True),
        (OSError("certificate verify failed"), True),
        (faults.HungUpError("it ended the connection"), False),
    ],
)
def test_a_broker_that_refuses_nothing_is_worth_another_attempt(error, is_refusal):
    assert faults.is_refusal(error) is is_refusal


@pytest.mark.parametrize(("code", "locked"), [(405, True), (406, False), (403, False)])
def test_only_a_locked_queue_is_locked(code, locked):
    assert faults.is_locked(BadDeclaration("queue", QUEUE, closed(code))) is locked


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (closed(404, "NOT_FOUND - no queue 'one'"), "404 NOT_FOUND - no queue 'one'"),
        (pika_errors.AMQPHeartbeatTimeout(), "the broker sent no heartbeat"),
        (pika_errors.ProbableAuthenticationError(), "authentication failed"),
        (pika_errors.ProbableAccessDeniedError(), "access to the vhost was refused"),
        (pika_errors.IncompatibleProtocolError("x"), "it does not speak AMQP 0-9-1"),
        (pika_errors.StreamLostError(), "the broker closed the connection"),
        (twisted_errors.ConnectionDone(), "the broker closed the connection"),
        (twisted_errors.ConnectionLost(), "the connection was cut"),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (twisted_errors.ConnectionRefusedError("Connection refused"), "connection refused"),
        (twisted_errors.NoRouteError("No route to host"), "no route to host"),
        (twisted_errors.TCPTimedOutError(), "the connection attempt timed out"),
        (twisted_errors.TimeoutError(), "the connection attempt timed out"),
        (OSError(101, "Network is unreachable"), "[Errno 101] Network is unreachable"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_are_described_in_one_line(error, words):
    assert faults.one_line(error) == words


# TLS.


def openssl(reason: str) -> SSL.Error:
    return SSL.Error([("SSL routines", "", "first"), ("SSL routines", "", reason)])


def of_python(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "text")
    error.reason = reason
    return error


def of_pika(text: str) -> pika_errors.IncompatibleProtocolError:
    return pika_errors.IncompatibleProtocolError(
        f'StreamLostError: ("Stream connection lost: {text}",)'
    )


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
def test_errors_of_openssl_name_the_settings_of_the_file(error, words):
    assert words in faults.tls_words(error)
    assert words in faults.one_line(error)
    assert faults.is_known(error)


@pytest.mark.parametrize(
    "error",
    [openssl("something new"), SSL.Error(), of_python("NEW"), ValueError("x"), None, of_pika("x")],
)
def test_unknown_errors_get_no_tls_words(error):
    assert faults.tls_words(error) == ""
