# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer replay``: the real consumer on recorded messages, without a broker."""

from __future__ import annotations

import asyncio
import json
import os
import pstats
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fedora_messaging import config as upstream_config

from consumer_framework.cli import main

FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")
RECORDED = Path("shared", "data", "fedora-messages.jsonl")
SHARED = next(
    (above / RECORDED for above in Path(__file__).parents if (above / RECORDED).exists()), RECORDED
)

CONSUMER = """
import asyncio, os, socket, time
from pathlib import Path
from typing import Any
from fedora_messaging import api
from consumer_framework import (
    BatchConsumer, Consumer, Defer, DependencyFault, Drop, Halt, Quarantine, Retry, Skip,
)

tries = {}

def judge(message):
    body = message.body
    n = tries[message.id] = tries.get(message.id, 0) + 1
    if n <= body.get("fails", 0):
        raise ValueError(f"no {n}")
    signals = {
        "skip": Skip, "drop": Drop, "quarantine": Quarantine, "retry": Retry,
        "dependency": DependencyFault,
    }
    if body.get("then") in signals:
        raise signals[body["then"]]("as told")
    if body.get("then") == "halt":
        raise Halt(body["code"], "as told", requeue=body.get("requeue", False))
    if body.get("then") == "defer":
        raise Defer(time.time() + 1)

class Plain(Consumer):
    def handle(self, message):
        judge(message)
        for _ in range(message.body.get("publishes", 0)):
            api.publish(api.Message(topic="published", body={}))
        if message.body.get("prints"):
            print("from the handler")
        if message.body.get("writes"):
            Path(self.state_dir, "file").write_text(str(os.environ["STATE_DIRECTORY"]))
            Path(message.body["writes"]).write_text(os.environ["STATE_DIRECTORY"])

class Slow(Consumer):
    async def handle(self, message):
        judge(message)
        await asyncio.sleep(message.body.get("sleeps", 0))
        if port := message.body.get("port"):
            reader, writer = await asyncio.wait_for(asyncio.open_connection("localhost", port), 30)
            assert await asyncio.wait_for(reader.readline(), 30) == b"hello\\n"
            writer.close()
        if message.body.get("thread"):
            await asyncio.to_thread(time.sleep, 0.05)

class Keyed(Consumer):
    def ordering_key(self, message):
        return message.body["key"]
    def handle(self, message):
        judge(message)

class Batch(BatchConsumer):
    def handle_batch(self, messages):
        for message in messages:
            judge(message)

class Loops:
    def __init__(self):
        loop = asyncio.get_event_loop()
        loop.run_until_complete(asyncio.sleep(3))
        loop.run_until_complete(asyncio.to_thread(time.sleep, 0.01))
    def __call__(self, message):
        judge(message)

class Broken(Consumer):
    def setup(self):
        raise RuntimeError("no database")
    def handle(self, message):
        pass

class Untidy(Consumer):
    def handle(self, message):
        pass
    def teardown(self):
        raise RuntimeError("no goodbye")

class Stuck(Consumer):
    def handle(self, message):
        print("begun", flush=True)
        time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _the_process_stays_as_it_is(monkeypatch):
    for name, value in dict(upstream_config.conf).items():
        monkeypatch.setitem(upstream_config.conf, name, value)
    monkeypatch.setattr(upstream_config.conf, "loaded", upstream_config.conf.loaded)
    monkeypatch.setattr("consumer_framework.adapters.log.set_up", lambda *_, **__: None)
    monkeypatch.setattr("consumer_framework.runtime.reactor.install", lambda: None)
    yield
    asyncio.set_event_loop(None)


class Place:
    """A directory with a consumer, its configuration and recorded messages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "replayed.py").write_text(CONSUMER)
        self.conf = directory / "sample.toml"
        self.file = directory / "recorded.jsonl"
        self.configure("Plain")

    def configure(self, name: str, settings: str = "") -> None:
        callback = f"{self.directory / 'replayed.py'}:{name}"
        self.callback = ["--callback-file", callback]
        self.conf.write_text(settings)

    def record(self, *bodies, topic="a.topic"):
        lines = [
            json.dumps({"topic": topic, "id": f"m{n}", "body": body, "headers": {}})
            for n, body in enumerate(bodies)
        ]
        self.file.write_text("".join(f"{line}\n" for line in lines))

    def words(self, *words):
        return ["replay", "--conf", str(self.conf), *self.callback, *map(str, words)]

    def replay(self, *words, code=0, files=None, given=None):
        words = self.words(*words, *([self.file] if files is None else files))
        result = CliRunner().invoke(main, words, input=given)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    def ends(self, *words, code=0):
        lines = self.replay("--json", *words, code=code).stdout.splitlines()
        *ended, summary = map(json.loads, lines)
        return {each["id"]: each for each in ended}, summary


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def fates(ends):
    return {name: each["ended"] for name, each in ends.items()}


def test_each_message_has_its_end_and_the_delays_of_retries_take_no_time(place):
    place.record(
        {},
        {"fails": 3},
        {"fails": 9},
        {"then": "skip"},
        {"then": "drop"},
        {"then": "quarantine"},
    )
    ends, summary = place.ends(code=1)
    assert fates(ends) == {
        "m0": "succeeded",
        "m1": "succeeded",
        "m2": "quarantined",
        "m3": "skipped",
        "m4": "dropped",
        "m5": "quarantined",
    }
    assert [len(ends[name]["failures"]) for name in ("m0", "m1", "m2")] == [0, 3, 5]
    assert ends["m2"]["failures"][-1]["message"] == "no 5"
    assert "replayed.py" in ends["m2"]["failures"][-1]["traceback"]
    # 10 s, 1 min and 5 min.
    assert 370 <= summary["virtual_seconds"] < 380
    assert summary["ended"] == {"succeeded": 2, "quarantined": 2, "skipped": 1, "dropped": 1}
    assert sorted(summary["causes"].values()) == [1, 1]
    assert not summary["good"]


def test_messages_that_are_done_or_dropped_on_purpose_are_a_success(place):
    place.record({}, {"then": "skip"}, {"then": "drop"})
    assert place.ends()[1]["good"]


@pytest.mark.parametrize(
    ("on_exhausted", "fate"),
    [("drop", "exhausted"), ("reject", "exhausted"), ("requeue", "requeued"), ("halt", "halted")],
)
def test_the_settings_of_the_file_are_in_force(place, on_exhausted, fate):
    recovery = f'immediate = 0\ndelays = []\non_exhausted = "{on_exhausted}"'
    place.configure("Plain", f"[consumer_config.framework.recovery]\n{recovery}\n")
    place.record({"fails": 9})
    assert fates(place.ends(code=1)[0]) == {"m0": fate}


def test_a_message_that_is_none_for_the_consumer_is_invalid(place):
    place.file.write_text('{"topic": "a", "body": []}\n')
    ends, _ = place.ends(code=1)
    assert [each["ended"] for each in ends.values()] == ["invalid"]


def test_a_halt_ends_the_replay_and_the_others_are_unfinished(place):
    place.configure("Plain", "[qos]\nprefetch_count = 1\n")
    place.record({}, {"then": "halt", "code": 3}, {})
    ends, summary = place.ends(code=1)
    assert fates(ends) == {"m0": "succeeded", "m1": "halted", "m2": "unfinished"}
    assert summary["cut_short"] == "the consumer halted: as told"


def test_a_halt_with_exit_code_0_is_a_success_of_its_message(place):
    place.record({"then": "halt", "code": 0})
    assert fates(place.ends()[0]) == {"m0": "halted"}


def test_a_broken_dependency_pauses_the_consumer_and_the_replay_does_not_wait_for_ever(place):
    place.record(*[{"then": "dependency"}] * 6)
    ends, summary = place.ends(code=1)
    assert set(fates(ends).values()) == {"unfinished"}
    assert summary["cut_short"].startswith("paused for 60 min of virtual time")


def test_a_message_that_is_never_done_is_given_up(place):
    place.record({"then": "defer"}, {})
    ends, _ = place.ends(code=1)
    assert fates(ends) == {"m0": "unfinished", "m1": "succeeded"}
    assert ends["m0"]["reason"].startswith("given up after 100 runs")


def test_a_time_limit_is_one_of_virtual_time(place):
    place.record({"fails": 9}, {})
    ends, summary = place.ends("--time-limit", "30s", code=1)
    assert fates(ends) == {"m0": "unfinished", "m1": "succeeded"}
    assert summary["cut_short"] == "more than 30 s of virtual time have passed"
    place.replay("--time-limit", "soon", code=2)


def test_published_messages_are_counted_and_not_sent(place):
    place.record({"publishes": 2}, {"publishes": 1, "fails": 1}, {"publishes": 1, "fails": 9})
    assert place.ends(code=1)[1]["published"] == 3
    assert "3 messages published by the consumer: counted, and not sent" in (
        place.replay("--limit", 2).output
    )


def test_the_state_directory_of_the_instance_is_not_touched(place, monkeypatch, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(own))
    seen = tmp_path / "seen"
    place.record({"writes": str(seen)}, {"fails": 9})
    place.replay(code=1)
    assert list(own.iterdir()) == []
    assert not Path(seen.read_text()).exists()
    assert os.environ["STATE_DIRECTORY"] == str(own)


def test_a_print_of_the_handler_does_not_disturb_json(place):
    place.record({"prints": True})
    result = place.replay("--json")
    assert [json.loads(line)["good"] for line in result.stdout.splitlines()] == [True, True]
    assert "from the handler" in result.stderr


def test_followers_of_a_quarantined_message_end_with_it(place):
    place.configure("Keyed", '[consumer_config.framework]\nordering = "key"\n')
    place.record({"key": "a", "fails": 9}, {"key": "a"}, {"key": "b"})
    assert fates(place.ends(code=1)[0]) == {
        "m0": "quarantined",
        "m1": "quarantined",
        "m2": "succeeded",
    }


def test_batches_run_as_batches_and_fail_one_by_one(place):
    place.configure("Batch")
    place.record({}, {"fails": 9}, {})
    ends, _ = place.ends(code=1)
    assert fates(ends) == {"m0": "succeeded", "m1": "quarantined", "m2": "succeeded"}


def test_a_long_file_runs_in_portions_and_each_message_has_one_end(place):
    place.configure("Plain", "[consumer_config.framework.recovery]\ndelays = []\n")
    place.record(
        *[{"fails": 9 * (n % 50 == 0), "then": "skip" * (n % 3 == 1)} for n in range(2500)]
    )
    ends, summary = place.ends(code=1)
    assert len(ends) == summary["messages"] == 2500
    assert summary["ended"] == {"succeeded": 1633, "skipped": 817, "quarantined": 50}


# The world outside.


@pytest.fixture
def greeter():
    """A server that says hello after a moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    threading.Event().wait(0.05)
                    connection.sendall(b"hello\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_coroutine_may_use_the_network_while_its_time_is_virtual(place, greeter):
    place.configure("Slow")
    place.record({"port": greeter}, {"port": greeter, "sleeps": 100, "fails": 2})
    ends, summary = place.ends()
    assert fates(ends) == {"m0": "succeeded", "m1": "succeeded"}
    assert summary["virtual_seconds"] > 110


def test_a_coroutine_may_wait_for_a_thread_and_for_a_large_body(place):
    place.configure("Slow")
    place.record({"thread": True}, {"sleeps": 1, "text": "x" * 100_000})
    assert set(fates(place.ends()[0]).values()) == {"succeeded"}


def test_a_plain_class_may_run_the_loop_in_its_constructor(place):
    place.configure("Loops")
    place.record({}, {"fails": 1})
    assert set(fates(place.ends()[0]).values()) == {"succeeded"}


# Selection, and bad lines.


def test_topics_conditions_and_a_limit_select_messages(place):
    lines = [
        json.dumps({"topic": topic, "id": name, "body": {"n": n}})
        for topic, name, n in [("a.b", "1", 1), ("a.b", "2", 2), ("a.c", "3", 2), ("a.b", "4", 2)]
    ]
    place.file.write_text("\n".join(lines))
    assert set(place.ends("--topic", "*.b", "--where", "body.n=2")[0]) == {"2", "4"}
    assert set(place.ends("--topic", "*.b", "--where", "body.n=2", "--limit", 1)[0]) == {"2"}
    assert "no message fits" in place.replay("--topic", "x").output


def test_several_files_and_standard_input_are_read_in_their_order(place, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"topic": "t", "body": {}, "id": "other"}')
    place.record({})
    given = '{"topic": "t", "body": {}, "id": "in"}\n'
    result = place.replay("--json", files=[place.file, "-", other], given=given)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("id") for line in lines] == ["m0", "in", "other", None]
    assert lines[1]["file"] == "standard input"


def test_a_file_with_a_bad_line_runs_nothing_unless_told_to_go_on(place):
    place.record({}, {})
    place.file.write_text(place.file.read_text() + "nonsense\n")
    result = place.replay(code=65)
    assert f"{place.file}:3: is no JSON" in result.output
    assert "nothing was run" in result.output
    ends, summary = place.ends("--keep-going", code=1)
    assert (len(ends), summary["bad_lines"], summary["good"]) == (2, 1, False)
    text = place.replay("--keep-going", code=1).output
    assert text.count(":3: is no JSON") == 1
    assert "left out: 1 line with no message" in text


def test_a_bad_line_of_standard_input_ends_the_replay_with_the_summary_so_far(place):
    given = '{"topic": "t", "body": {}, "id": "in"}\nnonsense\n'
    result = place.replay("--json", files=["-"], given=given, code=65)
    assert json.loads(result.stdout.splitlines()[-1])["messages"] <= 1
    assert "standard input:2" in result.stderr
    text = place.replay(files=["-"], given="nonsense\n" * 30, code=1, *["--keep-going"]).output  # noqa: B026
    assert "more lines are no message, and not shown" in text


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ([], "name a file of messages, or - for standard input"),
        (["gone.jsonl"], "gone.jsonl: there is no such file"),
        (["."], ".: is a directory; name a file in it"),
        (["/dev/null"], "/dev/null: is no regular file, and can be read only once"),
        (["-", "-"], "standard input can be read once"),
    ],
)
def test_a_command_line_without_messages_says_what_is_missing(place, files, text):
    assert text in place.replay(files=files, code=2).output


def test_a_file_that_cannot_be_read_says_so(place, monkeypatch):
    place.record({})

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("consumer_framework.kit.recorded.read", refuse)
    assert "cannot be read: Permission denied" in place.replay(code=2).output


# A consumer that cannot.


def test_a_consumer_that_cannot_be_set_up_says_why(place):
    place.configure("Broken")
    place.record({})
    text = place.replay(code=13).output
    assert "Broken cannot be set up: RuntimeError: no database" in text


def test_a_consumer_that_cannot_be_torn_down_says_why_after_the_summary(place):
    place.configure("Untidy")
    place.record({})
    text = place.replay(code=13).output
    assert "1 message: 1 succeeded" in text
    assert "cannot be torn down: RuntimeError: no goodbye" in text


def test_a_configuration_that_cannot_be_used_says_so(place):
    place.record({})
    place.configure("Missing")
    place.replay(code=78)
    place.configure("Plain", "nonsense = 1")
    assert "nonsense" in place.replay(code=78).output
    place.conf.unlink()
    assert f"{place.conf}: there is no such file; create it" in place.replay(code=78).output


# Output.


def test_a_person_sees_each_end_with_its_causes_and_a_summary(place):
    place.record({}, {"fails": 9}, topic="a.topic")
    text = place.replay(code=1).output
    assert f"succeeded    {place.file}:1  a.topic" in text
    assert f"quarantined  {place.file}:2  a.topic: ValueError: no 5 (5 attempts)" in text
    assert "    attempt 5  ValueError: no 5 in " in text
    assert "\n2 messages: 1 succeeded, 1 quarantined\n" in text
    assert "6 min of virtual time passed" in text
    assert "    1  ValueError in " in text
    shown = place.replay("--failures", "--traceback", code=1).output
    assert "succeeded    " not in shown
    assert "Traceback (most recent call last)" in shown


@pytest.mark.parametrize("name", ["Plain", "Slow", "Batch"])
def test_a_profile_has_the_functions_of_the_handler(place, tmp_path, name):
    place.configure(name)
    place.record({}, {"fails": 1}, {"sleeps": 1})
    target = tmp_path / "handler.prof"
    text = place.replay("--profile", "--profile-to", target).output
    assert "judge" in text
    stats: Any = pstats.Stats(str(target))
    assert any(key[2] == "judge" for key in stats.stats)
    assert "no profile: the handler was not called" in (
        place.replay("--profile", "--topic", "x").output
    )
    gone = tmp_path / "gone" / "handler.prof"
    assert "cannot be written" in place.replay("--profile-to", gone, code=74).output


def run(place, *words, **more):
    environment = {key: os.environ[key] for key in os.environ if key != "COLUMNS"} | more
    return subprocess.Popen(
        [FM_CONSUMER, *place.words(*words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_ctrl_c_ends_with_the_summary_so_far_even_if_the_handler_does_not_return(place):
    place.configure("Stuck")
    place.record({}, {})
    with run(place, place.file) as process:
        begun = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert (begun, process.returncode) == ("begun\n", 130), err
    assert "2 messages: 2 unfinished\nnot run to the end: interrupted" in out


def test_a_handler_that_does_not_return_leaves_no_directory_behind(place):
    place.configure("Stuck")
    place.record({})
    temporary = place.directory / "temporary"
    temporary.mkdir()
    with run(place, place.file, TMPDIR=str(temporary)) as process:
        assert process.stdout.readline() == "begun\n"
        assert [path.name[:10] for path in temporary.iterdir()] == ["fm-replay-"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert list(temporary.iterdir()) == []


def test_nobody_who_reads_the_output_is_no_traceback(place):
    place.record(*[{}] * 50)
    with run(place, place.file) as process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait(30)
    assert "Traceback" not in err


@pytest.mark.skipif(not SHARED.exists(), reason="the recorded messages of Fedora are not here")
def test_all_recorded_messages_of_fedora_run(place):
    place.file = SHARED
    ends, summary = place.ends()
    assert summary["messages"] == len(ends) == len(SHARED.read_text().split("\n")) - 1
    assert set(summary["ended"]) == {"succeeded"}
