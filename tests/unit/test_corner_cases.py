# SPDX-License-Identifier: GPL-2.0-or-later
"""Odd input of authors and operators, each of which once ended in a traceback or worse."""

from __future__ import annotations

import asyncio
import dataclasses
import sys

import pika
import pydantic
import pytest
import typing_extensions
from fedora_messaging.config import DEFAULTS
from twisted.internet import error, task
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from consumer_framework.adapters import config
from consumer_framework.adapters.amqp.connection import Factory
from consumer_framework.adapters.systemd.notify import SystemdNotifier
from consumer_framework.core import memory
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.runtime.assembly import loader
from consumer_framework.settings import (
    Address,
    Overrides,
    is_config_type,
    parse,
    parse_consumer_config,
)
from consumer_framework.testing import FakeClock, make_delivery


class Connector:
    def connect(self):
        pass

    def stopConnecting(self):  # noqa: N802
        raise error.NotConnectingError


class Events:
    lost = None

    def connection_lost(self, error, retry_in):
        self.lost = error

    def handshake_broken(self):
        pass


class Transport(StringTransport):
    def abortConnection(self):  # noqa: N802
        pass


def quiet_factory(events, clock):
    factory = Factory(pika.ConnectionParameters(), events, clock, [Address("localhost", 1)], None)
    setattr(factory.dialer, "dial", lambda: None)  # noqa: B010 -- mypy
    factory.noisy = False
    return factory


def document(**changes):
    return {**DEFAULTS, "log_config": None, "monitoring": None, **changes}


def test_a_stop_during_a_connection_attempt_cancels_no_call_that_was_made():
    clock = task.Clock()
    factory = quiet_factory(Events(), clock)
    factory.clientConnectionFailed(Connector(), Failure(error.ConnectionRefusedError()))
    clock.advance(2)
    factory.stop()
    assert not factory.continueTrying


def test_a_handshake_that_is_not_answered_is_reported_as_that():
    clock, events = task.Clock(), Events()
    factory = quiet_factory(events, clock)
    client = factory.buildProtocol(None)
    client._impl._reactor = clock
    client.makeConnection(Transport())
    clock.advance(31)
    aborted = Failure(error.ConnectionAborted())
    client.connectionLost(aborted)
    factory.clientConnectionLost(Connector(), aborted)
    assert isinstance(events.lost, TimeoutError)


def test_a_binding_whose_queue_is_no_string_is_a_problem():
    binding = {"queue": ["a"], "exchange": "e", "routing_keys": []}
    with pytest.raises(ConfigurationError, match="queue: must be a string"):
        parse(document(bindings=[binding]))


def test_a_typed_dict_of_typing_extensions_is_a_config():
    class Config(typing_extensions.TypedDict):
        a: int

    assert is_config_type(Config)
    assert parse_consumer_config(Config, {"a": 1}) == {"a": 1}


def test_a_config_with_alternative_aliases_takes_each():
    class Config(pydantic.BaseModel):
        a: int = pydantic.Field(validation_alias=pydantic.AliasChoices("b", "c"))

    assert parse_consumer_config(Config, {"b": 1}).a == 1


def test_a_dataclass_may_have_init_only_variables():
    @dataclasses.dataclass
    class Config:
        a: dataclasses.InitVar[int]

        def __post_init__(self, a):
            self.b = a

    assert parse_consumer_config(Config, {"a": 1}).b == 1


def test_a_key_that_toml_would_quote_is_quoted():
    class Config(pydantic.BaseModel):
        pass

    with pytest.raises(ConfigurationError, match=r'consumer_config\."a b"'):
        parse_consumer_config(Config, {"a b": 1})


def test_an_optional_table_has_its_keys_proposed():
    with pytest.raises(ConfigurationError, match='did you mean "address"'):
        parse(document(monitoring={"port": 1, "adress": ""}))


def test_a_callback_file_may_be_called_like_a_module_that_it_imports(tmp_path):
    file = tmp_path / "wave.py"
    file.write_text("import wave\nopen_ = wave.open\ndef handle(message): pass\n")
    sys.modules.pop("wave", None)
    target = loader.find_in_file(f"{file}:handle", "here")
    assert callable(target.value)


def test_a_callback_that_exits_while_it_is_imported_is_a_problem(tmp_path):
    file = tmp_path / "exiting.py"
    file.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigurationError, match="raised SystemExit while it was imported: 0"):
        loader.find_in_file(f"{file}:handle", "here")


# sdnotify leaves its socket open when it cannot connect it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("address", ["", "/no/such/socket", "vsock:2:1"])
def test_a_notify_socket_that_cannot_be_used_is_done_without(monkeypatch, caplog, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    SystemdNotifier().ready("x")
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("text", ["a=" + "[" * 3000 + "]" * 3000, "\ufefftopic_prefix='a'"])
def test_odd_files_are_problems(tmp_path, text):
    file = tmp_path / "odd.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=str(file)):
        config.load(file)


@pytest.mark.parametrize(
    "text",
    [
        "queues.a = {durable=true,auto_delete=false,exclusive=false,arguments={x-a=2020-01-01}}",
        "[client_properties]\napp = 10:00:00",
        'bindings = [{queue="", exchange="e", routing_keys=["' + "k" * 256 + '"]}]',
        'queues."' + "q" * 256 + '" = {}',
    ],
)
def test_a_value_that_amqp_cannot_carry_is_a_problem_of_the_file(tmp_path, text):
    file = tmp_path / "odd.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"AMQP has no type|longer than 255"):
        config.load(file)


@pytest.mark.parametrize(
    "text",
    [
        "exchanges=3",
        "queues.a=3",
        "client_properties=3",
        "consumer_config=3",
        "tls.ca_cert=3",
        "bindings=[{queue=1}]",
        "bindings=[3]",
        "queues={}",
        "monitoring=3",
        "tls=3",
        "log_config=3",
        "amqp_url=3",
        "exchanges={a=3}",
    ],
)
@pytest.mark.parametrize(
    "overrides", [Overrides(), Overrides("a", "q", "e", ("k",))], ids=["file", "command line"]
)
def test_a_wrong_type_anywhere_is_a_problem_and_never_a_traceback(tmp_path, text, overrides):
    file = tmp_path / "odd.toml"
    file.write_text(text)
    try:
        config.load(file, overrides)
    except ConfigurationError as problems:
        assert str(file) in str(problems)  # noqa: PT017
    else:
        assert overrides.queue_name, "only the command line can mend it"


def test_a_run_that_goes_on_is_never_forgotten(monkeypatch):
    monkeypatch.setattr(memory, "MEMORY_RUNS", 2)

    async def scenario():
        unsettled = memory.UnsettledRuns(FakeClock())
        long = unsettled.begin(make_delivery(message_id="long"))
        for number in range(5):
            unsettled.end(unsettled.begin(make_delivery(message_id=str(number))), settled=False)
        again = make_delivery(message_id="long", generation=2, redelivered=True)
        assert unsettled.claim(again) is long

    asyncio.run(scenario())
