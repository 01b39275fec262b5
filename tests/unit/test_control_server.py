# SPDX-License-Identifier: GPL-2.0-or-later
"""The server of the control socket: one request at a time, and every line gets an end."""

import asyncio
import json

import pytest
from twisted.internet.testing import StringTransport

from consumer_framework.core import secrets
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.server import ControlFactory


async def ping(_request):
    yield schema.Pong()


async def fail(_request):
    yield schema.Step("one")
    raise RuntimeError("broken")


async def wait(_request):
    await asyncio.Event().wait()
    yield schema.Dropped(())


BY_TYPE = {schema.Ping: ping, schema.Replay: fail, schema.Drop: wait}


@pytest.fixture
def serve():
    """Sends lines to a server, and returns its lines as JSON."""

    def serve(*lines):
        async def run():
            transport = StringTransport()
            client = ControlFactory(BY_TYPE).buildProtocol(None)
            client.makeConnection(transport)
            for line in lines:
                client.dataReceived(line + b"\n")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            client.connectionLost()
            return [json.loads(line) for line in transport.value().splitlines()]

        return asyncio.run(run())

    return serve


def test_each_request_gets_its_answers_and_an_end(serve):
    line = schema.encode_request(schema.Ping())
    assert serve(line, line) == [{"pong": True}, {"done": True}] * 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"do": "nonsense"}', "no such request: 'nonsense'"),
        (b"no JSON", "no JSON: Expecting value: line 1 column 1 (char 0)"),
        (
            b'{"do": "ping", "version": 7}',
            "version 7 is not understood; this instance speaks version 1",
        ),
    ],
)
def test_a_line_that_is_no_request_gets_one_polite_line(serve, caplog, line, said):
    assert serve(line) == [{"done": True, "error": said}]
    assert not caplog.records


def test_an_unknown_request_gets_an_error(serve):
    (answer,) = serve(schema.encode_request(schema.Status()))
    assert answer == {"done": True, "error": "no such request: 'status'"}


def test_a_request_that_fails_gets_an_error_and_the_log_has_the_traceback(serve, caplog):
    answers = serve(schema.encode_request(schema.Replay((1,))))
    assert answers == [{"step": "one"}, {"done": True, "error": "RuntimeError: broken"}]
    assert "a request on the control socket failed" in caplog.text


def test_a_second_request_before_the_end_of_the_first_is_refused(serve):
    line = schema.encode_request(schema.Drop((1,)))
    assert serve(line, line) == [{"done": True, "error": "one request at a time"}]


def test_no_secret_goes_over_the_socket(serve, monkeypatch):
    secret = "fL4k3s&of/the=control"  # noqa: S105 -- it is none

    async def tell(_request):
        yield schema.Step(f"connecting with {secret}")

    secrets.hide(secret, "credential:flakes")
    monkeypatch.setitem(BY_TYPE, schema.Replay, tell)
    (step, _done) = serve(schema.encode_request(schema.Replay((1,))))
    assert step == {"step": "connecting with <credential:flakes>"}
