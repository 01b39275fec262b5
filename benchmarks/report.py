# SPDX-License-Identifier: GPL-2.0-or-later
"""Write results as Markdown, and into the files of the documentation."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from .catalogue import LIMIT, OURS, ROOT, UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .measure import Figures

RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "explanation" / "performance.md"
PLOTS = ROOT / "docs" / "explanation" / "performance"
BEGIN, END = "<!-- begin {}: written by make bench -->", "<!-- end {} -->"

# (figure, peer, least ratio): the targets for throughput.
RATIOS = [
    ("throughput", UPSTREAM, 15.0),
    ("throughput", "pika", 1.3),
    ("throughput", "kombu", 1.8),
    ("throughput", "aio-pika", 2.0),
    ("throughput", "faststream", 3.0),
    ("throughput", LIMIT, 0.5),
]
# (target, way, way to compare with, least ratio): the targets of publishing.
PUBLISHING_RATIOS = [
    ("relay against pika with 100 unconfirmed", "relay", "pika-100", 0.8),
    ("`publish()` into SQLite against `api.publish`", "sqlite", "api", 4.0),
]
HANDLER_CPU = 60.0
"""Microseconds of CPU time that `publish()` may take in a handler."""
SHOWN = 0.01
"""The smallest share of the time with its own line in the table of the profile."""
LINEAR_TO, LINEAR_AT_LEAST = 32, 0.9


def short(figures: Figures) -> str:
    """Return one line of progress."""
    if figures.p50 is not None and figures.p99 is not None:
        return f"p50 {figures.p50:.2f} ms, p99 {figures.p99:.2f} ms"
    return f"{figures.throughput:.0f}/s, {figures.memory:.0f} MiB"


def median(runs: Iterable[dict[str, Any]], key: str) -> float | None:
    """Return the median of *key* over *runs*; None where it was not measured."""
    values = [run[key] for run in runs if run[key] is not None]
    return statistics.median(values) if values else None


def spread(runs: Iterable[dict[str, Any]], key: str) -> tuple[float, float]:
    """Return the least and the greatest value of *key* over *runs*."""
    values = [run[key] for run in runs]
    return min(values), max(values)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table whose first column is text."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def number(value: float | None, digits: int = 0) -> str:
    """Return *value* with thousands separated; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def markdown(results: dict[str, Any]) -> str:
    """Return all measured figures as tables."""
    parts = [part for part in (make(results) for make in SECTIONS.values()) if part]
    return "\n\n".join(parts)


def machine(results: dict[str, Any]) -> str:
    """Return the machine and the date of the measurement."""
    found = results["machine"]
    libraries = ", ".join(f"{name} {v}" for name, v in found["libraries"].items() if v)
    warning = "**A quick run, to try the harness: these figures mean nothing.**\n\n"
    return (
        f"{warning if results['quick'] else ''}"
        f"Measured on {results['measured_on']}: {found['cores']} cores of {found['cpu']}, "
        f"{found['memory_gib']} GiB, Linux {found['kernel']}, Python {found['python']}, "
        f"RabbitMQ {found['rabbitmq']} on the same machine.\n"
        f"Versions: {libraries}."
    )


def throughput(results: dict[str, Any]) -> str:
    """Return the table of throughput and its cost."""
    peers = results["peers"]
    if not peers:
        return ""
    reference = _throughput(peers, OURS)
    head = "consumer,messages/s,least to greatest,fm-consumer is,CPU s per 1000,peak MiB"
    rows = [_throughput_row(peer, reference) for peer in peers.values()]
    return table([*head.split(","), "first message after s", "ready after s"], rows)


def _throughput_row(peer: dict[str, Any], reference: float | None) -> list[str]:
    runs = peer["runs"]
    speed = median(runs, "throughput")
    least, greatest = spread(runs, "throughput")
    return [
        peer["label"],
        number(speed),
        f"{number(least)} to {number(greatest)}",
        f"{reference / speed:.2f} ×" if reference and speed else "–",
        number(median(runs, "cpu_per_1000"), 3),
        number(median(runs, "memory")),
        number(median(runs, "first_message"), 2),
        number(median(runs, "ready"), 2),
    ]


def _throughput(peers: dict[str, Any], name: str) -> float | None:
    return median(peers[name]["runs"], "throughput") if name in peers else None


def latency(results: dict[str, Any]) -> str:
    """Return the table of latency."""
    peers = [peer for peer in results["peers"].values() if "latency_100" in peer]
    head = "consumer,p50 at 100/s,p99 at 100/s,half of the peak is,p50 there,p99 there"
    rows = [
        [
            peer["label"],
            *(number(median(peer["latency_100"]["runs"], key), 2) for key in ("p50", "p99")),
            f"{number(peer['latency_half']['rate'])}/s",
            *(number(median(peer["latency_half"]["runs"], key), 2) for key in ("p50", "p99")),
        ]
        for peer in peers
    ]
    return table(head.split(","), rows) if rows else ""


def targets(results: dict[str, Any]) -> str:
    """Return the table of targets."""
    rows = [*_ratio_targets(results["peers"]), *_cost_targets(results["peers"])]
    rows += _slot_targets(results["curves"].get("slots"))
    return table(["target, in one run", "aim", "measured", "met"], rows) if rows else ""


def _ratio_targets(peers: dict[str, Any]) -> list[list[str]]:
    found = []
    ours = _throughput(peers, OURS)
    for _, name, aim in RATIOS:
        theirs = _throughput(peers, name)
        if ours and theirs:
            what = f"throughput against {peers[name]['label']}"
            found.append(_target(what, "≥", aim, ours / theirs))
    return found


def _cost_targets(peers: dict[str, Any]) -> list[list[str]]:
    if OURS not in peers or UPSTREAM not in peers:
        return []
    pair = [peers[OURS], peers[UPSTREAM]]
    memories = [median(peer["runs"], "memory") for peer in pair]
    tails = [median(peer["latency_100"]["runs"], "p99") for peer in pair]
    return [
        _target("memory against fedora-messaging consume", "≤", 1.3, _ratio(memories)),
        _target("latency p99 at 100/s against fedora-messaging consume", "≤", 1.0, _ratio(tails)),
    ]


def _ratio(pair: list[float | None]) -> float:
    return (pair[0] or 0.0) / (pair[1] or 1.0)


def _slot_targets(curve: dict[str, Any] | None) -> list[list[str]]:
    if not curve:
        return []
    worst = min(share for x, share in linear_shares(curve) if x <= LINEAR_TO)
    return [_target(f"slots: of linear, up to {LINEAR_TO}", "≥", LINEAR_AT_LEAST, worst)]


def linear_shares(curve: dict[str, Any]) -> list[tuple[int, float]]:
    """Return the speed at each number of slots, as a share of linear growth from one slot."""
    speeds = {point["x"]: median(point["runs"], "throughput") or 0.0 for point in curve["points"]}
    return [(x, speed / (x * speeds[1])) for x, speed in speeds.items()]


def _target(what: str, sign: str, aim: float, value: float) -> list[str]:
    met = value >= aim if sign == "≥" else value <= aim
    return [
        what,
        f"{sign} {aim:g} ×",
        f"{value:.2f} ×" if value >= SHOWN else "< 0.01 ×",
        "yes" if met else "no",
    ]


def curves(results: dict[str, Any]) -> str:
    """Return one table for each curve."""
    return "\n\n".join(_curve(name, curve) for name, curve in results["curves"].items())


def _curve(name: str, curve: dict[str, Any]) -> str:
    shares = dict(linear_shares(curve)) if name == "slots" else {}
    rows = [
        [
            number(point["x"]),
            number(median(point["runs"], "throughput")),
            number(median(point["runs"], "memory")),
            *([f"{shares[point['x']]:.2f}"] if shares else []),
        ]
        for point in curve["points"]
    ]
    head = [name, "messages/s", "peak MiB", *(["of linear"] if shares else [])]
    return table(head, rows)


def profile(results: dict[str, Any]) -> str:
    """Return the table of each module's share of the time."""
    shares = {name: share for name, share in results["profile"].items() if share >= SHOWN}
    rows = [
        [f"`{name}`" if "/" in name else name, f"{share:.0%}"] for name, share in shares.items()
    ]
    rows.append(["everything else", f"{1 - sum(shares.values()):.0%}"])
    return table(["module", "of the time"], rows) if shares else ""


def publishing(results: dict[str, Any]) -> str:
    """Return the tables of publishing: the targets, and the figures of each way."""
    found = results.get("publishing")
    if not found:
        return ""
    ways = found["ways"]
    rows = [[way["label"], *_way_figures(way["runs"])] for way in ways.values()]
    head = ["way to publish", "messages/s", "least to greatest", "CPU µs for each"]
    warning = "**A quick run, to try the harness: these figures mean nothing.**\n\n"
    parts = [f"{warning if found['quick'] else ''}Measured on {found['measured_on']}."]
    if aims := _publishing_targets(ways):
        parts.append(table(["target, in one run", "aim", "measured", "met"], aims))
    return "\n\n".join([*parts, table(head, rows)])


def _way_figures(runs: list[dict[str, Any]]) -> list[str]:
    least, greatest = spread(runs, "throughput")
    middle = number(median(runs, "throughput"))
    return [middle, f"{number(least)} to {number(greatest)}", number(median(runs, "cpu"))]


def _publishing_targets(ways: dict[str, Any]) -> list[list[str]]:
    found = [
        _target(what, "≥", aim, _ratio([_throughput(ways, one), _throughput(ways, other)]))
        for what, one, other, aim in PUBLISHING_RATIOS
        if one in ways and other in ways
    ]
    if "handler" in ways:
        cpu = median(ways["handler"]["runs"], "cpu") or 0.0
        met = "yes" if cpu <= HANDLER_CPU else "no"
        what = "CPU time of `publish()` in a handler"
        found.append([what, f"≤ {HANDLER_CPU:g} µs", f"{cpu:.0f} µs", met])
    return found


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine,
    "targets": targets,
    "throughput": throughput,
    "latency": latency,
    "curves": curves,
    "profile": profile,
    "publishing": publishing,
}


# Files


def read() -> dict[str, Any]:
    """Return the results that were written last."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def merged(results: dict[str, Any]) -> dict[str, Any]:
    """Return *results*; parts that they lack come from the results that were written last."""
    old = read() if RESULTS.exists() else {"peers": {}, "curves": {}}
    new = {**results, "curves": {**old["curves"], **results["curves"]}}
    for part in ("peers", "profile", "publishing"):
        new[part] = results[part] or old.get(part, {})
    return new


def publish(results: dict[str, Any], *, with_plots: bool = True) -> None:
    """Write the results, the tables of the page, and the plots."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, make in SECTIONS.items():
        page = replaced(page, name, make(results))
    PAGE.write_text(page, encoding="utf-8")
    if with_plots:
        from . import plot  # noqa: PLC0415 -- matplotlib takes a second, and is not always there

        plot.draw(results, PLOTS)


def replaced(page: str, name: str, text: str) -> str:
    """Return *page* with *text* between the marks of the section *name*.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = BEGIN.format(name), END.format(name)
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"no section {name!r} in {PAGE.name}")
    return f"{head}{begin}\n{text}\n{end}{tail}"
