# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of a relay, seen from its main thread: watchdog, defects, batches without end."""

import logging
import os
import signal
import stat
import threading
import time

import pytest

from consumer_framework.adapters import config
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.errors import ConfigurationError, Fault
from consumer_framework.publishing.messengers import Sent
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.runtime.assembly.configuration import RunOptions
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.client import ControlError, connected_to
from consumer_framework.runtime.control.threaded import ControlThread
from consumer_framework.runtime.outbox import RelayProcess, run
from tests.unit.outboxes import Scripted, message, spooled


class Notified:
    """A service manager that remembers."""

    def __init__(self, watchdog_seconds=0.3):
        self.watchdog_seconds = watchdog_seconds
        self.said = []
        self.happened = threading.Condition()

    def _note(self, *what):
        with self.happened:
            self.said.append(what)
            self.happened.notify_all()

    def ready(self, status):
        self._note("ready", status)

    def status(self, status):
        self._note("status", status)

    def reloading(self, status):
        self._note("reloading", status)

    def stopping(self, status):
        self._note("stopping", status)

    def extend(self, seconds):
        self._note("extend", seconds)

    def restart_reset(self):
        self._note("restart_reset")

    def watchdog(self):
        self._note("watchdog")

    def trigger(self, status):
        self._note("trigger", status)

    def close(self):
        pass

    def wait_for(self, word):
        with self.happened:
            assert self.happened.wait_for(lambda: any(s[0] == word for s in self.said), 60)

    def words(self):
        return {one[0] for one in self.said}


class Clock(SystemClock):
    """The real clock, which a test sets forward."""

    ahead = 0.0

    def monotonic(self):
        return super().monotonic() + self.ahead


class Setup:
    """A relay in this process, whose messenger a test has in its hands."""

    def __init__(self, directory, monkeypatch):
        monkeypatch.setattr("consumer_framework.runtime.signals.Signals.catch", lambda _: None)
        self.file = directory / "web.toml"
        self.url = f"sqlite:///{directory}/outbox.sqlite3"
        self.configure()
        self.state = directory / "state"
        options = RunOptions(self.file, instance="web", state_directory=self.state)
        self.notified, self.clock, self.messenger = Notified(), Clock(), Scripted()
        self.store = OutboxStore.connect(self.url)
        self.store.migrate()
        settings = config.load(self.file)
        self.process = RelayProcess(options, settings, self.notified, self.clock)
        monkeypatch.setattr(
            "consumer_framework.publishing.relaying.messenger_of", lambda _settings: self.messenger
        )
        self.result = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def configure(self, more=""):
        self.file.write_text(
            f'[consumer_config.framework.outbox]\ndatabase = "{self.url}"\nlease = "1s"\n{more}\n'
        )

    def _run(self):
        try:
            self.result = self.process.run()
        except BaseException as error:  # noqa: BLE001 -- the test looks at it
            self.result = error

    def start(self):
        self.thread.start()
        self.notified.wait_for("ready")

    def stop(self):
        self.process._on_stop(signal.SIGTERM)
        return self.end()

    def end(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.result

    def end_late(self):
        """Let a minute pass, again and again, until the process ends."""
        for _ in range(600):
            self.clock.ahead += 61
            self.thread.join(0.1)
            if not self.thread.is_alive():
                break
        return self.end()

    def hang(self):
        """Let the messenger not return from the next message, until the test ends."""
        began, self.may_return = threading.Event(), threading.Event()

        def answer(_):
            began.set()
            self.may_return.wait(60)
            return Sent(routed=True)

        self.messenger.answer = answer
        self.store.put(spooled(message()))
        assert began.wait(60)


@pytest.fixture
def setup(tmp_path, monkeypatch):
    setup = Setup(tmp_path, monkeypatch)
    setup.may_return = threading.Event()
    yield setup
    setup.may_return.set()
    setup.store.close()


def test_the_watchdog_is_fed_while_the_relay_moves(setup):
    setup.start()
    setup.notified.wait_for("watchdog")
    assert setup.stop() == 0
    assert "trigger" not in setup.notified.words()
    assert not list(setup.state.iterdir()), "the control socket is gone"


def test_a_messenger_that_does_not_return_has_the_service_manager_restart_the_process(setup):
    setup.start()
    setup.hang()
    setup.clock.ahead = 301
    setup.notified.wait_for("trigger")
    assert ("trigger", "Stuck: neither the messenger nor the database returns") in (
        setup.notified.said
    )
    setup.may_return.set()
    assert setup.stop() == 0


def test_its_socket_has_its_metrics_and_tells_if_it_is_live_and_ready(setup):
    setup.start()
    with connected_to([setup.state / "relay-control"]) as running:
        assert running is not None
        assert running.page("/live") == '{"status": "OK"}\n'
        assert '"sending": true' in running.page("/ready")
        assert 'fm_outbox_up{fm_relay="web"} 1.0' in running.page("/metrics")
        setup.hang()
        setup.clock.ahead = 301
        with pytest.raises(ControlError, match="HTTP status 503"):
            running.page("/live")
        with pytest.raises(ControlError, match="there is no /elsewhere"):
            running.page("/elsewhere")
    setup.may_return.set()
    assert setup.stop() == 0
    with pytest.raises(ControlError, match="stopped before it was done"):
        running.page("/metrics")


def test_a_batch_that_does_not_end_is_not_waited_for_without_limit(setup, caplog):
    setup.start()
    setup.hang()
    setup.process._on_stop(signal.SIGTERM)
    setup.notified.wait_for("stopping")
    assert setup.end_late() == 0
    assert "the batch did not end within 60 s; the next relay sends it again" in caplog.text


def test_a_batch_that_does_not_end_for_a_reload_ends_the_process_for_a_restart(setup):
    setup.start()
    setup.hang()
    setup.configure("window = 3")
    setup.process._orders.callFromThread(setup.process._on_reload)
    setup.notified.wait_for("reloading")
    fault = setup.end_late()
    assert isinstance(fault, Fault)
    assert fault.exit_code == 75
    assert "did not end within 60 s for a reload" in str(fault)


def test_a_relay_that_ends_by_itself_is_a_defect(setup, monkeypatch, caplog):
    setup.start()

    def fail(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("consumer_framework.publishing.relay.Relay.step", fail)
    fault = setup.end()
    assert isinstance(fault, Fault)
    assert fault.exit_code == 11
    assert "please report this defect" in caplog.text


def test_a_reload_of_logging_that_cannot_be_set_up_changes_nothing(setup):
    setup.start()
    setup.configure('[log_config]\nversion = 1\nroot = {handlers = ["gone"]}')
    with connected_to([setup.state / "relay-control"]) as running:
        assert running is not None
        [report] = running.ask(schema.Reload())
    assert isinstance(report, schema.ReloadReport)
    assert report.result == "refused"
    assert "logging cannot be set up" in str(report.problems[0])
    assert setup.stop() == 0


def test_an_order_to_stop_while_the_relay_waits_for_the_broker_ends_it(setup):
    setup.messenger.refuses = ConnectionRefusedError("nobody at home")
    setup.thread.start()
    setup.notified.wait_for("extend")
    assert setup.stop() == 0
    assert "ready" not in setup.notified.words()


def test_a_relay_without_a_control_socket_runs(setup, caplog):
    setup.state.write_text("no directory")
    setup.start()
    assert setup.stop() == 0
    assert "no command reaches this relay" in caplog.text


def test_a_relay_without_a_database_is_refused_with_the_file(tmp_path):
    file = tmp_path / "web.toml"
    file.write_text("")
    with pytest.raises(ConfigurationError, match=r"web\.toml: .*outbox\.database: is not set"):
        run(RunOptions(file, instance="web"))


def test_a_relay_whose_messenger_is_not_there_is_refused_with_the_file(tmp_path):
    file = tmp_path / "web.toml"
    database = f"sqlite:///{tmp_path}/outbox.sqlite3"
    table = f'database = "{database}"\nmessenger = "smoke"\n'
    file.write_text(f"[consumer_config.framework.outbox]\n{table}")
    process = RelayProcess(
        RunOptions(file, instance="web", state_directory=tmp_path),
        config.load(file),
        Notified(),
        Clock(),
    )
    with pytest.raises(ConfigurationError, match=r'web\.toml: .*there is no messenger "smoke"'):
        process.run()


# The control socket.


def fails(_request):
    raise ValueError("a defect")
    yield


@pytest.fixture
def client(tmp_path):
    path = tmp_path / "control"
    path.touch()
    by_type = {schema.Ping: lambda _: [schema.Pong()], schema.Status: fails}
    control = ControlThread(path, by_type)
    with connected_to([path]) as connected:
        yield connected
    control.close()
    assert not path.exists()


def test_a_request_that_this_process_does_not_know_is_told(client):
    with pytest.raises(
        ControlError, match="/v1/quarantine/drop: this process does not answer that"
    ):
        list(client.ask(schema.Drop((1,))))
    assert list(client.ask(schema.Ping())) == [schema.Pong()]


def test_a_request_that_fails_is_told_and_the_next_one_works(client, caplog):
    with pytest.raises(ControlError, match="ValueError: a defect"):
        list(client.ask(schema.Status()))
    assert "a request on the control socket failed" in caplog.text
    assert list(client.ask(schema.Ping())) == [schema.Pong()]


def test_a_relay_answers_looks_and_changes_its_log_level(setup):
    setup.start()
    with connected_to([setup.state / "relay-control"]) as client:
        assert client is not None
        (pong,) = client.ask(schema.Ping())
        assert (pong.instance, pong.pid) == ("web", os.getpid())
        (stacks,) = client.ask(schema.Stacks())
        assert "outbox-relay" in {stack.name for stack in stacks.threads}
        level = logging.getLogger("somebody").level
        (report,) = client.ask(schema.LogLevel("DEBUG", 0.05, "somebody"))
        assert report.level == "DEBUG"
        end = time.monotonic() + 20
        while logging.getLogger("somebody").level != level:
            assert time.monotonic() < end, "the level did not come back"
            time.sleep(0.01)
        with pytest.raises(ControlError, match="/v1/pause: this process does not answer that"):
            list(client.ask(schema.Pause()))
    assert setup.stop() == 0


def test_a_relay_listens_for_operators_where_the_unit_made_a_place(short_tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(short_tmp_path / "run"))
    (short_tmp_path / "run/operators").mkdir(parents=True)
    setup = Setup(short_tmp_path, monkeypatch)
    setup.start()
    own, operators = (short_tmp_path / "run" / name for name in ("control", "operators/control"))
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    assert stat.S_IMODE(operators.stat().st_mode) == 0o660
    with connected_to([operators]) as client:
        assert client is not None
    assert setup.stop() == 0
    assert not own.exists()
    assert not operators.exists()
