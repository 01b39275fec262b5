# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw the tables of the code as SVG, for the page on the architecture.

Each picture is computed from the table that the program itself runs on: a state or a disposition
that is added there is in the picture, or has no place yet, which fails the test of the generated
pages. Colours follow the reader's light or dark theme.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
import tomllib
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.adapters.amqp import session_state
from consumer_framework.core import disposition, lifecycle

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from enum import Enum

ROOT = Path(__file__).resolve().parents[1]
PICTURES = Path(__file__).parent / "explanation/architecture"

# Not as CSS variables, which some viewers do not know.
_LIGHT = {
    "ground": "#ffffff",
    "ink": "#1f2328",
    "faint": "#59636e",
    "line": "#8c959f",
    "box": "#ddf4ff",
    "edge": "#0969da",
    "frame": "#f6f8fa",
    "good": "#dafbe1",
    "wait": "#fff8c5",
    "bad": "#ffebe9",
}
_DARK = {
    "ground": "#0d1117",
    "ink": "#e6edf3",
    "faint": "#9198a1",
    "line": "#6e7681",
    "box": "#10294a",
    "edge": "#4493f8",
    "frame": "#161b22",
    "good": "#12301d",
    "wait": "#3a2d0a",
    "bad": "#3f1517",
}
_COLOURS = """\
text {{ fill: {ink}; }}
text.label {{ stroke: {ground}; }}
text.faint {{ fill: {faint}; }}
rect {{ stroke: {line}; }}
rect.ground {{ fill: {ground}; stroke: none; }}
rect.frame, rect.plain {{ fill: {frame}; }}
rect.box {{ fill: {box}; stroke: {edge}; }}
rect.good {{ fill: {good}; }}
rect.wait {{ fill: {wait}; }}
rect.bad {{ fill: {bad}; }}
path {{ stroke: {line}; }}
path.head {{ fill: {line}; stroke: none; }}
"""
_STYLE = (
    """
text { font: 13px system-ui, sans-serif; }
text.strong { font-weight: 600; }
text.name { font-weight: 600; text-anchor: middle; }
text.label { font-size: 12px; text-anchor: middle; stroke-width: 4px; paint-order: stroke; }
rect.frame { stroke-dasharray: 4 3; }
path { fill: none; stroke-width: 1.5; }
"""
    + _COLOURS.format(**_LIGHT)
    + "@media (prefers-color-scheme: dark) {\n"
    + _COLOURS.format(**_DARK)
    + "}\n"
)

Point = tuple[float, float]
_BOX = (118.0, 36.0)
# Half the distance of two arrows between the same boxes.
_APART = 9.0
# The place of a label on an arrow that has a fellow beside it: nearer to its own beginning.
_NEAR = 0.3


@dataclass
class Picture:
    """An SVG picture.

    Args:
        title: For readers who do not see it.
    """

    width: int
    height: int
    title: str
    _parts: list[str] = field(default_factory=list)

    def box(self, centre: Point, text: str, kind: str = "box", size: Point = _BOX) -> None:
        """Draw a box with *text* around *centre*."""
        (x, y), (width, height) = centre, size
        self._rect(kind, x - width / 2, y - height / 2, width, height)
        self.text((x, y + 4.5), text, "name")

    def frame(self, corner: Point, size: Point) -> None:
        """Draw a border; *corner* is its upper left."""
        self._rect("frame", *corner, *size)

    def _rect(self, kind: str, x: float, y: float, width: float, height: float) -> None:
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self._parts.append(f'<rect class="{kind}" {place} rx="6"/>')

    def text(self, at: Point, text: str, kind: str = "") -> None:
        """Write *text*; *kind* is a class of the style."""
        named = f' class="{kind}"' if kind else ""
        self._parts.append(f'<text{named} x="{at[0]:g}" y="{at[1]:g}">{escape(text)}</text>')

    def arrow(
        self, start: Point, end: Point, label: str, bend: float = 0.0, place: float = 0.5
    ) -> None:
        """Draw an arrow.

        *bend* is the distance of its middle from a straight one, to its left. *place* is that of
        the label, from 0 at the beginning to 1 at the end.
        """
        (x1, y1), (x2, y2) = start, end
        length = math.hypot(x2 - x1, y2 - y1)
        normal = ((y2 - y1) / length, -(x2 - x1) / length)
        control = ((x1 + x2) / 2 + normal[0] * bend * 2, (y1 + y2) / 2 + normal[1] * bend * 2)
        self._parts.append(
            f'<path d="M{x1:.1f} {y1:.1f}Q{control[0]:.1f} {control[1]:.1f} {x2:.1f} {y2:.1f}"/>'
        )
        angle = math.atan2(y2 - control[1], x2 - control[0])
        wings = [
            (x2 - 9 * math.cos(angle + turn), y2 - 9 * math.sin(angle + turn))
            for turn in (-0.4, 0.4)
        ]
        corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in [(x2, y2), *wings])
        self._parts.append(f'<path class="head" d="M{corners}Z"/>')
        near, far = (1 - place) ** 2, place**2
        x = near * x1 + (1 - near - far) * control[0] + far * x2
        y = near * y1 + (1 - near - far) * control[1] + far * y2
        self.text((x, y + 4), label, "label")

    def svg(self) -> str:
        """Return the picture as the text of a file."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} height="{self.height}" role="img">'
        ground = f'<rect class="ground" width="{self.width}" height="{self.height}" rx="8"/>'
        title = f"<title>{escape(self.title)}</title>"
        return "\n".join(
            (head, title, f"<style>{_STYLE}</style>", ground, *self._parts, "</svg>\n")
        )


@dataclass(frozen=True)
class Frame:
    """States that share transitions, with a border around them.

    Attributes:
        exits: The point of the border at which the arrow to a state begins.
    """

    states: Collection[Enum]
    corner: Point
    size: Point
    exits: Mapping[Enum, Point]


@dataclass(frozen=True)
class Layout:
    """The places of a graph's states; the arrows come from its table.

    Attributes:
        frames: The outermost first.
        bends: The bend of arrows that would cross a box if they were straight.
    """

    width: int
    height: int
    title: str
    places: Mapping[Enum, Point]
    frames: tuple[Frame, ...]
    bends: Mapping[tuple[Enum, Enum], float]


Transitions = dict[tuple["Enum", "Enum"], "Enum"]


def graph(transitions: Transitions, layout: Layout) -> str:
    """Return a picture of *transitions*: (state, event) -> the next state."""
    picture = Picture(layout.width, layout.height, layout.title)
    for frame in layout.frames:
        picture.frame(frame.corner, frame.size)
    left = {key: to for key, to in transitions.items() if key[0] is not to}
    for frame in layout.frames:
        for to, events in _grouped(_of_frame(left, frame)).items():
            start = frame.exits[to]
            place = layout.places[to]
            picture.arrow(start, _border(place, place, start), _label(events))
    arrows: dict[tuple[Enum, Enum], list[Enum]] = {}
    for (state, event), to in left.items():
        arrows.setdefault((state, to), []).append(event)
    for (state, to), events in arrows.items():
        bend = layout.bends.get((state, to), 0.0)
        apart = _APART if (to, state) in arrows and not bend else 0.0
        ends = _ends(layout.places[state], layout.places[to], apart)
        is_level = ends[0][1] == ends[1][1]
        picture.arrow(*ends, _label(events), bend, _NEAR if apart and not is_level else 0.5)
    for state in dict.fromkeys(state for state, _ in transitions):
        picture.box(layout.places[state], _words(state))
    return picture.svg()


def _of_frame(left: Transitions, frame: Frame) -> Iterator[tuple[Enum, Enum]]:
    """Take the transitions out of *left* that all states of *frame* share."""
    for event in dict.fromkeys(event for _, event in left):
        targets = {left.get((state, event)) for state in frame.states}
        [to] = targets if len(targets) == 1 else [None]
        if to is not None and to not in frame.states:
            for state in frame.states:
                del left[state, event]
            yield to, event


def _grouped(pairs: Iterable[tuple[Enum, Enum]]) -> dict[Enum, list[Enum]]:
    found: dict[Enum, list[Enum]] = {}
    for to, event in pairs:
        found.setdefault(to, []).append(event)
    return found


def _words(member: Enum) -> str:
    return member.name.lower().replace("_", " ")


def _label(events: Iterable[Enum]) -> str:
    return ", ".join(map(_words, events))


def _border(centre: Point, start: Point, toward: Point) -> Point:
    """Return the point where a line from *start*, in the box around *centre*, leaves the box."""
    dx, dy = toward[0] - start[0], toward[1] - start[1]
    right, down = math.copysign(_BOX[0] / 2, dx), math.copysign(_BOX[1] / 2, dy)
    scale = min(
        (centre[0] + right - start[0]) / dx if dx else math.inf,
        (centre[1] + down - start[1]) / dy if dy else math.inf,
    )
    return start[0] + dx * scale, start[1] + dy * scale


def _ends(start: Point, end: Point, apart: float) -> tuple[Point, Point]:
    """Return the ends of an arrow between two boxes, *apart* from the line of their centres."""
    length = math.hypot(end[0] - start[0], end[1] - start[1])
    aside = apart * (end[1] - start[1]) / length, -apart * (end[0] - start[0]) / length
    first, last = ((x + aside[0], y + aside[1]) for x, y in (start, end))
    return _border(start, first, last), _border(end, last, first)


_L, _S = lifecycle.State, session_state.SessionState

_LIFECYCLE = Layout(
    900,
    440,
    "The states of an instance",
    {
        _L.BUILDING: (90, 110),
        _L.CONNECTING: (290, 110),
        _L.SUBSCRIBING: (520, 110),
        _L.CONSUMING: (800, 110),
        _L.PAUSED: (520, 230),
        _L.FAILING: (290, 370),
        _L.DRAINING: (520, 370),
        _L.STOPPED: (800, 370),
    },
    (
        Frame(
            (_L.BUILDING, _L.CONNECTING, _L.SUBSCRIBING, _L.CONSUMING, _L.PAUSED),
            (16, 20),
            (868, 252),
            {_L.DRAINING: (520, 272), _L.FAILING: (290, 272)},
        ),
    ),
    {(_L.CONSUMING, _L.CONNECTING): -50, (_L.FAILING, _L.STOPPED): -42},
)
_SESSION = Layout(
    900,
    560,
    "The states of a session with the broker",
    {
        _S.OFFLINE: (90, 110),
        _S.SUBSCRIBING: (330, 110),
        _S.CONSUMING: (580, 110),
        _S.ADJUSTING: (800, 110),
        _S.INCOMPLETE: (500, 230),
        _S.PAUSED_OFFLINE: (90, 400),
        _S.PAUSING: (400, 400),
        _S.PAUSED: (740, 400),
        _S.STOPPING: (450, 525),
    },
    (
        Frame(
            [one for one in _S if one is not _S.STOPPING],
            (8, 8),
            (884, 456),
            {_S.STOPPING: (450, 464)},
        ),
        Frame(
            (_S.SUBSCRIBING, _S.CONSUMING, _S.ADJUSTING, _S.INCOMPLETE),
            (240, 24),
            (640, 250),
            {_S.OFFLINE: (240, 150)},
        ),
        Frame(
            (_S.PAUSING, _S.PAUSED),
            (240, 364),
            (640, 84),
            {_S.PAUSED_OFFLINE: (240, 390), _S.SUBSCRIBING: (290, 364)},
        ),
    ),
    {(_S.ADJUSTING, _S.SUBSCRIBING): -40, (_S.PAUSED_OFFLINE, _S.PAUSED): -36},
)


def lifecycle_picture() -> str:
    """Return the picture of an instance's states."""
    return graph({key: to for key, (to, _) in lifecycle.TABLE.items()}, _LIFECYCLE)


def session_picture() -> str:
    """Return the picture of a session's states."""
    rows = session_state.TABLE.items()
    return graph({(s, e): to for s, row in rows for e, (to, _) in row.items()}, _SESSION)


# The words of the settlement's columns, for the values of the table.
_WRITES = {
    "defer": "a row, due later",
    "quarantine": "a row in quarantine",
    "remove": "the row goes",
}
_ANSWERS = {
    "ack": "basic.ack",
    "reject": "basic.reject",
    "requeue": "basic.reject, requeue",
    "give_back": "basic.nack, requeue",
    "hold": "none yet",
}
_COLUMNS = (20, 170, 330, 500, 690)


def settlement_picture() -> str:
    """Return the picture of the settlement: durable effect first, then the answer."""
    rules = {kind.__name__: rule for kind, rule in disposition.SETTLE_RULES.items()}
    rules["Halt, requeue"] = disposition.rule_for(disposition.Halt(0, requeue=True))
    picture = Picture(860, 50 + 44 * len(rules), "The settlement of each disposition")
    heads = ("disposition", "1. written first", "its own messages", "2. the broker gets", "then it")
    for x, head in zip(_COLUMNS, heads, strict=True):
        picture.text((x, 32), head, "faint")
    for number, (name, rule) in enumerate(rules.items()):
        y = 66 + 44 * number
        shade = {"good": "good", "bad": "bad", "open": "wait"}[rule.ending]
        picture.box((_COLUMNS[0] + 62, y), name, shade, (124, 30))
        cells = (
            _WRITES[rule.write.__name__.strip("_")] if rule.write else "nothing",
            "are stored" if rule.publishes else "are discarded",
            _ANSWERS[rule.answer],
            _afterwards(rule),
        )
        for x, cell in zip(_COLUMNS[1:], cells, strict=True):
            picture.text((x, y + 4.5), cell)
    return picture.svg()


def _afterwards(rule: disposition.SettleRule) -> str:
    if rule.goes_back:
        return "is delivered again"
    if not rule.is_final:
        return "runs again when due"
    return "waits for an operator" if rule.write else "is done with"


def rooms_picture() -> str:
    """Return the picture of the packages, from the layers that import-linter checks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [
        one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers"
    ]
    layers = [layer.split(" | ") for layer in contract["layers"]]
    picture = Picture(860, 24 + 66 * len(layers), "The packages; imports point down only")
    for number, layer in enumerate(layers):
        width = (820 - 12 * (len(layer) - 1)) / len(layer)
        for column, name in enumerate(layer):
            x, y = 20 + column * (width + 12), 16 + 66 * number
            picture.box((x + width / 2, y + 29), "", "plain", (width, 58))
            picture.text((x + 14, y + 18), name.partition(".")[2], "strong")
            for line, text in enumerate(_purpose(name, int(width / 7.5))):
                picture.text((x + 14, y + 35 + 15 * line), text, "faint")
    return picture.svg()


def _purpose(module: str, columns: int) -> list[str]:
    """Return the first sentence of a package's docstring, as at most two lines."""
    sentence = " ".join((inspect.getdoc(import_module(module)) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`[~.]*|`+", "", sentence).partition(". ")[0].rstrip(".")
    return textwrap.wrap(text, columns, max_lines=2, placeholder=" …")


def pictures() -> dict[Path, str]:
    """Return the text of each picture."""
    return {
        PICTURES / "lifecycle.svg": lifecycle_picture(),
        PICTURES / "session.svg": session_picture(),
        PICTURES / "settlement.svg": settlement_picture(),
        PICTURES / "rooms.svg": rooms_picture(),
    }
