# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness of the benchmarks counts exactly. The tests do not judge the speed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pika import spec

ROOT = Path(__file__).resolve().parents[2]
# At the end of the path: the product may be installed, but the benchmarks never are.
sys.path.append(str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.catalogue import PEERS, named  # noqa: E402
from benchmarks.ledger import Sent  # noqa: E402
from benchmarks.messages import BODY, copies, json_body, samples, templates  # noqa: E402
from benchmarks.publishing import WAYS  # noqa: E402
from benchmarks.publishing import run as publish_by  # noqa: E402
from benchmarks.queues import queue  # noqa: E402
from benchmarks.recovery import CONSUMERS, Scenario, play, quietly  # noqa: E402
from benchmarks.runs import Load, latency, throughput  # noqa: E402
from benchmarks.wire import Wire  # noqa: E402

HERE = ("class", "pika", "raw")
MESSAGES = 300


@pytest.fixture(scope="module")
def given():
    return samples()


@pytest.mark.parametrize("name", HERE)
def test_a_run_of_throughput_counts_every_message_once(broker, given, name):
    (peer,) = named((name,))
    figures = throughput(broker.url, peer, Load(MESSAGES, given))
    assert figures.handled == MESSAGES
    assert figures.throughput > 0
    assert figures.cpu_per_1000 > 0
    assert figures.memory > 5, "MiB; no Python is smaller"
    assert figures.first_message > 0
    assert (figures.ready is not None) == (peer.ready != "")
    assert figures.p99 is None


def test_skipped_messages_and_the_backlog_are_no_part_of_a_run(broker, given):
    (peer,) = named(("pika",))
    figures = throughput(broker.url, peer, Load(200, given, skip=50, backlog=100))
    assert figures.handled >= 200


def test_latency_counts_every_message(broker, given):
    (peer,) = named(("class",))
    figures = latency(broker.url, peer, given, rate=200, seconds=1)
    assert figures.handled == 300, "with 100 to warm up"
    assert figures.p50 is not None
    assert figures.p99 is not None
    assert 0 < figures.p50 <= figures.p99


def test_the_ledger_finds_every_message(broker):
    messages = [
        Sent("fine", {"do": "nothing"}, {}, poison=False),
        Sent("poison", {"do": "nothing"}, {"content_encoding": "gzip"}, poison=True),
    ]
    scenario = Scenario("", messages, quietly)
    ledger = play(broker, scenario, CONSUMERS["fm-consumer run"], 3.0)
    assert (ledger.published, ledger.handled, ledger.quarantined) == (2, 1, 1)
    assert (ledger.again, ledger.dropped, ledger.queued, ledger.lost) == (0, 0, 0, 0)
    assert (ledger.starts, ledger.consumers, ledger.consuming) == (1, 1, True)


def test_the_messages_are_of_several_applications_and_of_one_size(given):
    assert {len(json_body(sample, "", 0)) for sample in given} == {BODY}
    assert len({sample.headers["fedora_messaging_schema"] for sample in given}) >= 4
    encoded = list(copies(templates(json_body, given), 2 * len(given)))
    assert len(set(encoded)) == len(encoded), "each has an id of its own"


def test_the_command_prints_its_figures_as_json_and_a_table_can_be_made_of_them(broker):
    command = [sys.executable, "-m", "benchmarks.bench", "--quick", "--messages", "50"]
    done = subprocess.run(
        [*command, "--url", broker.url, "--peer", "raw", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    results = json.loads(done.stdout)
    assert list(results["peers"]) == ["raw"]
    assert len(results["peers"]["raw"]["runs"]) == 1
    assert results["machine"]["rabbitmq"]
    assert named(("raw",))[0].label in report.markdown(results)


def test_each_way_to_publish_publishes_every_message(broker):
    with queue(broker.url, "bench.check") as name:
        for way in WAYS:
            if way.peer is not None:
                continue
            if way.name == "aio-pika" and find_spec("aio_pika") is None:
                continue
            figures = publish_by(way, broker.url, scale=0.001)
            assert figures["throughput"] > 0
            assert figures["cpu"] > 0
            sends = way.name not in {"sqlite", "sqlite-100", "claim", "handler"}
            with Wire(broker.url) as wire:
                purged = wire.call(spec.Queue.Purge(queue=name), spec.Queue.PurgeOk)
            assert purged.message_count == (20 if sends else 0), way.name


@pytest.mark.parametrize("way", [way for way in WAYS if way.peer], ids=lambda way: way.name)
def test_an_instance_whose_handler_publishes_is_measured(broker, way):
    figures = publish_by(way, broker.url, scale=0.02)
    assert figures["throughput"] > 0
    assert figures["cpu"] > 0


def test_the_ways_to_publish_are_compared_in_a_table(broker):
    command = [sys.executable, "-m", "benchmarks.publishing", "--quick", "--url", broker.url]
    words = ["--way", "sqlite", "--way", "handler", "--json"]
    done = subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert list(found["ways"]) == ["sqlite", "handler"]
    table = report.publishing({"publishing": found})
    assert "`publish()` into SQLite, one commit each" in table
    assert "CPU time of `publish()` in a handler" in table


def test_peers_have_names_of_their_own():
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert len({peer.label for peer in PEERS}) == len(PEERS)
