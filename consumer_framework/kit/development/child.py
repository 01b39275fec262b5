# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of the consumer: an instance as ``fm-consumer run`` runs it, which tells its parent.

Start it as ``python -m consumer_framework.kit.development.child`` with the fields of
:class:`Orders` as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import consumer_framework
from consumer_framework.adapters import config, log
from consumer_framework.core.attempt import fingerprint, one_line, traceback_text
from consumer_framework.core.delivery import Failed, Skipped, Undecodable, readable
from consumer_framework.core.disposition import Defer, Hold, rule_for
from consumer_framework.core.errors import ConfigurationError, Fault, Signal
from consumer_framework.core.lifecycle import State
from consumer_framework.core.log_fields import run_number
from consumer_framework.core.ports import Observer, Paused, Settled, StateChanged

from . import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Outcome
    from consumer_framework.core.ports import Observation
    from consumer_framework.runtime.assembly.configuration import RunOptions

_OWN = f"{Path(consumer_framework.__file__).parent}/"


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders for the process.

    Attributes:
        file: The configuration.
        instance: The name of the instance.
        state: Its state directory.
        callback_file: ``FILE.py:OBJECT`` in place of the configured callback; "" for that.
        descriptor: Events are written to this file descriptor.
    """

    file: str
    instance: str
    state: str
    callback_file: str
    descriptor: int

    def arguments(self) -> list[str]:
        """Return the command line of the process."""
        return [sys.executable, "-m", __spec__.name, json.dumps(asdict(self))]


class Teller(Observer):
    """The observer that tells the parent.

    Args:
        tell: Takes each event.
        clock: Returns the seconds since the epoch.
    """

    def __init__(
        self, tell: Callable[[events.Event], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._tell = tell
        self._clock = clock
        # By message: the moment at which its retry is due.
        self._due: dict[tuple[str, str], float] = {}

    def notify(self, event: Observation) -> None:
        """Tell *event*, if an author wants to see it."""
        match event:
            case Settled():
                self._tell(self._settled(event))
            case StateChanged(_, State.CONSUMING):
                self._tell(events.Consuming())
            case Paused(_, text):
                self._tell(events.Paused(text))

    def _settled(self, event: Settled) -> events.Settled:
        delivery, outcome, decision, is_void = event
        disposition, now = decision.disposition, self._clock()
        words = rule_for(disposition).words
        key = delivery.queue, delivery.message_id
        since = self._due.pop(key, delivery.received_at)
        until = disposition.until if isinstance(disposition, Hold | Defer) else None
        if until is not None:
            self._due[key] = until
        error = _error_of(outcome)
        is_signal = error is None or isinstance(error, Signal)
        return events.Settled(
            delivery.message_id,
            readable(delivery.routing_key),
            words.field,
            _verb(outcome, words.verb),
            disposition.reason or _reason(outcome),
            run_number(delivery),
            max(now - since, 0.0),
            None if until is None else max(until - now, 0.0),
            "" if is_signal or error is None else _authors_traceback(error),
            "" if is_signal or error is None else fingerprint(error),
            is_void,
        )


def _verb(outcome: Outcome, verb: str) -> str:
    return "skipped" if isinstance(outcome, Skipped) and verb == "acknowledged" else verb


def _error_of(outcome: Outcome) -> BaseException | None:
    return outcome.error if isinstance(outcome, Failed | Undecodable) else None


def _reason(outcome: Outcome) -> str:
    error = _error_of(outcome)
    return one_line(error) if error is not None else getattr(outcome, "reason", "")


def main() -> int:
    """Run the consumer; return its exit code."""
    orders = Orders(**json.loads(sys.argv[1]))
    os.set_inheritable(orders.descriptor, False)  # noqa: FBT003 -- it takes no name
    from consumer_framework.runtime import reactor  # noqa: PLC0415 -- before all that imports it

    reactor.install()
    from consumer_framework.runtime import app  # noqa: PLC0415
    from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415

    log.hide_secrets()
    options = RunOptions(
        Path(orders.file),
        callback_file=orders.callback_file,
        instance=orders.instance,
        state_directory=Path(orders.state),
    )
    teller = Teller(lambda event: _write(orders.descriptor, events.line_of(event)))
    try:
        return app.run(options, teller)
    except (ConfigurationError, Fault) as error:
        failed = error
    # Not in the block above, whose error would be the context of the one that is shown.
    for line in str(failed).splitlines():
        sys.stderr.write(line.removeprefix(f"{orders.file}: ") + "\n")
    _show_import_error(options)
    return failed.exit_code


def _write(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def _show_import_error(options: RunOptions) -> None:
    """Show the traceback of a module that cannot be imported; the problem only sums it up."""
    from consumer_framework.runtime.assembly import loader  # noqa: PLC0415 -- see main

    cause = None
    try:
        loader.target_of(options, config.read(options.path or Path()).get("callback"))
    except ConfigurationError as error:
        cause = error.__cause__
    if cause is not None:
        sys.stderr.write(_authors_traceback(cause))


def _authors_traceback(error: BaseException) -> str:
    """Return the traceback of *error* without the frames that led to the author's code."""
    whole = frames = error.__traceback__
    while frames is not None and _is_before(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    try:
        return traceback_text(error.with_traceback(frames))
    finally:
        error.__traceback__ = whole


def _is_before(file: str) -> bool:
    return "importlib" in file or file.startswith(_OWN)


if __name__ == "__main__":
    sys.exit(main())
