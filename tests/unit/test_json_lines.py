# SPDX-License-Identifier: GPL-2.0-or-later
"""`AppendJsonLines` appends each message to a file, and acknowledges what is on the disk."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import threading

import pytest
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.message import Message

from consumer_framework.core.disposition import Ack, Hold, Quarantine
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.testing import Harness

CONSUMER = "consumer_framework.kit.json_lines:AppendJsonLines"
ALONE = {"batch": {"size": 1}}


def message(n=0, **body):
    return Message(topic="org.example.build", body={"n": n, **body})


def numbers(file):
    return [json.loads(line)["body"]["n"] for line in file.read_text().splitlines()]


def formers(file):
    return sorted(p for p in file.parent.iterdir() if p.name.startswith(f"{file.name}."))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "messages.jsonl"


def append(file, *sent, **config):
    with Harness(CONSUMER, config={"path": str(file), **config}, settings=ALONE) as run:
        for each in sent:
            assert isinstance(run.deliver(each), Ack)


def test_each_message_is_a_line_and_a_later_start_goes_on_at_the_end(file):
    first = message(1)
    append(file, first, message(2))
    append(file, message(3))
    assert numbers(file) == [1, 2, 3]
    line = json.loads(file.read_text().splitlines()[0])
    assert line["id"] == first.id
    assert line["topic"] == "org.example.build"


def test_a_line_may_be_the_body_alone(file):
    append(file, message(1), content="body")
    assert json.loads(file.read_text()) == {"n": 1}


@pytest.mark.parametrize("rest", ['{"body": {"n":', "x" * 200_000])
def test_a_line_that_a_crash_left_without_an_end_is_removed(file, rest):
    append(file, message(1))
    with file.open("a") as stream:
        stream.write(rest)
    append(file, message(2))
    assert numbers(file) == [1, 2]


def test_a_file_that_is_one_broken_line_becomes_empty(file):
    file.write_text("{")
    append(file, message(1))
    assert numbers(file) == [1]


def test_a_batch_is_one_write_with_its_lines_in_order(file):
    settings = {"batch": {"size": 3, "seconds": 60}, "slots": 1}
    with Harness(CONSUMER, config={"path": str(file)}, settings=settings) as run:
        sent = [message(n) for n in range(3)]
        for each in sent:
            run.deliver(each)
        run.advance("1s")
        assert run.acked == sent
    assert numbers(file) == [0, 1, 2]


def test_a_message_that_is_no_json_is_quarantined_and_the_others_are_written(file):
    settings = {"batch": {"size": 2, "seconds": 60}}
    with Harness(CONSUMER, config={"path": str(file)}, settings=settings) as run:
        bad, good = message(1, value=float("nan")), message(2)
        run.deliver(bad)
        run.deliver(good)
        run.advance("1s")
        assert isinstance(run._queue.latest(bad).disposition, Quarantine)
        assert run.acked == [good]
    assert numbers(file) == [2]


def test_a_file_never_grows_beyond_its_limit_and_no_message_is_lost(file):
    append(file, *(message(n) for n in range(10)), max_bytes=800)
    files = [*formers(file), file]
    assert len(files) > 2
    assert all(each.stat().st_size <= 800 for each in files)
    assert [n for each in files for n in numbers(each)] == list(range(10))


def test_a_message_beyond_the_limit_has_a_file_of_its_own(file):
    append(file, message(1), message(2, text="x" * 1000), message(3), max_bytes=500)
    assert [numbers(each) for each in [*formers(file), file]] == [[1], [2], [3]]


@pytest.mark.parametrize("every", ["hour", "day", "week"])
def test_a_new_period_begins_a_new_file(file, every):
    append(file, message(1), message(2), every=every)
    os.utime(file, (0, 0))
    append(file, message(3), message(4), every=every)
    assert [numbers(each) for each in [*formers(file), file]] == [[1, 2], [3, 4]]
    assert re.fullmatch(r"messages\.jsonl\.\d{8}T\d{6}\.\d{6}Z", formers(file)[0].name)


def test_so_many_former_files_stay_and_no_file_of_another_program_goes(file):
    other = file.with_name("messages.jsonl.backup")
    other.write_text("mine")
    append(file, *(message(n) for n in range(6)), max_bytes=1, keep=2)
    former = [each for each in formers(file) if each != other]
    assert [numbers(each) for each in [*former, file]] == [[3], [4], [5]]
    assert other.read_text() == "mine"


def test_a_file_that_another_program_renames_is_made_anew(file):
    with Harness(CONSUMER, config={"path": str(file)}, settings=ALONE) as run:
        run.deliver(message(1))
        file.rename(file.with_name("old"))
        run.deliver(message(2))
    assert numbers(file.with_name("old")) == [1]
    assert numbers(file) == [2]


def test_a_step_waits_for_the_lock_and_writes_to_the_file_that_has_the_name_then(file):
    append(file, message(1))
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Thread(target=append, args=(file, message(2)))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        file.rename(file.with_name("old"))
    writer.join()
    assert numbers(file.with_name("old")) == [1]
    assert numbers(file) == [2]


def test_a_full_disk_is_a_broken_dependency_and_leaves_no_part_of_a_batch(file, monkeypatch):
    with Harness(CONSUMER, config={"path": str(file)}, settings=ALONE) as run:
        first, second = message(1), message(2, text="x" * 5000)
        run.deliver(first)
        size = file.stat().st_size
        limit = size + 100

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            run.deliver(second)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert isinstance(run._queue.latest(second).disposition, Hold)
        assert file.stat().st_size == size
        run.advance("1h")
        assert run.acked == [first, second]
    assert numbers(file) == [1, 2]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "consumer_config.path"),
        ({"path": "messages.jsonl"}, "absolute path"),
        ({"path": "/a", "max_bytes": 0}, "max_bytes"),
        ({"path": "/a", "every": "year"}, "every"),
        ({"path": "/a", "keep": 0}, "keep"),
    ],
)
def test_a_wrong_configuration_is_explained(config, problem):
    with pytest.raises(ConfigurationError, match=problem):
        Harness(CONSUMER, config=config)


def test_a_directory_that_is_not_there_ends_the_start(tmp_path):
    config = {"path": str(tmp_path / "none" / "file")}
    with (
        pytest.raises(ConfigurationException, match=r"cannot be written.*ReadWritePaths="),
        Harness(CONSUMER, config=config),
    ):
        pass
