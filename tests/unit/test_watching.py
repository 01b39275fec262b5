# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching topics without a broker: reconnects, views of messages, and refused options."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any, Self

import pika
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from fedora_messaging import config as upstream_config
from fedora_messaging import message as upstream

from consumer_framework.adapters import config
from consumer_framework.adapters.amqp.inspection import UnreachableError
from consumer_framework.adapters.amqp.watching import LostError
from consumer_framework.cli import main
from consumer_framework.core.delivery import Delivery
from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault
from consumer_framework.operate import watching
from consumer_framework.operate.watching import Connected, Lost, View, fedora_values, watch
from consumer_framework.settings import Address
from consumer_framework.testing import make_delivery

FIRST, SECOND = Address("one", 5672), Address("two", 5672)


@pytest.fixture(autouse=True)
def _the_process_stays_as_it_is(monkeypatch, tmp_path):
    for name, value in dict(upstream_config.conf).items():
        monkeypatch.setitem(upstream_config.conf, name, value)
    monkeypatch.setattr("consumer_framework.adapters.log.set_up", lambda *_, **__: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(watching, "CONFIGURATION_DIRECTORY", tmp_path / "etc")


class Broker:
    """Brokers that answer as *script* says, one step for each attempt to connect."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.asked: list[str] = []
        self.now = 0.0
        self.slept: list[float] = []
        self.closed = 0

    def connect(self, address: Address, _bindings: object) -> Any:
        self.asked.append(address.name)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return Link(self, str(address), step)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def watch(self, *addresses: Address) -> Any:
        return watch(
            addresses or (FIRST,),
            [],
            sleep=self.sleep,
            clock=lambda: self.now,
            connect=self.connect,
        )


class Link:
    def __init__(self, broker: Broker, host: str, batches: list[Any]) -> None:
        self.host = host
        self._broker = broker
        self._batches = list(batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._broker.closed += 1

    def wait(self) -> list[Any]:
        if not self._batches:
            raise LostError("it went away")
        batch: list[Any] = self._batches.pop(0)
        return batch


def gone(text: str = "nobody there") -> UnreachableError:
    return UnreachableError(ExitCode.CONNECTION, text)


REFUSED = Fault(ExitCode.CONNECTION, "refused")


def test_deliveries_come_over_reconnects_with_longer_and_longer_delays():
    broker = Broker([["a", "b"], [], ["c"]], gone(), gone(), [["d"]], [["e"]])
    events = broker.watch()
    found = list(islice((event for event in events if event is not None), 11))
    assert found == [
        Connected("one:5672", None), "a", "b", "c",
        Lost("it went away", 1.0), Lost("nobody there; start it, or name another broker", 2.0),
        Lost("nobody there; start it, or name another broker", 4.0),
        Connected("one:5672", 7.0), "d",
        Lost("it went away", 1.0), Connected("one:5672", 1.0),
    ]  # fmt: skip
    assert broker.closed == 2
    events.close()
    assert broker.closed == 3


def test_a_delay_has_a_limit():
    broker = Broker([], *[gone()] * 20)
    lost = [event for event, _ in zip(broker.watch(), range(12), strict=False)][1:]
    assert max(event.retry_in for event in lost) == 30.0


def test_the_next_broker_is_asked_at_once():
    broker = Broker(gone(), [["a"]])
    events = broker.watch(FIRST, SECOND)
    assert next(events) == Connected("two:5672", None)
    assert (broker.asked, broker.slept) == (["one", "two"], [])


def test_the_first_connection_is_tried_once_at_each_broker():
    broker = Broker(gone("not one"), gone("not two"))
    with pytest.raises(UnreachableError, match="not one; not two; start it, or name another"):
        next(broker.watch(FIRST, SECOND))
    with pytest.raises(Fault, match="refused"):
        next(Broker(REFUSED).watch())


def test_a_broker_that_refuses_after_a_loss_is_tried_for_five_minutes():
    broker = Broker([], *[REFUSED] * 100)
    with pytest.raises(Fault, match="refused"):
        list(broker.watch())
    assert 300 < broker.now < 360


# Views


def delivery(body: bytes, topic: Any = "a.b", **headers: Any) -> Delivery:
    properties: Any = pika.BasicProperties(headers=headers, message_id="7")
    return Delivery("q", 1, 1, False, "amq.topic", topic, properties, body)


class Odd(upstream.Message):
    @property
    def summary(self) -> str:
        if self.body.get("text") is None:
            raise RuntimeError("no \x1b text")
        text: str = self.body["text"]
        return text


@pytest.fixture
def odd(monkeypatch):
    upstream.load_message_classes()
    monkeypatch.setitem(upstream._schema_name_to_class, "odd", Odd)
    monkeypatch.setitem(upstream._class_to_schema_name, Odd, "odd")


def test_a_summary_is_one_safe_line(odd):
    headers = {"fedora_messaging_schema": "odd"}
    text = json.dumps({"text": "two\nlines \x1b[2J"}).encode()
    assert View.of(delivery(text, **headers)).summary == "two lines \\x1b[2J"
    failing = View.of(delivery(b"{}", **headers)).summary
    assert failing == "(its class cannot sum it up: no \\x1b text)"


def test_a_message_without_a_class_shows_its_body_and_the_class_that_is_missing():
    view = View.of(delivery(b'{"n": 1}', fedora_messaging_schema="not.here"))
    assert (view.summary, view.schema, view.is_known) == ('{"n": 1}', "not.here", False)
    assert View.of(delivery(b"{}")).is_known


def test_conditions_see_the_parts_of_a_message():
    view = View.of(delivery(b'{"n": 1}', x="y", fedora_messaging_severity=40))
    document = view.document()
    assert document["headers"]["x"] == "y"
    assert {key: document[key] for key in ("topic", "id", "queue", "exchange", "severity")} == {
        "topic": "a.b", "id": "7", "queue": "q", "exchange": "amq.topic", "severity": 40,
    }  # fmt: skip
    assert document["body"] == {"n": 1}


def test_an_invalid_message_has_its_reason_and_a_body_if_that_is_json():
    view = View.of(delivery(b"[1]", topic=b"\xff"))
    assert view.message is None
    assert (view.topic, view.body) == ("\\xff", [1])
    assert view.fault
    assert "body" not in View.of(delivery(b"\xff")).document()
    odd_severity = View.of(delivery(b"{}", fedora_messaging_severity="loud"))
    assert (odd_severity.severity, odd_severity.message) == (20, None)


# Fedora's broker


def test_the_certificates_of_fedora_are_found_beside_the_user_or_the_system(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        fedora_values()
    assert "dnf install fedora-messaging, or: curl" in str(caught.value)
    for place in (tmp_path / "etc", tmp_path / "home" / "fedora-messaging"):
        place.mkdir(parents=True)
        for name in ("cacert.pem", "fedora-cert.pem", "fedora-key.pem"):
            (place / name).touch()
        values = fedora_values()
        assert values["tls"]["keyfile"] == str(place / "fedora-key.pem")
        assert values["amqp_url"].endswith("@rabbitmq.fedoraproject.org/%2Fpublic_pubsub")


def test_values_without_a_file_are_a_configuration_and_their_errors_name_their_origin():
    settings = config.load_values({"amqp_url": "amqp://somewhere:5"}, "--url")
    assert [str(address) for address in settings.brokers] == ["somewhere:5"]
    assert upstream_config.conf["amqp_url"] == "amqp://somewhere:5"
    with pytest.raises(ConfigurationError, match="--url: amqp_url: is not an AMQP URL"):
        config.load_values({"amqp_url": "http://somewhere"}, "--url")


# The command line


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--conf", "x.toml", "--fedora"], 2, "one of --conf, --instance, --url and --fedora"),
        (["--json", "--full"], 2, "leave out --full"),
        (["--where", "name=x"], 2, "write body.name for a key of the body"),
        (["--count", "0"], 2, "--count"),
        (["--instance", "no_such"], 78, "no_such"),
        (["--conf", "none.toml"], 78, "none.toml: there is no such file"),
        (["--url", "http://x"], 78, "--url: amqp_url: is not an AMQP URL"),
        (["--fedora"], 78, "the public certificates of Fedora's broker"),
        (["--url", "amqp://127.0.0.1:1"], 14, "cannot be reached"),
    ],
)
def test_options_that_cannot_work_are_refused_with_a_cure(words, code, told):
    result = CliRunner().invoke(main, ["tail", *words])
    assert result.exit_code == code, result.output
    assert told in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_topics_of_fedora_are_completed():
    complete = ShellComplete(main, {}, "fm-consumer", "_FM_CONSUMER_COMPLETE")
    found = complete.get_completions(["tail", "--topic"], "org.fedoraproject.*.bo")
    assert [item.value for item in found] == ["org.fedoraproject.*.bodhi.#"]
    assert "#" in {item.value for item in complete.get_completions(["tail", "--topic"], "")}


def test_the_help_has_examples():
    for name in ("tail", "schemas"):
        assert "Examples:" in CliRunner().invoke(main, [name, "--help"]).output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["gone/x"], "gone/x cannot be opened: No such file or directory"),
        (["--queue", "q", "--topic", "a", "x"], "leave out --topic"),
        (["--json", "-"], "--json is for the summary: name a FILE"),
        (["--for", "soon", "x"], "must be a length of time"),
    ],
)
def test_a_recording_that_cannot_work_is_refused_with_a_cure(words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["record", "--url", "amqp://localhost:1", *words])
    assert done.exit_code == 2
    assert text in done.output
    assert not (tmp_path / "x").exists()


def test_a_recording_that_never_connected_leaves_the_files_as_they_were(tmp_path):
    mine = tmp_path / "mine"
    mine.touch()
    for file in (mine, tmp_path / "new"):
        words = ["record", "--url", "amqp://127.0.0.1:1", str(file)]
        assert CliRunner().invoke(main, words).exit_code == 14
    assert list(tmp_path.iterdir()) == [mine]


class Loan:
    """A loan whose connection ends after one message."""

    host, count = "one:5672", 2

    def __init__(self) -> None:
        properties = pika.BasicProperties(headers={})
        self.got = [[make_delivery()._replace(properties=properties)], []]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> list[Delivery]:
        if self.got:
            return self.got.pop(0)
        raise LostError("it went away")


def test_a_loan_whose_connection_ends_has_its_messages_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "lend", lambda *_: Loan())
    file = tmp_path / "x"
    words = ["record", "--url", "amqp://localhost:1", "--queue", "q", str(file)]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, file.read_text().count("\n")) == (14, 1)
    assert "the connection ended: it went away; 1 message recorded" in done.output
