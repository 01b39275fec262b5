# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of fedora-messaging and pika that are used here and not public.

Each failure names the part that moved and the module that uses it. The caps on both in
pyproject.toml may be raised once all of this holds.
"""

import inspect
import re
from typing import Any
from unittest import mock

import pika
import pytest
from fedora_messaging import api, config, message, testing
from fedora_messaging import exceptions as fm_exceptions
from fedora_messaging.twisted import monitor
from fedora_messaging.twisted.factory import FedoraMessagingFactoryV2
from fedora_messaging.twisted.protocol import FedoraMessagingProtocolV2
from fedora_messaging.twisted.service import FedoraMessagingServiceV2
from fedora_messaging.twisted.stats import ConsumerStatistics, FactoryStatistics
from pika.adapters.twisted_connection import TwistedChannel, TwistedProtocolConnection
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorException,
    AMQPConnectorStackTimeout,
)
from twisted.internet import defer, error, task
from twisted.internet.protocol import ReconnectingClientFactory
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from consumer_framework.adapters.amqp import frames
from consumer_framework.settings import TRANSIENT_QUEUE, Settings

CONNECTION = "consumer_framework/adapters/amqp/connection.py"
INSPECTION = "consumer_framework/adapters/amqp/inspection.py"
SESSION = "consumer_framework/adapters/amqp/session.py"
CONSUMERS = "consumer_framework/adapters/amqp/consumers.py"
FAULTS = "consumer_framework/adapters/amqp/faults.py"
CHANNELS = "consumer_framework/adapters/amqp/channels.py"
FRAMES = "consumer_framework/adapters/amqp/frames.py"
DECODING = "consumer_framework/adapters/codec/decoding.py"
REGISTRY = "consumer_framework/adapters/codec/registry.py"
VALIDATION = "consumer_framework/schemas/__init__.py"
CONFIG = "consumer_framework/adapters/config.py"
PAGES = "consumer_framework/runtime/observe/pages.py"
INSTANCE = "consumer_framework/runtime/instance.py"
SEAM = "consumer_framework/publishing/upstream.py"


def moved(what, where):
    return f"{what} is not there any more, or is something else now; see its use in {where}"


def parameters_of(function):
    return list(inspect.signature(function).parameters)


@pytest.fixture(autouse=True)
def _default_configuration():
    with mock.patch.dict(config.conf, config.DEFAULTS):
        yield


@pytest.fixture
def protocol():
    return FedoraMessagingProtocolV2(pika.ConnectionParameters())


# fedora_messaging.twisted


@pytest.mark.parametrize("url", ["amqp://h:1/", "amqps://h:1/"])
def test_the_service_has_parameters_and_a_client_that_another_can_replace(url):
    service = FedoraMessagingServiceV2(url)
    assert isinstance(service._parameters, pika.connection.Parameters), moved(
        "FedoraMessagingServiceV2._parameters", CONNECTION
    )
    assert bool(service._parameters.ssl_options) is url.startswith("amqps"), moved(
        "FedoraMessagingServiceV2._parameters.ssl_options", CONNECTION
    )
    client = service._service
    assert list(service) == [client], moved("the one child of FedoraMessagingServiceV2", CONNECTION)


def test_the_service_can_be_made_without_arguments_and_reads_the_configuration():
    with mock.patch.dict(config.conf, {"amqp_url": "amqp://broker:1234/"}):
        service = FedoraMessagingServiceV2()
    assert (service._parameters.host, service._parameters.port) == ("broker", 1234), moved(
        "FedoraMessagingServiceV2() with the URL of the configuration", CONNECTION
    )
    properties = service._parameters.client_properties
    assert properties == config.DEFAULTS["client_properties"], moved(
        "client_properties in FedoraMessagingServiceV2()", CONNECTION
    )


def test_the_monitoring_server_has_the_pages_and_the_words_of_ours():
    # observe/pages.py answers with upstream's JSON.
    source = inspect.getsource(monitor)
    for words in ('b"live"', 'b"ready"', '{"status": "OK"}', '{"consuming": self._fm_service'):
        assert words in source, moved(f"the monitoring server's {words}", PAGES)
    for name in ("stats", "consuming"):
        assert isinstance(inspect.getattr_static(FedoraMessagingServiceV2, name), property), moved(
            f"FedoraMessagingServiceV2.{name}", CONNECTION
        )


# Upstream still calls it.
@pytest.mark.filterwarnings("ignore:twisted.internet.defer.returnValue:DeprecationWarning")
def test_the_factory_has_the_deferred_that_publishers_wait_for():
    factory = FedoraMessagingFactoryV2(pika.ConnectionParameters(), confirms=True)
    assert isinstance(factory._client_deferred, defer.Deferred), moved(
        "FedoraMessagingFactoryV2._client_deferred", CONNECTION
    )
    assert factory._client is None, moved("FedoraMessagingFactoryV2._client", CONNECTION)
    assert isinstance(factory._parameters, pika.connection.Parameters), moved(
        "FedoraMessagingFactoryV2._parameters", CONNECTION
    )
    assert factory.confirms is True, moved("FedoraMessagingFactoryV2.confirms", CONNECTION)
    assert isinstance(factory._stats, FactoryStatistics), moved(
        "FedoraMessagingFactoryV2._stats", CONNECTION
    )
    waiting = factory.when_connected()
    client = mock.Mock(spec=FedoraMessagingProtocolV2, is_closed=False)
    factory._client = client
    factory._client_deferred.callback(client)
    assert waiting.result is client, moved("FedoraMessagingFactoryV2.when_connected", CONNECTION)


def test_the_statistics_have_the_fields_that_are_filled():
    consumed = ConsumerStatistics(received=1, processed=2, dropped=3, rejected=4, failed=5)
    assert FactoryStatistics(6, consumed).as_dict() == {
        "published": 6,
        "consumed": {"received": 1, "processed": 2, "dropped": 3, "rejected": 4, "failed": 5},
    }, moved("fedora_messaging.twisted.stats", CONNECTION)


def test_stopping_the_service_halts_the_client_and_the_factory():
    source = inspect.getsource(FedoraMessagingServiceV2.stopService)
    assert "self.factory.stopTrying()" in source, moved("stopService", SESSION)
    assert "self.factory.stopFactory()" in source, moved("stopService", SESSION)
    assert "self._client.halt()" in inspect.getsource(FedoraMessagingFactoryV2.stopFactory), moved(
        "FedoraMessagingFactoryV2.stopFactory", SESSION
    )


def test_the_protocol_declares_and_allocates_channels():
    for name, parameters in {
        "_allocate_channel": ["self"],
        "declare_queue": ["self", "queue"],
        "bind_queues": ["self", "bindings"],
    }.items():
        method = getattr(FedoraMessagingProtocolV2, name, None)
        assert method is not None, moved(f"FedoraMessagingProtocolV2.{name}", CONSUMERS)
        assert parameters_of(method) == parameters, moved(
            f"FedoraMessagingProtocolV2.{name}'s parameters", CONSUMERS
        )


def test_a_refused_declaration_names_the_refused_object():
    reason = pika.exceptions.ChannelClosedByBroker(404, "NOT_FOUND")
    refused = fm_exceptions.BadDeclaration("queue", {"queue": "one"}, reason)
    assert (refused.obj_type, refused.description, refused.reason) == (
        "queue",
        {"queue": "one"},
        reason,
    ), moved("BadDeclaration.obj_type, .description or .reason", FAULTS)


# twisted


def test_the_reconnecting_factory_keeps_its_state_in_known_places():
    factory = ReconnectingClientFactory()
    assert (factory._callID, factory.continueTrying, factory.retries) == (None, 1, 0), moved(
        "ReconnectingClientFactory._callID, .continueTrying or .retries", CONNECTION
    )
    assert factory.connector is None, moved("ReconnectingClientFactory.connector", CONNECTION)


def test_stopping_the_reconnecting_factory_cancels_the_attempt_that_waits():
    factory = ReconnectingClientFactory()
    clock = task.Clock()
    factory._callID = clock.callLater(1, lambda: None)
    factory.stopTrying()
    assert clock.getDelayedCalls() == [], moved("ReconnectingClientFactory.stopTrying", CONNECTION)
    assert not factory.continueTrying
    factory._callID = clock.callLater(1, lambda: None)
    factory.retries = 5
    factory.resetDelay()
    assert (factory._callID, factory.continueTrying, factory.retries) == (None, 1, 0), moved(
        "ReconnectingClientFactory.resetDelay", CONNECTION
    )


# pika


def test_the_connection_has_an_implementation_with_a_reactor_and_an_error(protocol):
    assert isinstance(protocol, TwistedProtocolConnection)
    assert isinstance(protocol._impl, pika.connection.Connection), moved(
        "TwistedProtocolConnection._impl", CONNECTION
    )
    assert callable(protocol._impl._reactor.callLater), moved(
        "TwistedProtocolConnection._impl._reactor", CONNECTION
    )
    assert protocol._impl._error is None, moved("pika.connection.Connection._error", CONNECTION)


def test_a_blocking_connection_is_made_with_another_implementation():
    assert "_impl_class" in parameters_of(pika.BlockingConnection), moved(
        "BlockingConnection(_impl_class=...)", INSPECTION
    )
    assert parameters_of(pika.SelectConnection._on_data_available) == ["self", "data_in"], moved(
        "SelectConnection._on_data_available", INSPECTION
    )


def test_the_connection_notifies_when_the_broker_blocks_it(protocol):
    for name in ("add_on_connection_blocked_callback", "add_on_connection_unblocked_callback"):
        assert parameters_of(getattr(protocol._impl, name)) == ["callback"], moved(
            f"Connection.{name}", CONNECTION
        )


def test_the_connection_takes_bytes_and_counts_them_and_their_frames(protocol):
    implementation = protocol._impl
    with mock.patch.object(implementation, "data_received") as taken:
        protocol.dataReceived(b"bytes")
    taken.assert_called_once_with(b"bytes")
    # A heartbeat is the shortest frame.
    implementation.data_received(b"\x08\x00\x00\x00\x00\x00\x00\xce")
    assert (implementation.bytes_received, implementation.frames_received) == (8, 1), moved(
        "Connection.bytes_received and .frames_received", CONNECTION
    )


def test_missed_heartbeats_are_counted_by_the_bytes_that_were_received():
    connection = mock.Mock(bytes_received=1)
    checker = pika.heartbeat.HeartbeatChecker(connection, 60)
    checker._update_counters()
    assert not checker._has_received_data, moved("HeartbeatChecker", CONNECTION)
    connection.bytes_received += 1
    assert checker._has_received_data, moved("HeartbeatChecker", CONNECTION)


def test_properties_and_tables_are_decoded_by_pika_where_they_are_odd():
    encoded = b"\x00\x80\x01a"
    properties = pika.BasicProperties().decode(encoded)
    assert properties.message_id == "a", moved("pika.BasicProperties.decode", FRAMES)
    assert pika.data.decode_table(b"\x00\x00\x00\x04\x01at\x01", 0) == ({"a": True}, 8), moved(
        "pika.data.decode_table", FRAMES
    )


def test_empty_properties_have_the_same_dictionary_keys_as_decoded_ones():
    flags = {
        "content_type": pika.BasicProperties.FLAG_CONTENT_TYPE,
        "content_encoding": pika.BasicProperties.FLAG_CONTENT_ENCODING,
        "headers": pika.BasicProperties.FLAG_HEADERS,
        "delivery_mode": pika.BasicProperties.FLAG_DELIVERY_MODE,
        "priority": pika.BasicProperties.FLAG_PRIORITY,
        "message_id": pika.BasicProperties.FLAG_MESSAGE_ID,
        "timestamp": pika.BasicProperties.FLAG_TIMESTAMP,
    }
    assert sum(flags.values()) == frames._KNOWN, moved("BasicProperties.FLAG_...", FRAMES)
    empty = vars(pika.BasicProperties())
    assert flags.keys() <= empty.keys(), moved("pika.BasicProperties.__dict__", FRAMES)
    assert set(empty.values()) == {None}, moved("pika.BasicProperties.__dict__", FRAMES)
    decoded = pika.BasicProperties()
    decoded.decode(b"\x00\x80\x01a")
    assert vars(decoded) == {**empty, "message_id": "a"}, moved(
        "pika.BasicProperties.__dict__", FRAMES
    )


def test_the_connection_tells_of_a_failed_handshake():
    seen = []

    class Watched(FedoraMessagingProtocolV2):
        def _on_connection_failed(self, connection, error=None):
            seen.append(error)
            super()._on_connection_failed(connection, error)

    watched = Watched(pika.ConnectionParameters())
    watched._impl._reactor = task.Clock()
    assert isinstance(watched.ready, defer.Deferred), moved(
        "TwistedProtocolConnection.ready", CONNECTION
    )
    assert watched.closed is None, moved("TwistedProtocolConnection.closed", CONNECTION)
    failures: list[Any] = []
    ready: Any = watched.ready
    ready.addErrback(failures.append)
    transport: Any = StringTransport()
    watched.makeConnection(transport)
    watched.connectionLost(Failure(error.ConnectionLost()))
    assert len(seen) == len(failures) == 1, moved(
        "TwistedProtocolConnection._on_connection_failed", CONNECTION
    )


def test_a_channel_that_closes_cancels_no_consumer_that_counts_as_canceled(protocol):
    channel = pika.channel.Channel(protocol._impl, 1, lambda _: None)
    channel._set_state(channel.OPEN)
    channel._consumers["tag"] = lambda *_: None
    channel._cancelled.add("tag")
    with (
        mock.patch.object(channel, "_rpc") as told,
        mock.patch.object(channel, "basic_cancel") as canceled,
    ):
        channel.close()
    assert not canceled.called, moved("pika.channel.Channel._cancelled", CONSUMERS)
    assert told.called, moved("pika.channel.Channel.close", CONSUMERS)


def test_deliveries_to_a_consumer_that_is_being_canceled_need_not_be_rejected(protocol):
    channel = pika.channel.Channel(protocol._impl, 1, lambda _: None)
    channel._set_state(channel.OPEN)
    came = []
    with mock.patch.object(channel, "_rpc"), mock.patch.object(channel, "_send_method") as told:
        tag = channel.basic_consume("queue", lambda *what: came.append(what[3]))
        channel.basic_cancel(tag, lambda _: None)
        channel._cancelled.discard(tag)
        deliver = pika.frame.Method(1, pika.spec.Basic.Deliver(tag, 1))
        channel._on_deliver(deliver, pika.frame.Header(1, 1, pika.BasicProperties()), b"body")
    assert came == [b"body"], moved("pika.channel.Channel._cancelled", CONSUMERS)
    assert not told.called


def test_the_transport_that_the_protocol_is_given_is_the_one_that_pika_closes(protocol):
    transport = mock.Mock(wraps=StringTransport())
    protocol._impl._reactor = task.Clock()
    protocol.ready.addErrback(lambda _: None)
    protocol.makeConnection(transport)
    protocol._impl._adapter_disconnect_stream()
    transport.loseConnection.assert_called_once_with()
    assert protocol.transport is transport, moved("Protocol.transport", CONNECTION)


def test_the_twisted_channel_wraps_a_channel():
    inner = mock.Mock(spec=pika.channel.Channel)
    channel = TwistedChannel(inner)
    assert channel._channel is inner, moved("TwistedChannel._channel", CONSUMERS)
    assert isinstance(channel.on_closed, defer.Deferred), moved(
        "TwistedChannel.on_closed", CONSUMERS
    )
    inner.channel_number, inner.is_open = 7, True
    assert channel.channel_number == 7, moved("TwistedChannel.channel_number", CONSUMERS)
    assert channel.is_open is True, moved("TwistedChannel.is_open", CHANNELS)
    assert hasattr(pika.channel.Channel, "add_on_cancel_callback"), moved(
        "pika.channel.Channel.add_on_cancel_callback", CONSUMERS
    )


def test_the_twisted_channel_wraps_methods_so_that_they_return_deferreds():
    inner = mock.Mock(spec=pika.channel.Channel)
    channel = TwistedChannel(inner)
    confirmed = channel._wrap_channel_method("basic_consume")(queue="one", on_message_callback=len)
    (call,) = inner.basic_consume.call_args_list
    assert set(call.kwargs) == {"queue", "on_message_callback", "callback"}, moved(
        "TwistedChannel._wrap_channel_method", CONSUMERS
    )
    call.kwargs["callback"]("frame")
    assert confirmed.result == "frame", moved("TwistedChannel._wrap_channel_method", CONSUMERS)
    taken = parameters_of(pika.channel.Channel.basic_consume)
    assert {"queue", "on_message_callback", "callback"} <= set(taken), moved(
        "pika.channel.Channel.basic_consume", CONSUMERS
    )


def test_a_closed_channel_fires_its_deferred_with_the_reason():
    inner = mock.Mock(spec=pika.channel.Channel)
    channel = TwistedChannel(inner)
    reasons: list[Any] = []
    on_closed: Any = channel.on_closed
    on_closed.addCallback(reasons.append)
    (closing,) = inner.add_on_close_callback.call_args.args
    reason = pika.exceptions.ChannelClosedByBroker(404, "NOT_FOUND")
    closing(inner, reason)
    assert reasons == [reason], moved("TwistedChannel.on_closed", CONSUMERS)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("basic_ack", {"delivery_tag", "multiple"}),
        ("basic_nack", {"delivery_tag", "multiple", "requeue"}),
        ("basic_reject", {"delivery_tag", "requeue"}),
        ("basic_qos", {"prefetch_size", "prefetch_count"}),
        ("basic_cancel", {"consumer_tag"}),
        ("close", set()),
    ],
)
def test_the_methods_of_the_twisted_channel_have_the_parameters_in_use(method, parameters):
    taken = parameters_of(getattr(TwistedChannel, method))
    assert parameters <= set(taken), moved(f"TwistedChannel.{method}", f"{CHANNELS} or {CONSUMERS}")


# pika's blocking connection


def test_the_blocking_connection_knows_its_server_and_raises_the_caught_errors():
    assert "self._impl" in inspect.getsource(pika.BlockingConnection.__init__), moved(
        "BlockingConnection._impl", INSPECTION
    )
    assert "self.server_properties" in inspect.getsource(pika.connection.Connection), moved(
        "Connection.server_properties", INSPECTION
    )
    assert not issubclass(AMQPConnectorException, pika.exceptions.AMQPError), moved(
        "AMQPConnectorException", INSPECTION
    )
    assert issubclass(AMQPConnectorStackTimeout, AMQPConnectorException), moved(
        "AMQPConnectorStackTimeout", INSPECTION
    )
    for name in ("connection_attempts", "socket_timeout", "stack_timeout"):
        assert isinstance(getattr(pika.connection.Parameters, name, None), property), moved(
            f"Parameters.{name}", INSPECTION
        )


# fedora_messaging.api, .config, .message; crochet


def test_publishing_goes_over_the_service_that_the_api_module_holds():
    assert hasattr(api, "_twisted_service"), moved(
        "fedora_messaging.api._twisted_service", INSTANCE
    )
    service = mock.Mock(spec=FedoraMessagingServiceV2)
    with mock.patch.object(api, "_twisted_service", service):
        assert api._init_twisted_service() is service, moved(
            "fedora_messaging.api._init_twisted_service", INSTANCE
        )


def test_publish_uses_of_crochet_only_the_names_that_stand_in_for_it():
    source = inspect.getsource(api.publish)
    used = set(re.findall(r"crochet\.(\w+)", source))
    assert used == {"setup", "TimeoutError"}, moved("api.publish's use of crochet", SEAM)
    of_result = set(re.findall(r"eventual_result\.(\w+)", source))
    assert of_result == {"wait", "cancel", "original_failure"}, moved("api.publish's result", SEAM)


def test_mock_sends_replaces_the_same_names_as_an_instance():
    source = inspect.getsource(testing.mock_sends)
    for name in ("fedora_messaging.api.crochet", "fedora_messaging.api._twisted_publish_wrapper"):
        assert f'mock.patch("{name}")' in source, moved(name, SEAM)


def test_twisted_publish_sends_by_the_factory_of_the_service():
    source = inspect.getsource(api.twisted_publish)
    assert "_twisted_service.factory.publish(message, exchange=exchange)" in source, moved(
        "api.twisted_publish", SEAM
    )


def test_the_settings_are_the_keys_that_upstream_knows():
    ours, theirs = set(Settings.model_fields), set(config.DEFAULTS)
    assert ours == theirs, (
        f"fedora-messaging has new keys {theirs - ours} and lost {ours - theirs}; "
        "see Settings in consumer_framework/settings/model.py"
    )


def test_the_server_named_queue_is_upstreams():
    assert config.DEFAULTS["queues"] == {"": TRANSIENT_QUEUE}, moved(
        "the default queue", "consumer_framework/settings/model.py"
    )


def test_the_configuration_is_lazy_and_can_be_given():
    conf = config.LazyConfig()
    conf.loaded = True
    conf.update({"callback": "given"})
    assert dict(conf.items()) == {"callback": "given"}, moved("LazyConfig.loaded", CONFIG)
    for name in ("validate_client_properties", "validate_monitoring"):
        assert callable(getattr(config, name, None)), moved(f"config.{name}", CONFIG)
    error = fm_exceptions.ConfigurationException("why")
    assert error.message == "why", moved("ConfigurationException.message", CONFIG)


def test_the_registry_maps_names_to_classes_and_knows_whether_it_is_loaded():
    assert callable(getattr(message, "load_message_classes", None)), moved(
        "fedora_messaging.message.load_message_classes", REGISTRY
    )
    assert 'group="fedora.messages"' in inspect.getsource(message.load_message_classes), moved(
        "the entry point group fedora.messages", REGISTRY
    )
    message.load_message_classes()
    assert message._registry_loaded is True, moved("_registry_loaded", REGISTRY)
    assert message._schema_name_to_class["base.message"] is message.Message, moved(
        "_schema_name_to_class", REGISTRY
    )


def test_get_message_makes_messages_in_the_known_way():
    source = inspect.getsource(message.get_message)
    assert parameters_of(message.get_message) == ["routing_key", "properties", "body"], moved(
        "fedora_messaging.message.get_message", DECODING
    )
    assert (
        "body=body_dict, topic=routing_key, properties=properties, severity=severity" in source
    ), moved("how get_message makes a Message", DECODING)
    for step in ("body.decode(", "json.loads(", "message.validate()", "MessageClass.deprecated"):
        assert step in source, moved(f"get_message's {step}", DECODING)
    assert isinstance(fm_exceptions.ValidationError.summary, property), moved(
        "ValidationError.summary", DECODING
    )


def test_a_message_is_validated_by_four_schemas():
    source = inspect.getsource(message.Message.validate)
    for step in (
        "for schema in (self.headers_schema, Message.headers_schema):",
        "jsonschema.validate(self._headers, schema)",
        "for schema in (self.body_schema, Message.body_schema):",
        "jsonschema.validate(self.body, schema)",
    ):
        assert step in source, moved(f"Message.validate's {step}", VALIDATION)
    assert source.count("jsonschema.validate(") == 2, moved("Message.validate", VALIDATION)


def test_properties_keep_everything_in_their_dictionary():
    given = pika.BasicProperties(message_id="1", headers={})
    assert vars(given)["message_id"] == "1", moved("pika.BasicProperties.__dict__", DECODING)
    assert not hasattr(pika.BasicProperties, "__slots__"), moved(
        "pika.BasicProperties.__dict__", DECODING
    )


def test_publish_asks_its_wrapper_first_which_is_looked_up_at_each_call():
    """An instance's own publish stands in its place."""
    refused = RuntimeError("refused")
    with (
        mock.patch.object(api, "_twisted_publish_wrapper", side_effect=refused),
        mock.patch.object(api, "crochet"),
        pytest.raises(RuntimeError, match="refused"),
    ):
        api.publish(message.Message(topic="test", body={}))
