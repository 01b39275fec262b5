# SPDX-License-Identifier: GPL-2.0-or-later
"""The command behind `make bench`: `python -m benchmarks.bench`."""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.testing.broker import Broker

from . import catalogue, curves, flame, machine, messages, publishing, queues, report, runs
from .measure import BenchError, leave_nothing_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .catalogue import Peer
    from .measure import Figures
    from .messages import Sample

CALIBRATION = 500
"""Messages of the first run of each peer, which like the second one is not counted."""
LEAST, MOST = 300, 150_000
"""Messages of a run."""


@dataclass(frozen=True)
class Plan:
    """The extent of the measurement.

    Attributes:
        runs: Runs of throughput for each peer.
        latency_runs: Runs of latency for each peer and rate.
        messages: Messages of a run of throughput; None means enough for `seconds`.
        seconds: Seconds that a run of throughput is meant to take.
        paced_seconds: Seconds of sending in a run of latency.
        curve_limit: The largest x of the long curves.
        curve_runs: Runs of each point of a curve.
        is_quick: True if the figures mean nothing.
    """

    runs: int = 5
    latency_runs: int = 1
    messages: int | None = None
    seconds: float = 2.5
    paced_seconds: float = 8.0
    curve_limit: int = 10**6
    curve_runs: int = 2
    is_quick: bool = False


QUICK = Plan(1, 1, None, 1.0, 4.0, 10**5, 1, is_quick=True)


class Bench:
    """One run of the command against one broker.

    Args:
        url: The broker's URL.
        plan: The extent of the measurement.
    """

    def __init__(self, url: str, plan: Plan) -> None:
        self._url = url
        self._plan = plan
        self._samples: list[Sample] = messages.samples()
        self._begin = time.monotonic()

    def peers(self, peers: list[Peer]) -> dict[str, Any]:
        """Measure *peers*: throughput first, then latency at rates that follow from it."""
        counts = {peer.name: self._count(peer) for peer in peers}
        measured = self._alternate(
            peers,
            self._plan.runs,
            lambda peer: self._throughput(peer, counts[peer.name]),
        )
        result: dict[str, Any] = {
            peer.name: {
                "label": peer.label,
                "messages": counts[peer.name],
                "runs": [figures.as_dict() for figures in measured[peer.name]],
            }
            for peer in peers
        }
        self._add_latency(
            [peer for peer in peers if not peer.name.startswith(catalogue.LIMIT)], result
        )
        return result

    def _add_latency(self, peers: list[Peer], result: dict[str, Any]) -> None:
        for name, rate_of in (
            ("latency_100", lambda _: 100.0),
            ("latency_half", lambda peer: _median_throughput(result[peer.name]) / 2),
        ):
            measured = self._alternate(
                peers,
                self._plan.latency_runs,
                lambda peer, rate_of=rate_of: self._latency(peer, rate_of(peer)),
            )
            for peer in peers:
                result[peer.name][name] = {
                    "rate": round(rate_of(peer), 1),
                    "runs": [figures.as_dict() for figures in measured[peer.name]],
                }

    def curve(self, name: str) -> dict[str, Any]:
        """Measure one curve."""
        curve = curves.CURVES[name]
        points = [x for x in curve.points if x <= self._plan.curve_limit]
        steady = self._count(catalogue.PEERS[0])
        measured: dict[int, list[Figures]] = {x: [] for x in points}
        for number in range(self._plan.curve_runs):
            for x in points:
                figures = self._twice(
                    lambda x=x: curve.measure(self._url, self._samples, x, steady)
                )
                self._say(f"{name} {x}, run {number + 1}: {figures.throughput:.0f}/s")
                measured[x].append(figures)
        runs_by_x = {x: [figures.as_dict() for figures in all_] for x, all_ in measured.items()}
        return {"points": [{"x": x, "runs": found} for x, found in runs_by_x.items()]}

    def profile(self) -> dict[str, float]:
        """Measure the share of each module in the time, with a class as handler."""
        peer = catalogue.PEERS[0]
        load = runs.Load(2 * self._count(peer), self._samples)
        return flame.breakdown(self._url, peer, load)

    def publishing(self) -> dict[str, Any]:
        """Measure the ways to publish."""
        turns, scale = (1, 0.02) if self._plan.is_quick else (publishing.TURNS, 1.0)
        return publishing.measure(self._url, publishing.WAYS, turns, scale)

    def _count(self, peer: Peer) -> int:
        """Return the number of messages that takes about as long as planned."""
        if self._plan.messages is not None:
            return self._plan.messages
        count = CALIBRATION
        # The first try is too short for a fast peer.
        for seconds in (min(1.0, self._plan.seconds), self._plan.seconds):
            rate = self._throughput(peer, count).throughput
            count = int(min(MOST, max(LEAST, rate * seconds)))
        self._say(f"{peer.name}: about {rate:.0f}/s, so {count} messages a run")
        return count

    def _throughput(self, peer: Peer, count: int) -> Figures:
        return runs.throughput(self._url, peer, runs.Load(count, self._samples))

    def _latency(self, peer: Peer, rate: float) -> Figures:
        return runs.latency(self._url, peer, self._samples, rate, self._plan.paced_seconds)

    def _alternate(
        self, peers: list[Peer], times: int, measure: Callable[[Peer], Figures]
    ) -> dict[str, list[Figures]]:
        """Measure every peer once, then every peer a second time, and so on."""
        found: dict[str, list[Figures]] = {peer.name: [] for peer in peers}
        for number in range(times):
            for peer in peers:
                figures = self._twice(lambda peer=peer: measure(peer))
                found[peer.name].append(figures)
                self._say(f"run {number + 1} of {times}, {peer.name}: {report.short(figures)}")
        return found

    def _twice(self, measure: Callable[[], Figures]) -> Figures:
        """Repeat a failed run once: one of them must not end an hour's work."""
        try:
            return measure()
        except BenchError as error:
            self._say(f"tried again: {error}")
            return measure()

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begin:6.0f} s  {text}", file=sys.stderr, flush=True)


def _median_throughput(result: dict[str, Any]) -> float:
    return statistics.median(run["throughput"] for run in result["runs"])


def measure(
    url: str, plan: Plan, peers: list[Peer], names: list[str], *, publishes: bool
) -> dict[str, Any]:
    """Measure *peers* and the curves of these *names* against the broker at *url*.

    Args:
        url: The broker.
        plan: The extent of the measurement.
        peers: The consumers.
        names: The curves.
        publishes: True to measure the ways to publish too.
    """
    bench = Bench(url, plan)
    return {
        "machine": machine.describe(url),
        "measured_on": datetime.now(UTC).date().isoformat(),
        "prefetch": catalogue.PREFETCH,
        "quick": plan.is_quick,
        "peers": bench.peers(peers) if peers else {},
        "curves": {name: bench.curve(name) for name in names},
        "profile": bench.profile() if peers and names else {},
        "publishing": bench.publishing() if publishes else {},
    }


@contextmanager
def broker_at(url: str | None) -> Iterator[str]:
    """Give the URL of a broker: a private one, unless there is one already."""
    if url:
        yield url
        return
    with Broker(config=queues.BROKER_CONFIG) as broker:
        yield broker.url


_NAMES = "\n".join(f"  {peer.name:<28}{peer.label}" for peer in catalogue.PEERS)
_MORE = f"""
\b
Examples:
  python -m benchmarks.bench --quick --peer class --peer pika
  python -m benchmarks.bench --curve slots
  python -m benchmarks.bench --write          the command of `make bench`
\b
Peers:
{_NAMES}
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_MORE)
@click.option("--runs", "run_count", type=click.IntRange(1), help="Runs of throughput. Default: 5.")
@click.option(
    "--messages",
    "message_count",
    type=click.IntRange(10),
    help="Messages of each run of throughput. Default: as many as take two or three seconds, found "
    "out by two runs of each peer that are not counted.",
)
@click.option(
    "--peer",
    "peer_names",
    multiple=True,
    type=click.Choice([peer.name for peer in catalogue.PEERS]),
    metavar="PEER",
    help="Measure this peer; may be given several times.",
)
@click.option(
    "--curve",
    "curve_names",
    multiple=True,
    type=click.Choice(list(curves.CURVES)),
    help="Measure this curve; may be given several times.",
)
@click.option("--quick", is_flag=True, help="One short run of everything, to try the harness.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
@click.option(
    "--write",
    is_flag=True,
    help="Put the results into benchmarks/results.json, and table and plots into "
    "docs/explanation/performance. A part that was not measured this time stays as it is there.",
)
@click.option("--url", help="Use this broker, with amq.topic for oneself, not a private one.")
@click.option("--redraw", is_flag=True, help="Measure nothing; make table and plots anew.")
def main(  # noqa: PLR0913, PLR0917 -- one for each option
    run_count: int | None,
    message_count: int | None,
    peer_names: tuple[str, ...],
    curve_names: tuple[str, ...],
    quick: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    write: bool,  # noqa: FBT001
    url: str | None,
    redraw: bool,  # noqa: FBT001
) -> None:
    """Compare consumers on one private broker, and measure the scaling of fm-consumer.

    Without --peer and --curve it measures everything; with either, only the named ones. Progress
    goes to standard error. Figures mean something on a machine that does nothing else.
    """
    if redraw:
        report.publish(report.read())
        return
    leave_nothing_behind()
    plan = QUICK if quick else Plan()
    plan = replace(plan, runs=run_count or plan.runs, messages=message_count)
    everything = not peer_names and not curve_names
    peers = catalogue.named(peer_names) if peer_names or everything else []
    try:
        with broker_at(url) as at:
            names = list(curves.CURVES if everything else curve_names)
            results = measure(at, plan, peers, names, publishes=everything)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    print(json.dumps(results, indent=1) if as_json else report.markdown(results))
    if write:
        report.publish(report.merged(results))


if __name__ == "__main__":
    main()
