# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of ``fm-consumer top``, drawn by textual. It fits into 80 columns and 24 lines.

Threads look at the instances, and post messages (:class:`Looked`, :class:`Detailed`,
:class:`Ordered`) to the screen. So a slow host holds up the next look, and no key.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, ClassVar, Literal

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Input, Static

from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.text import plural
from consumer_framework.operate.board import (
    Board,
    Urgency,
    age_cell,
    rate_cell,
    short,
    sparkline,
)

from .terminal import safe, safe_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.operate.board import Key, Line
    from consumer_framework.operate.details import Details
    from consumer_framework.operate.rows import Row

    from .top_sources import Source

_BARS = 8
# Columns of the detailed past.
_LONG_BARS = 60
_HOUR, _DAY = 3600.0, 86400.0
# Lines of each list of the details.
_SHOWN = 5
# Seconds between two looks at details, which take more work, at least.
_DETAILS_INTERVAL = 2.0
# The actions that need the table.
_OF_TABLE = frozenset({"filter"})
_COLUMNS = (
    *(("INSTANCE", 17), ("STATE", 10), ("RATE", 7), ("", _BARS), ("LAG", 5), ("", _BARS)),
    *(("AGE", 4), ("QUAR", 4), ("LOSS", 4)),
)
_STYLES = {
    Urgency.BROKEN: "bold red",
    Urgency.HALTED: "bold yellow",
    Urgency.DOUBTFUL: "yellow",
    Urgency.CHANGING: "cyan",
    Urgency.WELL: "",
    Urgency.OFF: "dim",
}


class Looked(Message):
    """The rows of a look; None and a problem if nothing could be asked."""

    def __init__(self, rows: list[Row] | None, problem: str = "") -> None:
        super().__init__()
        self.rows, self.problem = rows, problem


class Detailed(Message):
    """The details of the instance that a screen shows."""

    def __init__(self, details: Details) -> None:
        super().__init__()
        self.details = details


class Ordered(Message):
    """The result of an order, in one line."""

    def __init__(self, text: str, *, is_done: bool) -> None:
        super().__init__()
        self.text, self.is_done = text, is_done


class Table(DataTable[Text]):
    """The instances; Enter is in the footer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "details"),
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
    ]


class TopApp(App[None]):
    """The instances, look after look.

    Args:
        source: Where to look.
        interval: Seconds between two looks.
    """

    CSS = """
    #summary { height: auto; max-height: 2; background: $panel; }
    #table { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
    #reason { height: auto; max-height: 3; color: $text-muted; }
    #reason.problem { color: $text-error; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    FooterKey .footer-key--key { padding: 0 1 0 0; }
    #filter.open { display: block; }
    Question { align: center middle; }
    Question > Static { width: auto; max-width: 70; padding: 1 2; background: $panel; }
    """
    ENABLE_COMMAND_PALETTE = False
    TITLE = "fm-consumer top"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter"),
        Binding("p", "order('pause')", "pause"),
        Binding("r", "order('resume')", "resume"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, source: Source, interval: float) -> None:
        super().__init__()
        self.source = source
        self.interval = interval
        self.board = Board()
        self._keys: list[Key] = []
        self._problem = ""
        self._ended = threading.Event()

    def compose(self) -> ComposeResult:
        """Lay the parts out."""
        # Messages may come when the screen has lost them already: no queries.
        self._summary = Static("looking …", id="summary", markup=False)
        self._table = Table(cursor_type="row", id="table", cell_padding=0)
        self._reason = Static("", id="reason", markup=False)
        self._filter = Input(placeholder="a part of a name, host or state", id="filter")
        yield from (self._summary, self._table, self._reason, self._filter, Footer())

    def on_mount(self) -> None:
        """Begin to look."""
        table = self._table
        for number, (title, width) in enumerate(_COLUMNS):
            table.add_column(title, width=width + 1, key=str(number))
        table.focus()
        threading.Thread(target=self._look, name="look", daemon=True).start()

    def on_unmount(self) -> None:
        """Look no more."""
        self._ended.set()
        self.source.close()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Allow the keys of the table only where it is shown."""
        is_covered = len(self.screen_stack) > 1
        return not (is_covered and action in _OF_TABLE) and super().check_action(action, parameters)

    # Looking.

    def _look(self) -> None:
        while not self._ended.is_set():
            try:
                looked = Looked(self.source.rows())
            except (FrameworkError, OSError) as error:
                looked = Looked(None, str(error))
            self.post_message(looked)
            self._ended.wait(self.interval)

    def on_looked(self, message: Looked) -> None:
        """Show the rows."""
        if message.rows is not None:
            self.board.add(message.rows)
        self._problem = message.problem
        self._summary.update(safe(self.board.summary))
        self._fill()

    def _fill(self) -> None:
        table, chosen = self._table, self.chosen
        # At the top it stays there, whatever comes up.
        is_first, offset = table.cursor_row == 0, table.scroll_offset.y
        lines = self.board.lines(self._filter.value)
        table.clear()
        for line in lines:
            table.add_row(*_cells(line), key=str(line.key))
        self._keys = [line.key for line in lines]
        if chosen in self._keys and not is_first:
            table.move_cursor(row=self._keys.index(chosen), animate=False, scroll=False)
            table.scroll_to(y=offset, animate=False)
        self._show_reason()

    def _show_reason(self) -> None:
        line = self.board.line(self.chosen) if self.chosen else None
        reason = _reason(line.row, str(line.key)) if line and line.row.reason else ""
        self._reason.update(safe(self._problem or reason))
        self._reason.set_class(bool(self._problem), "problem")

    @property
    def chosen(self) -> Key | None:
        """The instance below the cursor; None for no instance."""
        row = self._table.cursor_row
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def on_data_table_row_highlighted(self) -> None:
        """Show the reason of the instance below the cursor."""
        self._show_reason()

    # Keys.

    def action_filter(self) -> None:
        """Ask for a part of a name."""
        self._filter.add_class("open")
        self._filter.focus()

    def on_input_changed(self) -> None:
        """Show the instances that fit."""
        self._fill()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go back to the table; an empty filter goes away."""
        event.input.set_class(bool(event.value), "open")
        self._table.focus()

    def key_escape(self) -> None:
        """Take the filter away."""
        self._filter.value = ""
        self._filter.remove_class("open")
        self._table.focus()

    def on_data_table_row_selected(self) -> None:
        """Show the details of the instance below the cursor."""
        self.action_details()

    def action_details(self) -> None:
        """Show the details of the instance below the cursor."""
        if (key := self.chosen) is not None and key.name:
            self.push_screen(DetailScreen(self, key))

    def action_order(self, verb: str) -> None:
        """Ask, and then pause or resume the instance below the cursor."""
        if (key := self.chosen) is not None and key.name:
            self.ask_and_order(key, verb)

    def ask_and_order(self, key: Key, verb: str) -> None:
        """Ask, and then pause or resume an instance."""

        def answered(is_sure: bool | None) -> None:  # noqa: FBT001 -- textual's
            if is_sure:
                threading.Thread(target=self._order, args=(key, verb), daemon=True).start()

        self.push_screen(Question(f"{verb} {key}? y/n"), answered)

    def _order(self, key: Key, verb: str) -> None:
        line = self.board.line(key)
        if line is None:
            return
        try:
            ordered = Ordered(self.source.order(line.row, verb) or f"{verb} {key}", is_done=True)
        except (FrameworkError, OSError) as error:
            ordered = Ordered(str(error), is_done=False)
        self.post_message(ordered)

    def on_ordered(self, message: Ordered) -> None:
        """Show the result."""
        severity: Literal["information", "error"] = "information" if message.is_done else "error"
        self.notify(safe(message.text), severity=severity, markup=False)


class Question(ModalScreen[bool]):
    """Asks for yes or no.

    Args:
        text: The question.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Show the question."""
        yield Static(safe(self._text), markup=False)

    def action_answer(self, answer: bool) -> None:  # noqa: FBT001 -- textual's
        """Give the answer."""
        self.dismiss(answer)


class DetailScreen(Screen[None]):
    """The details of one instance.

    Args:
        top: The screen of all.
        key: The instance.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "app.pop_screen", "back"),
        Binding("p", "order('pause')", "pause"),
        Binding("r", "order('resume')", "resume"),
    ]

    def __init__(self, top: TopApp, key: Key) -> None:
        super().__init__()
        self._top, self._key = top, key
        self._details: Details | None = None
        self._ended = threading.Event()

    def compose(self) -> ComposeResult:
        """Lay the parts out."""
        self._text = Static("", markup=False)
        with VerticalScroll():
            yield self._text
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask."""
        self._show()
        self.set_interval(1.0, self._show)
        threading.Thread(target=self._ask, name="ask", daemon=True).start()

    def on_unmount(self) -> None:
        """Ask no more."""
        self._ended.set()

    def action_order(self, verb: str) -> None:
        """Ask, and then pause or resume it."""
        self._top.ask_and_order(self._key, verb)

    def _ask(self) -> None:
        while not self._ended.is_set():
            line = self._top.board.line(self._key)
            if line is not None:
                self.post_message(Detailed(self._top.source.details(line.row)))
            self._ended.wait(max(self._top.interval, _DETAILS_INTERVAL))

    def on_detailed(self, message: Detailed) -> None:
        """Show the details."""
        self._details = message.details
        self._show()

    def _show(self) -> None:
        line = self._top.board.line(self._key)
        text = Text("\n").join(_detail_lines(line, self._details, time.time()))
        self._text.update(text)


def _cells(line: Line) -> list[Text]:
    row, style = line.row, _STYLES[line.urgency]
    left = row.loss.seconds if row.loss else None
    plain = (
        *(str(line.key), row.condition),
        *(rate_cell(row.rate).rjust(7), sparkline(line.rates, _BARS)),
        *(short(row.lag).rjust(5), sparkline(line.lags, _BARS)),
        age_cell(row.lag_seconds).rjust(4),
    )
    cells = [
        *((text, style) for text in plain),
        (short(row.quarantined).rjust(4), "yellow" if row.quarantined else style),
        (age_cell(left).rjust(4), _loss_style(left) or style),
    ]
    return [Text(safe(text), how, no_wrap=True, overflow="ellipsis") for text, how in cells]


def _reason(row: Row, name: str) -> str:
    """Return the condition with its reason; that of a pause begins with ``by SOMEBODY``."""
    between = " " if row.reason.startswith("by ") else ": "
    return f"{name}: {row.condition}{between if row.reason else ''}{row.reason}"


def _loss_style(seconds: float | None) -> str:
    if seconds is None or seconds >= _DAY:
        return ""
    return "bold red" if seconds < _HOUR else "yellow"


def _detail_lines(line: Line | None, details: Details | None, now: float) -> Iterator[Text]:
    if line is None:
        yield Text("the instance is gone")
        return
    yield from _state_lines(line)
    if details is None:
        yield Text("\nasking …", "dim")
        return
    if details.problem:
        yield Text(f"\n{safe(details.problem)}", "red")
    yield from _lists(details, now)


def _state_lines(line: Line) -> Iterator[Text]:
    row = line.row
    yield Text(safe(_reason(row, str(line.key))), _STYLES[line.urgency] or "bold")
    if row.loss is not None:
        text = f"loss in {age_cell(row.loss.seconds)}: {row.loss.subject}; {row.loss.cure}"
        yield Text(safe(text), _loss_style(row.loss.seconds))
    counts = {
        "running": row.running,
        "held": row.held,
        "deferred": row.deferred,
        "quarantined": row.quarantined,
        "handled": row.handled,
    }
    known = [f"{name} {count:,}" for name, count in counts.items() if count is not None]
    known += [f"up {age_cell(row.up)}"] if row.up is not None else []
    yield Text(safe("  ".join(known)))
    yield Text(f"rate {rate_cell(row.rate):>8} {sparkline(line.rates, _LONG_BARS)}")
    yield Text(f"lag  {short(row.lag):>8} {sparkline(line.lags, _LONG_BARS)}")


def _lists(details: Details, now: float) -> Iterator[Text]:
    if details.in_flight is not None:
        yield from _list(
            "IN FLIGHT",
            (
                f"{age_cell(one.age):>5}  run {one.attempt}  {one.topic}\n       {one.message_id}"
                + (f"\n       in {one.place}" if one.place else "")
                for one in details.in_flight[:_SHOWN]
            ),
        )
    if details.handlers is not None:
        yield from _list(
            "SLOWEST HANDLERS, ON THE AVERAGE",
            (
                f"{_mean(one.mean):>6}  {plural(one.runs, 'run')}  {one.name}"
                for one in details.handlers[:_SHOWN]
            ),
        )
    if details.causes is not None:
        yield from _list(
            "IN QUARANTINE",
            (
                f"{one.count:>5,}  {one.error}\n       {one.topic}"
                + ("" if one.last is None else f"  {age_cell(now - one.last)} ago")
                for one in details.causes[:_SHOWN]
            ),
        )


def _mean(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"


def _list(title: str, lines: Iterator[str]) -> Iterator[Text]:
    yield Text(f"\n{title}", "bold")
    texts = [Text(safe_lines(line)) for line in lines]
    yield from texts or [Text("    -", "dim")]
