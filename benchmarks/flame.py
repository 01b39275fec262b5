# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows where `fm-consumer run` spends its time: `python -m benchmarks.flame`."""

from __future__ import annotations

import pstats
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consumer_framework.testing.broker import Broker

from . import messages, queues, runs
from .catalogue import BIN, PEERS, Peer

if TYPE_CHECKING:
    from .catalogue import Task
    from .measure import Figures

RATE = 200
"""Samples per second."""
FUNCTIONS = 30
"""How many functions are listed."""

_PROFILED = """
import cProfile, sys
profiler = cProfile.Profile()
from consumer_framework.cli import main
try:
    profiler.runcall(main, sys.argv[2:])
finally:
    profiler.dump_stats(sys.argv[1])
"""


def sample(pid: int, output: Path) -> subprocess.Popen[bytes]:
    """Have py-spy write a flame graph (SVG) of a process, which it does when the process ends."""
    options = ["--rate", str(RATE), "--threads", "--gil", "--output", str(output)]
    return subprocess.Popen([str(BIN / "py-spy"), "record", *options, "--pid", str(pid)])


def instrumented(peer: Peer, output: Path) -> Peer:
    """Return *peer* under cProfile, which sees its main thread."""

    def command(task: Task) -> list[str]:
        _, *arguments = peer.command(task)
        return [sys.executable, "-c", _PROFILED, str(output.absolute()), *arguments]

    return replace(peer, command=command)


def _sampled(url: str, peer: Peer, load: runs.Load, output: Path) -> Figures:
    samplers: list[subprocess.Popen[bytes]] = []
    figures = runs.throughput(
        url, peer, load, watch=lambda pid: samplers.append(sample(pid, output))
    )
    for sampler in samplers:
        sampler.wait()
    return figures


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--peer",
    "name",
    type=click.Choice([peer.name for peer in PEERS if peer.ready == "notify"]),
    default="class",
    show_default=True,
    help="The form of handler.",
)
@click.option("--messages", "count", type=int, default=60_000, show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("profile.svg"),
    show_default=True,
    help="The file to write: a flame graph, or with --cprofile what pstats reads.",
)
@click.option("--cprofile", is_flag=True, help="Profile the reactor's thread from inside.")
def main(name: str, count: int, output: Path, cprofile: bool) -> None:  # noqa: FBT001
    """Let fm-consumer work off a full queue, and record where its time goes."""
    (peer,) = [peer for peer in PEERS if peer.name == name]
    load = runs.Load(count, messages.samples())
    with Broker(config=queues.BROKER_CONFIG) as broker:
        if cprofile:
            figures = runs.throughput(broker.url, instrumented(peer, output), load)
        else:
            figures = _sampled(broker.url, peer, load, output)
    print(f"{figures.throughput:.0f} messages/s while profiled", file=sys.stderr)
    if cprofile:
        pstats.Stats(str(output)).sort_stats("tottime").print_stats(FUNCTIONS)


if __name__ == "__main__":
    main()
