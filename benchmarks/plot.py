# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw SVG plots of the results, in mid tones without a background, for light and dark pages.

The same results make the same bytes.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

from .catalogue import FRAMEWORK
from .curves import CURVES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# These have a contrast of at least 3 to 1 against both white and black (WCAG 2, 1.4.11). The
# text has 4.5 to 1 (1.4.3).
TEXT, OURS, OTHERS, SECOND = "#767676", "#2f81d6", "#8a8a8a", "#d0603a"
STYLE = {
    "svg.hashsalt": "consumer_framework",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    **{f"{part}.color": TEXT for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}color": TEXT for part in ("edge", "label", "title")},
}
WIDTH = 8.0
"""Inches; 72 points each."""


def draw(results: dict[str, Any], directory: Path) -> None:
    """Write a file for each plot that has figures in *results*."""
    directory.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, figure in figures(results).items():
            figure.savefig(directory / f"{name}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """Return the plots by the names of their files."""
    peers = list(results["peers"].values())
    made: dict[str, Figure] = {}
    if peers:
        made["throughput"] = bars(peers, "throughput", "Throughput", "messages per second")
        made["memory"] = bars(peers, "memory", "Peak memory", "MiB")
    if any("latency_100" in peer for peer in peers):
        made["latency"] = latency([peer for peer in peers if "latency_100" in peer])
    for name, curve in results["curves"].items():
        made[name] = curve_of(name, curve)
    return made


def bars(peers: list[dict[str, Any]], key: str, title: str, unit: str) -> Figure:
    """Return a bar for each peer, with its median, and a line from the least to the greatest."""
    figure, axes = _peer_axes(peers, title, unit)
    for at, peer in enumerate(peers):
        values = [run[key] for run in peer["runs"]]
        middle = statistics.median(values)
        axes.barh(at, middle, 0.65, color=_colour(peer))
        axes.plot([min(values), max(values)], [at, at], color=TEXT, linewidth=1.2)
        _write(axes, max(values), at, f"{middle:,.0f}")
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(_thousands())
    return figure


def latency(peers: list[dict[str, Any]]) -> Figure:
    """Return a line from p50 to p99 for each peer, at 100 messages per second."""
    title = "Latency at 100 messages/s: median to 99th percentile"
    figure, axes = _peer_axes(peers, title, "milliseconds from sending to the handler")
    for at, peer in enumerate(peers):
        runs = peer["latency_100"]["runs"]
        p50, p99 = (statistics.median(run[key] for run in runs) for key in ("p50", "p99"))
        colour = _colour(peer)
        axes.plot([p50, p99], [at, at], color=colour, linewidth=2)
        axes.plot(p50, at, "o", color=colour)
        axes.plot(p99, at, "|", color=colour, markersize=12, markeredgewidth=2)
        _write(axes, p99, at, f"{_three_digits(p50)} to {_three_digits(p99)}")
    axes.set_xscale("log")
    least, greatest = axes.get_xlim()
    axes.set_xlim(least, greatest * 5)  # a place for the last label
    axes.xaxis.set_major_formatter(_thousands())
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


def curve_of(name: str, curve: dict[str, Any]) -> Figure:
    """Return throughput and memory over the growing quantity."""
    made, (upper, lower) = plt.subplots(
        2, 1, sharex=True, figsize=(WIDTH, 4.6), height_ratios=[2, 1], layout="constrained"
    )
    upper.set_title(CURVES[name].title, loc="left")
    _line(upper, curve, "throughput", OURS)
    upper.set_ylabel("messages/s")
    _line(lower, curve, "memory", SECOND)
    lower.set_ylabel("peak MiB")
    lower.set_xlabel(CURVES[name].axis)
    _scale_x(lower, [point["x"] for point in curve["points"]])
    if name == "slots":
        _linear(upper, curve)
    for axes in (upper, lower):
        axes.grid(visible=True)
        axes.yaxis.set_major_formatter(_thousands())
        if name != "slots" or axes is lower:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    return made


def _peer_axes(peers: list[dict[str, Any]], title: str, unit: str) -> tuple[Figure, Axes]:
    made, axes = plt.subplots(figsize=(WIDTH, 0.34 * len(peers) + 1.1), layout="constrained")
    axes.set_title(title, loc="left")
    axes.set_xlabel(unit)
    axes.set_yticks(range(len(peers)), [peer["label"] for peer in peers])
    axes.set_ylim(len(peers) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")
    return made, axes


def _write(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)


def _line(axes: Axes, curve: dict[str, Any], key: str, colour: str) -> None:
    xs = [point["x"] for point in curve["points"]]
    values = [[run[key] for run in point["runs"]] for point in curve["points"]]
    axes.plot(
        xs, [statistics.median(runs) for runs in values], "o-", color=colour, label="measured"
    )
    axes.fill_between(
        xs, [min(runs) for runs in values], [max(runs) for runs in values], color=colour, alpha=0.25
    )


def _linear(axes: Axes, curve: dict[str, Any]) -> None:
    """Add the line of slots that each bring as much as the first."""
    xs = [point["x"] for point in curve["points"]]
    one = statistics.median(run["throughput"] for run in curve["points"][0]["runs"])
    axes.plot(xs, [one * x for x in xs], "--", color=TEXT, label="linear")
    axes.set_yscale("log", base=2)
    axes.legend(frameon=False, labelcolor=TEXT)


def _scale_x(axes: Axes, xs: list[int]) -> None:
    """Make the axis logarithmic, with a place for 0 where it is among *xs*."""
    if min(xs) == 0:
        axes.set_xscale("symlog", linthresh=sorted(xs)[1])
    else:
        axes.set_xscale("log")
    axes.set_xticks(xs)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_thousands())


def _colour(peer: dict[str, Any]) -> str:
    return OURS if peer["label"].startswith(FRAMEWORK) else OTHERS


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


def _thousands() -> Callable[..., str]:
    return FuncFormatter(lambda value, _: f"{value:,.10g}")
