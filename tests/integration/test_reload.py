# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings change while messages are handled, with real processes and a real broker."""

from __future__ import annotations

import functools
import json
import re
import signal
import time
from collections import Counter
from functools import partial

import pika
import pytest

from .instance import publish, queue_table, until
from .reloading import (
    ask,
    config_of,
    handled_once,
    published_all_the_time,
    refused,
    reload,
    reloaded,
)

CONSUMER = """
import pydantic, sqlite3
from consumer_framework import Consumer

class handler(Consumer):
    class Config(pydantic.BaseModel):
        label: str = "first"
        seconds: float = 0.0
        fail_setup: bool = False

    def setup(self):
        if self.config.fail_setup:
            raise RuntimeError("there is no such table")
        # Of one thread alone: so much for where setup, handle and teardown run.
        self.database = sqlite3.connect(":memory:")
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(json.dumps({"event": "setup", "label": self.config.label}) + "\\n")

    def handle(self, message):
        note("begin", message, label=self.config.label)
        time.sleep(self.config.seconds)
        self.database.execute("SELECT 1")
        note("end", message, label=self.config.label)

    def teardown(self):
        self.database.execute("SELECT 1")
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(json.dumps({"event": "teardown", "label": self.config.label}) + "\\n")
"""

FUNCTION = """
lock, running = threading.Lock(), 0

def handler(message):
    global running
    with lock:
        running += 1
        now = running
    note("run", message, running=now, seconds=config.conf["consumer_config"].get("seconds", 0))
    time.sleep(config.conf["consumer_config"].get("seconds", 0))
    with lock:
        running -= 1
"""


@pytest.fixture
def stream(broker):
    """Return a publisher that sends all the time; each message has to be handled once."""
    return functools.partial(published_all_the_time, broker.url)


# Settings that change while messages are handled.


def test_another_config_makes_another_handler_between_messages(broker, queue_name, start, stream):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    with stream(queue_name) as published:
        instance.noted("end", 50)
        for label in ("second", "third", "fourth"):
            extra = f'[consumer_config]\nlabel = "{label}"\n'
            config_of(instance, broker.url, queue_table(queue_name), extra)
            changed = reloaded(instance)
            assert changed["consumer_config.label"][0] == "reload"
            before = len(instance.notes("end"))
            instance.noted("end", before + 50)
    handled_once(instance, "end", published)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert [note["body"]["n"] for note in instance.notes("end")] == published, "in order"
    life = [(n["event"], n["label"]) for n in instance.notes()]
    for former, latter in (("first", "second"), ("second", "third"), ("third", "fourth")):
        assert life.index(("setup", latter)) < life.index(("teardown", former))
        messages = [i for i, what in enumerate(life) if what == ("begin", former)]
        assert max(messages) < life.index(("teardown", former))
        assert max(messages) < min(i for i, w in enumerate(life) if w == ("begin", latter))
    assert life.count(("teardown", "fourth")) == 1
    assert len([what for what in life if what[0] == "setup"]) == 4


def test_a_run_ends_with_the_handler_that_began_it(broker, queue_name, start):
    slow = '[consumer_config]\nseconds = 2\nlabel = "slow"\n'
    slots = "[consumer_config.framework]\nslots = 3\n"
    instance = start(broker.url, queue_table(queue_name), ANY_THREAD, extra=slow + slots).ready()
    publish(broker.url, queue_name, range(2))
    instance.noted("begin", 2)
    quick = '[consumer_config]\nseconds = 0\nlabel = "quick"\n'
    config_of(instance, broker.url, queue_table(queue_name), quick + slots)
    reloaded(instance)
    publish(broker.url, queue_name, range(2, 12))
    assert {n["label"] for n in instance.noted("end", 10)[:10]} == {"quick"}
    assert not instance.notes("teardown"), "the former one runs still"
    instance.noted("end", 12)
    until(lambda: len(instance.notes("teardown")) == 1, "the former one has ended")
    assert instance.notes("teardown")[0]["label"] == "slow"
    events = [n["event"] for n in instance.notes() if n["label"] == "slow"]
    assert events == ["setup", "begin", "begin", "end", "end", "teardown"]
    assert instance.stop() == 0


ANY_THREAD = CONSUMER.replace('connect(":memory:"', 'connect(":memory:", check_same_thread=False')


def has_count(broker, queue_name, count):
    listed = json.loads(broker.ctl("list_consumers", "--formatter", "json"))
    return [one["prefetch_count"] for one in listed if one["queue_name"] == queue_name] == [count]


@pytest.mark.parametrize("numbers", [(1, 6, 2), (5, 1, 3)])
def test_slots_and_prefetch_change_under_load(broker, queue_name, start, stream, numbers):
    def framework(slots):
        settings = f"slots = {slots}\nread_ahead = {slots * 3}\nhandler_timeout = '{slots}m'\n"
        return f"[consumer_config]\nseconds = 0.02\n[consumer_config.framework]\n{settings}"

    first = framework(numbers[0])
    instance = start(broker.url, queue_table(queue_name), FUNCTION, extra=first).ready()
    with stream(queue_name) as published:
        instance.noted("run", 30)
        for slots in numbers[1:]:
            config_of(instance, broker.url, queue_table(queue_name), framework(slots))
            assert "consumer_config.framework.slots" in reloaded(instance)
            before = len(instance.notes("run"))
            # Runs from before the change have ended by then.
            later = instance.noted("run", before + 60)[before + 20 :]
            assert max(note["running"] for note in later) <= slots
            publish(broker.url, queue_name, range(100_000, 100_060))
            instance.noted("run", before + 120)
            assert max(n["running"] for n in instance.notes("run")[before + 60 :]) == slots
            # This takes time: messages that were unsettled at the change count first.
            until(partial(has_count, broker, queue_name, slots + 4 + slots * 3), "the whole count")
    instance.noted("run", len(published) + 120)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    runs = Counter(note["body"]["n"] for note in instance.notes("run"))
    twice = range(100_000, 100_060)
    assert runs == Counter([*published, *twice, *twice])


def test_a_rate_comes_and_goes(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    limit = '[consumer_config.framework]\nrate = "1/d"\nburst = 2\n'
    config_of(instance, broker.url, queue_table(queue_name), limit)
    assert reloaded(instance)["consumer_config.framework.rate"] == ("reload", 'default -> "1/d"')
    publish(broker.url, queue_name, range(10))
    instance.noted("run", 2)
    time.sleep(0.5)
    assert len(instance.notes("run")) == 2
    config_of(instance, broker.url, queue_table(queue_name))
    reloaded(instance)
    instance.noted("run", 10)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


FAILING = """
def handler(message):
    note("run", message)
    raise ValueError(message.body["n"])
"""


def test_other_rules_are_for_the_next_failure(broker, queue_name, start):
    later = '[consumer_config.framework.recovery]\nimmediate = 0\ndelays = ["1h"]\n'
    instance = start(broker.url, queue_table(queue_name), FAILING, extra=later).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: len(instance.store()) == 1, "it is deferred")
    now = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n"
    config_of(instance, broker.url, queue_table(queue_name), now)
    assert "consumer_config.framework.recovery.delays" in reloaded(instance)
    publish(broker.url, queue_name, [2])
    until(lambda: len(instance.store()) == 2, "both are there")
    assert [row.state for row in instance.store()] == ["deferred", "quarantined"]
    assert instance.stop() == 0


def test_bindings_come_and_go(broker, queue_name, start, stream):
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    with stream(queue_name) as published:
        instance.noted("run", 10)
        keys = [queue_name, f"{queue_name}.a", f"{queue_name}.b"]
        config_of(instance, broker.url, queue_table(queue_name, keys=keys))
        assert reloaded(instance)["bindings"][0] == "reload"
        publish(broker.url, keys[1], [100_001])
        publish(broker.url, keys[2], [100_002])
        until(lambda: {100_001, 100_002} <= handled(instance), "the new ones bring messages")
        config_of(instance, broker.url, queue_table(queue_name, keys=keys[:2]))
        reloaded(instance)
        until(lambda: keys[2] not in bindings_of(broker, queue_name), "it is gone")
        assert {queue_name, keys[1]} <= bindings_of(broker, queue_name)
    until(lambda: set(published) <= handled(instance), "all that was published")
    assert instance.stop() == 0
    assert max(Counter(n["body"]["n"] for n in instance.notes("run")).values()) == 1


def handled(instance):
    return {note["body"]["n"] for note in instance.notes("run")}


def bindings_of(broker, queue):
    listed = json.loads(broker.ctl("list_bindings", "--formatter", "json"))
    return {one["routing_key"] for one in listed if one["destination_name"] == queue} - {""}


def test_the_log_follows_its_level(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    assert "DEBUG" not in instance.log
    quiet = (
        "[log_config]\nversion = 1\ndisable_existing_loggers = false\n"
        '[log_config.formatters.plain]\nformat = "%(levelname)s:%(name)s:%(message)s"\n'
        '[log_config.handlers.out]\nclass = "logging.StreamHandler"\nformatter = "plain"\n'
        '[log_config.root]\nlevel = "WARNING"\nhandlers = ["out"]\n'
        '[log_config.loggers.consumer_framework]\nlevel = "DEBUG"\n'
    )
    config_of(instance, broker.url, queue_table(queue_name), quiet)
    assert reloaded(instance) == {"log_config": ("reload", "new")}
    publish(broker.url, queue_name, [1])
    instance.noted("run", 1)
    until(lambda: "DEBUG:consumer_framework" in instance.log, "the new level")
    config_of(instance, broker.url, queue_table(queue_name))
    assert reloaded(instance) == {"log_config": ("reload", "gone")}
    after = len(instance.log)
    publish(broker.url, queue_name, [2])
    instance.noted("run", 2)
    assert "DEBUG" not in instance.log[after:]
    assert instance.stop() == 0


def test_nothing_new_is_no_change_and_the_broker_is_not_asked(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    assert reloaded(instance) == {}
    assert instance.log.count("consuming from") == 1
    assert instance.stop() == 0


# Refused reloads.


def test_a_file_that_is_wrong_is_refused_with_all_that_is_wrong(broker, queue_name, start, stream):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    with stream(queue_name) as published:
        instance.noted("end", 10)
        bad = '[consumer_config]\nlable = "x"\n[consumer_config.framework]\nslots = 2\n'
        config_of(instance, broker.url, queue_table(queue_name), bad)
        (problem,) = refused(instance)
        assert problem["source"] == str(instance.configuration)
        assert problem["path"] == "consumer_config.lable"
        assert 'did you mean "label"?' in problem["cure"]
        until(lambda: instance.told("reload refused: consumer_config.lable"), "the status says so")
        bad = '[consumer_config.framework]\nslots = 99\nrate = "fast"\nbatches = 2\n'
        config_of(instance, broker.url, queue_table(queue_name), bad)
        paths = {problem["path"] for problem in refused(instance)}
        framework = "consumer_config.framework"
        assert paths == {f"{framework}.slots", f"{framework}.rate", f"{framework}.batches"}
        instance.configuration.write_text("amqp_url = ")
        assert "is not TOML" in refused(instance)[0]["message"]
        done = reload(instance)
        assert done.returncode == 1
        assert "goes on with its old settings" in done.stderr
        assert f"{instance.configuration}: is not TOML" in done.stderr
        assert "Traceback" not in instance.log
        config_of(instance, broker.url, queue_table(queue_name))
        assert reloaded(instance) == {}
        until(lambda: "reload refused" not in instance.notifications[-1], "the status says no more")
    handled_once(instance, "end", published)
    assert {n["label"] for n in instance.notes("end")} == {"first"}
    assert instance.stop() == 0


def test_a_setup_that_fails_leaves_everything_as_it_was(broker, queue_name, start, stream):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    with stream(queue_name) as published:
        instance.noted("end", 10)
        bad = (
            '[consumer_config]\nlabel = "bad"\nfail_setup = true\n'
            "[consumer_config.framework]\nslots = 4\n"
        )
        keys = [queue_name, f"{queue_name}.more"]
        config_of(instance, broker.url, queue_table(queue_name, keys=keys), bad)
        (problem,) = refused(instance)
        assert "RuntimeError: there is no such table" in problem["message"]
        before = len(instance.notes("end"))
        instance.noted("end", before + 20)
        until(lambda: bindings_of(broker, queue_name) == {queue_name}, "no binding is left")
    notes = handled_once(instance, "end", published)
    assert {n["label"] for n in notes} == {"first"}
    assert instance.stop() == 0
    assert [(n["event"], n["label"]) for n in instance.notes() if n["event"] == "teardown"] == [
        ("teardown", "first")
    ]


def test_a_binding_that_the_broker_refuses_is_a_reason_to_refuse_the_file(
    broker, queue_name, start
):
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    queues = queue_table(queue_name, keys=[queue_name, f"{queue_name}.more"])
    queues += f'[[bindings]]\nqueue = "{queue_name}"\nexchange = "no.such"\nrouting_keys = ["x"]\n'
    config_of(instance, broker.url, queues)
    (problem,) = refused(instance)
    assert problem["path"] == "bindings"
    assert "no.such" in problem["message"]
    until(lambda: bindings_of(broker, queue_name) == {queue_name}, "no binding is left")
    publish(broker.url, queue_name, [1])
    instance.noted("run", 1)
    assert instance.stop() == 0


def test_logging_that_cannot_be_set_up_leaves_the_old_one(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    bad = '[log_config]\nversion = 1\n[log_config.root]\nhandlers = ["none"]\n'
    config_of(instance, broker.url, queue_table(queue_name), bad)
    (problem,) = refused(instance)
    assert problem["path"] == "log_config"
    assert "the reload of" in instance.log
    assert instance.stop() == 0
    assert "stopped with exit code 0" in instance.log


def test_an_instance_that_does_not_run_cannot_reload(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    assert instance.stop() == 0
    done = reload(instance)
    assert done.returncode == 1
    assert "does not run" in done.stderr


def test_a_reload_during_a_drain_is_refused(broker, queue_name, start):
    slow = "[consumer_config]\nseconds = 3\n"
    instance = start(broker.url, queue_table(queue_name), CONSUMER, extra=slow).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("begin", 1)
    instance.send(signal.SIGTERM)
    until(lambda: "SIGTERM: stopping" in instance.log, "it drains")
    config_of(instance, broker.url, queue_table(queue_name), '[consumer_config]\nlabel = "x"\n')
    (problem,) = refused(instance)
    assert "is stopping" in problem["message"]
    assert instance.wait() == 0
    assert {n["label"] for n in instance.notes()} == {"first"}


# Settings that take a restart.


def test_settings_that_take_a_restart_are_named_and_the_rest_is_in_force(
    broker, queue_name, start, proxy
):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    other = f"{queue_name}.other"
    extra = (
        'client_properties = {app = "secret-name"}\n'
        '[consumer_config]\nlabel = "second"\n'
        '[consumer_config.framework]\nslots = 2\nordering = "key"\nordering_key = "topic"\n'
    )
    queues = queue_table(queue_name) + queue_table(other)
    config_of(instance, proxy.url_for(broker.url), queues, extra)
    changed = reloaded(instance)
    takes = {path: what for path, (what, _) in changed.items()}
    assert takes == {
        "amqp_url": "restart",
        "client_properties": "restart",
        f'queues."{other}"': "restart",
        "bindings": "reload",
        "consumer_config.label": "reload",
        "consumer_config.framework.slots": "reload",
        "consumer_config.framework.ordering": "restart",
        "consumer_config.framework.ordering_key": "restart",
    }
    until(lambda: instance.told("restart it for amqp_url, client_properties"), "the status says so")
    publish(broker.url, queue_name, [1])
    assert instance.noted("end", 1)[0]["label"] == "second"
    assert bindings_of(broker, queue_name) == {queue_name}
    assert "secret-name" not in instance.log
    assert "guest:guest" not in instance.log
    done = reload(instance)
    assert done.returncode == 0
    assert "amqp_url: changed: takes a restart" in done.stdout, "and it does not forget"
    assert instance.stop() == 0
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(other)


def test_a_queue_that_is_not_in_the_file_any_more_keeps_its_bindings(broker, queue_name, start):
    other = f"{queue_name}.other"
    instance = start(broker.url, queue_table(queue_name), FUNCTION).ready()
    config_of(instance, broker.url, queue_table(other))
    assert reloaded(instance)[f'queues."{queue_name}"'] == ("restart", "gone")
    publish(broker.url, queue_name, [1])
    instance.noted("run", 1)
    assert instance.stop() == 0


def test_another_callback_is_checked_and_waits_with_its_settings(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    module = instance.configuration.with_name("other_module.py")
    module.write_text("def handler(message): pass\n")
    text = instance.configuration.read_text()
    changed = re.sub(r'callback = "[^"]*"', 'callback = "other_module:nothing"', text)
    instance.configuration.write_text(changed)
    assert refused(instance)[0]["path"] == "callback"
    module.write_text("def handler(message): pass\ndef nothing(message): pass\n")
    instance.configuration.write_text(
        changed.replace("nothing", "handler") + "[consumer_config]\nanything = 1\n"
    )
    takes = {path: what for path, (what, _) in reloaded(instance).items()}
    assert takes == {"callback": "restart", "consumer_config.anything": "restart"}
    publish(broker.url, queue_name, [1])
    assert instance.noted("end", 1)[0]["label"] == "first"
    assert instance.stop() == 0


BATCHES = """
from consumer_framework import BatchConsumer

class handler(BatchConsumer):
    def handle_batch(self, messages):
        for message in messages:
            note("run", message, size=len(messages))
"""


def test_a_setting_that_conflicts_with_one_that_takes_a_restart_is_refused(
    broker, queue_name, start
):
    framework = "[consumer_config.framework]\n"
    strict = f'{framework}ordering = "strict"\n'
    instance = start(broker.url, queue_table(queue_name), BATCHES, extra=strict).ready()
    batches = f'{framework}ordering = "none"\nbatch = {{size = 5}}\n'
    config_of(instance, broker.url, queue_table(queue_name), batches)
    first, second = refused(instance)
    assert first["message"] == "does not go together with what takes a restart"
    assert second["path"] == "consumer_config.framework.batch"
    assert instance.stop() == 0


def test_more_at_once_than_the_flight_recorder_has_room_for_takes_a_restart(
    broker, queue_name, start
):
    instance = start(broker.url, queue_table(queue_name), BATCHES).ready()
    many = "[consumer_config.framework]\nslots = 64\nread_ahead = 7\nbatch = {size = 50}\n"
    config_of(instance, broker.url, queue_table(queue_name), many)
    takes = {path.rpartition(".")[2]: what for path, (what, _) in reloaded(instance).items()}
    assert takes == {"slots": "restart", "batch": "restart", "read_ahead": "reload"}
    publish(broker.url, queue_name, range(5))
    instance.noted("run", 5)
    assert instance.stop() == 0


def test_a_binding_that_the_broker_does_not_let_go_stays_with_a_warning(broker, queue_name, start):
    broker.add_user("binder", "binder", configure=".*", write=".*", read=".*")
    url = broker.url.replace("guest:guest", "binder:binder")
    keys = [queue_name, f"{queue_name}.more"]
    instance = start(url, queue_table(queue_name, keys=keys), FUNCTION).ready()
    broker.ctl("set_permissions", "binder", "", "", "test.*")
    config_of(instance, url, queue_table(queue_name, keys=keys[:1]))
    assert reloaded(instance)["bindings"][0] == "reload"
    until(lambda: "still bound, and messages still come by it" in instance.log, "a warning")
    publish(broker.url, keys[1], [1])
    instance.noted("run", 1)
    assert instance.stop() == 0


# Reloads by the service manager.


def test_a_hangup_reloads_and_the_service_manager_is_told(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    before = len(instance.notifications)
    config_of(instance, broker.url, queue_table(queue_name), '[consumer_config]\nlabel = "x"\n')
    asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    instance.send(signal.SIGHUP)
    told = until(lambda: reload_notifications(instance, before), "RELOADING and READY")
    begun, ended = told
    lines = begun.splitlines()
    assert lines[0] == "RELOADING=1"
    stamp = next(line for line in lines if line.startswith("MONOTONIC_USEC="))
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert asked <= int(stamp.partition("=")[2]) <= now
    assert ended.startswith("READY=1")
    publish(broker.url, queue_name, [1])
    assert instance.noted("end", 1)[0]["label"] == "x"
    before = len(instance.notifications)
    instance.configuration.write_text("nonsense")
    instance.send(signal.SIGHUP)
    begun, ended = until(lambda: reload_notifications(instance, before), "RELOADING and READY")
    assert "reload refused" in ended
    assert "is not TOML" in instance.log
    publish(broker.url, queue_name, [2])
    assert instance.noted("end", 2)[1]["label"] == "x"
    assert instance.stop() == 0


def reload_notifications(instance, before):
    later = [n for n in instance.notifications[before:] if not n.startswith("STATUS=")]
    later = [n for n in later if n.startswith(("RELOADING=1", "READY=1"))]
    return later if len(later) == 2 and later[0].startswith("RELOADING") else None


def test_a_hangup_before_there_is_a_connection_does_not_make_it_ready(
    broker, queue_name, proxy, start
):
    proxy.refuse()
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), CONSUMER)
    until(lambda: instance.told("STATUS=Waiting for the broker"), "it waits")
    url = proxy.url_for(broker.url)
    keys = [queue_name, f"{queue_name}.more"]
    config_of(instance, url, queue_table(queue_name, keys=keys), '[consumer_config]\nlabel = "x"\n')
    instance.send(signal.SIGHUP)
    until(lambda: "reloaded" in instance.log, "it is in force")
    assert not instance.told("READY=1")
    assert not instance.told("RELOADING=1")
    proxy.accept()
    instance.ready()
    publish(broker.url, keys[1], [1])
    assert instance.noted("end", 1)[0]["label"] == "x"
    assert instance.stop() == 0


def test_reloads_that_come_together_are_carried_out_one_after_the_other(
    broker, queue_name, start, stream
):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    with stream(queue_name) as published:
        instance.noted("end", 10)
        done = []
        for number in range(5):
            extra = f'[consumer_config]\nlabel = "label-{number}"\n'
            config_of(instance, broker.url, queue_table(queue_name), extra)
            instance.send(signal.SIGHUP)
            done.append(ask(instance)[-1]["result"])
        assert set(done) <= {"reloaded", "unchanged"}
        before = len(instance.notes("end"))
        instance.noted("end", before + 10)
    notes = handled_once(instance, "end", published)
    assert notes[-1]["label"] == "label-4"
    assert instance.stop() == 0
    labels = Counter(n["label"] for n in instance.notes() if n["event"] == "setup")
    assert labels == Counter(n["label"] for n in instance.notes() if n["event"] == "teardown")


def test_a_process_that_is_killed_amid_a_reload_has_the_new_settings_when_it_is_back(
    broker, queue_name, start, stream
):
    instance = start(broker.url, queue_table(queue_name), CONSUMER).ready()
    with stream(queue_name) as published:
        instance.noted("end", 10)
        extra = '[consumer_config]\nlabel = "second"\n'
        config_of(instance, broker.url, queue_table(queue_name), extra)
        instance.send(signal.SIGHUP)
        instance.send(signal.SIGKILL)
        instance.wait()
        instance.start().ready()
        before = len(instance.notes("end"))
        assert instance.noted("end", before + 10)[-1]["label"] == "second"
    until(lambda: {n["body"]["n"] for n in instance.notes("end")} == set(published), "none is lost")
    assert instance.stop() == 0


def test_a_stop_amid_a_reload_stops_and_ends_both_handlers(broker, queue_name, start):
    slow_setup = CONSUMER.replace("    def setup(self):\n", SLOW_SETUP)
    instance = start(broker.url, queue_table(queue_name), slow_setup).ready()
    config_of(instance, broker.url, queue_table(queue_name), '[consumer_config]\nlabel = "x"\n')
    instance.send(signal.SIGHUP)
    until(lambda: "reloading" in instance.log, "it has begun")
    time.sleep(0.3)
    assert instance.stop() == 0
    labels = Counter((n["event"], n["label"]) for n in instance.notes())
    assert labels == {("setup", "first"): 1, ("teardown", "first"): 1} | {
        (event, "x"): 1 for event in ("setup", "teardown")
    }


SLOW_SETUP = """    def setup(self):
        if self.config.label == "x":
            time.sleep(1.5)
"""


# Queues with an order.


def test_a_queue_with_a_single_active_consumer_gets_its_prefetch_with_another_connection(
    broker, queue_name, start, stream
):
    def text(count):
        return f"[qos]\nprefetch_count = {count}\n[consumer_config]\nseconds = 0.01\n"

    queues = queue_table(queue_name, arguments={"x-single-active-consumer": True})
    one = start(broker.url, queues, CONSUMER, extra=text(5)).ready()
    two = start(broker.url, queues, CONSUMER, extra=text(5)).ready()
    with stream(queue_name, 0.005) as published:
        one.noted("end", 20)
        config_of(one, broker.url, queues, text(20))
        steps = [answer["step"] for answer in ask(one)[:-1]]
        assert any("connecting again" in step for step in steps)
        until(lambda: two.notes("end"), "the other one takes over")
        assert not any("step" in answer for answer in ask(one)), "once is enough"
        time.sleep(0.5)
    ends = lambda: [*one.notes("end"), *two.notes("end")]  # noqa: E731 -- asked again and again
    until(lambda: len(ends()) >= len(published), "all", 60)
    notes = sorted(ends(), key=lambda note: note["at"])
    assert [note["body"]["n"] for note in notes] == published, "in order, each once"
    assert one.stop() == two.stop() == 0
