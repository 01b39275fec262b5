# SPDX-License-Identifier: GPL-2.0-or-later
"""Show where `fm-consumer run` spends its time: `python -m benchmarks.flame`, and a table."""

from __future__ import annotations

import pstats
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consumer_framework.testing.broker import Broker

from . import messages, queues, runs
from .catalogue import BIN, PEERS, Peer
from .measure import leave_nothing_behind

if TYPE_CHECKING:
    from .catalogue import Task
    from .measure import Figures

RATE = 200
"""Samples per second."""
FUNCTIONS = 30
"""Functions in the list."""

# A frame of a delivery's path: frames that only start the event loop do not count.
_OURS = re.compile(r"\((?:consumer_framework/((?!cli/|runtime/app)[\w/]+)|benchmarks/peers/)")

_PROFILED = """
import cProfile, sys
profiler = cProfile.Profile()
from consumer_framework.cli import main
try:
    profiler.runcall(main, sys.argv[2:])
finally:
    profiler.dump_stats(sys.argv[1])
"""


def sample(pid: int, output: Path, kind: str = "flamegraph") -> subprocess.Popen[bytes]:
    """Have py-spy sample a process whenever it runs Python code, and write the samples at its end.

    Args:
        pid: The process id.
        output: The file to write.
        kind: py-spy's word for the format.
    """
    options = ["--rate", str(RATE), "--gil", "--format", kind, "--output", str(output)]
    command = [str(BIN / "py-spy"), "record", *options, "--pid", str(pid)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def instrumented(peer: Peer, output: Path) -> Peer:
    """Return *peer* under cProfile, which profiles its main thread."""

    def command(task: Task) -> list[str]:
        _, *arguments = peer.command(task)
        return [sys.executable, "-c", _PROFILED, str(output.absolute()), *arguments]

    return replace(peer, command=command)


def _sampled(
    url: str, peer: Peer, load: runs.Load, output: Path, kind: str = "flamegraph"
) -> Figures:
    samplers: list[subprocess.Popen[bytes]] = []
    figures = runs.throughput(
        url, peer, load, watch=lambda pid: samplers.append(sample(pid, output, kind))
    )
    for sampler in samplers:
        sampler.wait()
    return figures


def breakdown(url: str, peer: Peer, load: runs.Load) -> dict[str, float]:
    """Return the share of each module in the time of *peer*, the largest first.

    Returns:
        An empty dictionary where py-spy may not trace.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "stacks"
        _sampled(url, peer, load, output, "raw")
        return shares(output.read_text() if output.exists() else "")


def shares(stacks: str) -> dict[str, float]:
    """Add up collapsed *stacks* by their :func:`area`, without imports, which happen once."""
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if "importlib" not in stack:
            found[area(stack.split(";"))] += int(count)
    return {name: count / found.total() for name, count in found.most_common()}


def area(stack: list[str]) -> str:
    """Return our innermost module in *stack*: the time of a library counts for its caller."""
    for call in reversed(stack):
        if match := _OURS.search(call):
            return match[1] or "handler"
    return "event loop"


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
    help="The file to write: a flame graph, or with --cprofile a file for pstats.",
)
@click.option("--cprofile", is_flag=True, help="Profile the reactor's thread from inside.")
def main(name: str, count: int, output: Path, cprofile: bool) -> None:  # noqa: FBT001
    """Let fm-consumer work off a full queue, and record where its time goes."""
    leave_nothing_behind()
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
