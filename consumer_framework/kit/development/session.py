# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of ``fm-consumer dev``: one thread, which waits for the first of several things.

It waits for output and events of the consumer's process, for its end, for changed files, for the
keyboard, and for the time of the next message. Whatever ends the loop, the consumer, the broker and
the directory end with it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from consumer_framework.adapters import config
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.text import plural
from consumer_framework.kit.recorded import BadRecordError
from consumer_framework.settings.toml_writer import to_toml
from consumer_framework.testing.broker import Broker, BrokerError
from consumer_framework.testing.broker.place import Guard

from . import configuration, events, messages
from .changes import Changes
from .child import Orders
from .consumer import ConsumerProcess
from .private_broker import PrivateBroker, PrivateBrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Seconds that a consumer may take to stop before it is killed.
STOP = 10.0
# Seconds after which the author is told that the consumer stops.
_SILENT_STOP = 1.0
# Messages that may be under way; a faster rate waits.
_MOST_UNDER_WAY = 1000
# Seconds between two looks at the time.
_LOOK = 0.5
# The dispositions after which the consumer does not see a message again.
_FINAL = frozenset({"ack", "reject", "quarantine", "halt"})
_KEYS = "Enter: one message; a number: so many; r: restart; q or Ctrl-C: end"


class Screen(Protocol):
    """Shows the session to the author."""

    def note(self, text: str) -> None:
        """Show a line about the session."""

    def problem(self, text: str) -> None:
        """Show lines about something that the author has to mend."""

    def output(self, line: str) -> None:
        """Show a line that the consumer printed."""

    def settled(self, event: events.Settled, *, is_new: bool) -> None:
        """Show the fate of a message, with the traceback of a failure that *is_new*."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a session.

    Attributes:
        file: The configuration of the project.
        callback_file: ``FILE.py:OBJECT`` in place of the configured callback; "" for that.
        rate: Messages each second; 0 for none by itself.
        once: End after so many messages; 0 for no end.
        timeout: Seconds that these messages may take.
        recorded: A file of messages to send, in place of generated ones.
        pattern: Send only messages whose topic matches it.
        retry_delay: Seconds between two attempts; None for the configured delays.
        watch: Further files and directories whose changes restart the consumer.
        keyboard: A file descriptor with the author's lines; None for no keyboard.
    """

    file: Path
    callback_file: str = ""
    rate: float = 0.0
    once: int = 0
    timeout: float = 60.0
    recorded: Path | None = None
    pattern: str = "#"
    retry_delay: float | None = 1.0
    watch: tuple[Path, ...] = ()
    keyboard: int | None = None


class Session:
    """One session.

    Args:
        options: Its options.
        screen: Shows it.
        is_hurried: Tells if the author does not want to wait for the end of a handler.
        on_end: Called when the session ends, before it stops the consumer.

    Attributes:
        sent: The number of messages that were sent.
        ends: The number of them that had each disposition in the end.
    """

    def __init__(
        self,
        options: Options,
        screen: Screen,
        is_hurried: Callable[[], bool] = lambda: False,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._options = options
        self._screen = screen
        self._is_hurried = is_hurried
        self._on_end = on_end
        self._root = configuration.root_of(options.file)
        self._consumer: ConsumerProcess | None = None
        self._messages: Iterator[messages.Sendable] = iter(())
        self._supply: messages.Generated | None = None
        self._under_way: set[str] = set()
        self._seen_failures: set[str] = set()
        self._began = self._next = 0.0
        self._is_consuming = self._is_over = self._has_told_keys = False
        self.sent = 0
        self.ends: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """The number of messages that have no end yet."""
        return len(self._under_way)

    def run(self) -> bool:
        """Run until the author ends it, or the messages of ``once`` are done.

        Returns:
            True if all messages of ``once`` were acknowledged.

        Raises:
            ConfigurationError: A program or a package is missing, or a file cannot be used.
            PrivateBrokerError: The broker is gone.
        """
        if (missing := Broker.missing()) is not None:
            raise ConfigurationError(Problem("", "a private broker is needed", missing))
        self._look_at_files()
        with contextlib.ExitStack() as stack:
            self._enter(stack)
            self._start()
            self._send_first()
            while not self._is_over:
                self._turn()
            self._on_end()
        return self.ends["ack"] == self.sent == self._options.once

    # The things around the loop.

    def _look_at_files(self) -> None:
        """Find faults of files that nobody mends while the session runs."""
        if self._options.once:
            self._copied("amqp://localhost")
        if self._options.recorded is not None:
            self._recorded(self._options.recorded, [])

    @staticmethod
    def _recorded(file: Path, bindings: list[dict[str, Any]]) -> list[messages.Sendable]:
        try:
            return messages.recorded(file, bindings)
        except (OSError, BadRecordError) as error:
            raise ConfigurationError(Problem("--messages", str(error))) from error

    def _enter(self, stack: contextlib.ExitStack) -> None:
        options = self._options
        self._selector = stack.enter_context(selectors.DefaultSelector())
        if not options.once:
            more = [path.resolve() for path in (options.file, *options.watch)]
            changes = stack.enter_context(Changes(self._root, more))
            self._wait_for(changes.descriptor, lambda: self._changed(changes))
        # The copy may have passwords: mkdtemp lets nobody else read it.
        directory = Path(tempfile.mkdtemp(prefix="fm-dev-"))
        self._guard = Guard(directory)
        stack.callback(self._guard.close)
        self._copy = directory / f"{options.file.stem}.toml"
        self._state = directory / "state"
        self._url = self._start_broker(stack)
        self._broker = PrivateBroker(self._url)
        stack.callback(self._broker.close)
        stack.callback(self._stop)
        if options.keyboard is not None:
            self._wait_for(options.keyboard, self._read_keys)

    def _wait_for(self, descriptor: int, then: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, then)

    def _start_broker(self, stack: contextlib.ExitStack) -> str:
        began = time.monotonic()
        self._screen.note("starting a private RabbitMQ")
        try:
            broker = stack.enter_context(Broker())
        except BrokerError as error:
            what = f"the private broker does not start: {error}"
            raise ConfigurationError(Problem("", what)) from error
        self._screen.note(f"it runs after {time.monotonic() - began:.1f} s: {broker.url}")
        return broker.url

    # The consumer.

    def _start(self) -> None:
        """Start the consumer, unless its configuration cannot be used."""
        options = self._options
        try:
            self._load()
        except ConfigurationError as error:
            if options.once:
                raise
            self._screen.problem(f"{error}\nwaiting for a change")
            return
        orders = Orders(
            str(self._copy), options.file.stem[:28], str(self._state), options.callback_file, -1
        )
        self._seen_failures.clear()
        self._began = time.monotonic()
        self._consumer = ConsumerProcess(
            orders, self._root, self._selector, self._told, self._screen.output
        )
        self._guard.watch([self._consumer.process])

    def _load(self) -> None:
        """Make the private copy and its queues, and find the messages.

        Raises:
            ConfigurationError: The file cannot be used.
        """
        copy = self._copied(self._url)
        self._copy.write_text(to_toml(copy), encoding="utf-8")
        try:
            is_new = self._broker.declare(copy)
        except PrivateBrokerError as error:
            cure = "mend the tables [queues] and [[bindings]]"
            problem = Problem("", str(error), cure, str(self._options.file))
            raise ConfigurationError(problem) from error
        if is_new:
            self._screen.note("the queues have changed, and are made anew")
            self._under_way.clear()
        if is_new or not self.sent:
            self._find_messages(copy["bindings"])

    def _copied(self, url: str) -> dict[str, Any]:
        """Return the private copy, for the broker at *url*; messages are made by it from now on."""
        file = self._options.file
        document = config.read(file)
        try:
            copy = configuration.private_copy(document, url, self._options.retry_delay)
            config.load_values(copy, str(file))
        except ConfigurationError as error:
            raise ConfigurationError(*error.located, source=str(file)) from error
        return copy

    def _find_messages(self, bindings: list[dict[str, Any]]) -> None:
        options = self._options
        if options.recorded is not None:
            found = self._recorded(options.recorded, bindings)
            self._screen.note(f"{plural(len(found), 'message')} of {options.recorded}")
            self._messages = iter(found)
            return
        sources, lines = messages.described(bindings, options.pattern)
        for line in lines:
            self._screen.note(line)
        self._supply = messages.Generated(sources)
        self._messages = iter(self._supply)

    def _stop(self) -> None:
        """Stop the consumer, if it runs: with SIGTERM, and at last with SIGKILL."""
        consumer = self._consumer
        if consumer is None:
            return
        if consumer.exit_code is None:
            consumer.terminate()
        began, is_told = time.monotonic(), False
        while consumer.exit_code is None and not self._is_hurried():
            waited = time.monotonic() - began
            if waited > STOP:
                self._screen.problem(f"the consumer does not stop within {STOP:g} s, and is killed")
                break
            if waited > _SILENT_STOP and not is_told:
                is_told = True
                self._screen.note(f"waiting up to {STOP:g} s for the handler; Ctrl-C does not wait")
            for key, _ in self._selector.select(0.1):
                if consumer.owns(key.fd):
                    key.data()
        self._forget()

    def _forget(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._consumer, self._is_consuming = None, False
        self._guard.watch([])

    def _restart(self) -> None:
        self._stop()
        self._start()

    # The loop.

    def _turn(self) -> None:
        patience = min(_LOOK, max(0.0, self._next - time.monotonic())) if self._rates else _LOOK
        for key, _ in self._selector.select(patience):
            # A restart closes descriptors, and opens others with the same numbers.
            if self._selector.get_map().get(key.fd) == key:
                key.data()
        consumer = self._consumer
        if consumer is not None and (code := consumer.exit_code) is not None:
            self._forget()
            self._ended(code)
        if self._rates and time.monotonic() >= self._next:
            self._next = max(self._next + 1 / self._options.rate, time.monotonic() - 1)
            self._send(1)
        self._look_at_once()

    @property
    def _rates(self) -> bool:
        is_full = self.waiting >= _MOST_UNDER_WAY
        return bool(self._options.rate) and self._is_consuming and not is_full

    def _send_first(self) -> None:
        self._next = time.monotonic()
        self._give_up_at = time.monotonic() + self._options.timeout
        if self._options.once:
            self._send(self._options.once)

    def _look_at_once(self) -> None:
        if not self._options.once or self._is_over:
            return
        if not self._under_way:
            self._is_over = True
        elif time.monotonic() > self._give_up_at:
            self._screen.problem(
                f"{plural(self.waiting, 'message')} not done within {self._options.timeout:g} s"
            )
            self._is_over = True

    def _ended(self, code: int) -> None:
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
        if self._options.once:
            self._screen.problem(f"the consumer {how}")
            self._is_over = True
        else:
            self._screen.problem(f"the consumer {how}; waiting for a change")

    def _told(self, event: events.Event) -> None:
        match event:
            case events.Consuming():
                if not self._is_consuming:
                    took = time.monotonic() - self._began
                    self._screen.note(f"the consumer is ready after {took:.1f} s")
                    self._tell_keys()
                self._is_consuming = True
                self._next = max(self._next, time.monotonic())
            case events.Paused(text):
                self._screen.note(f"paused: {text}" if text else "goes on")
            case events.Settled():
                self._settled(event)

    def _tell_keys(self) -> None:
        if self._options.keyboard is not None and not self._has_told_keys:
            self._screen.note(_KEYS)
            self._has_told_keys = True

    def _settled(self, event: events.Settled) -> None:
        if event.disposition == "give-back":
            # The consumer stops; the message stays in its queue.
            return
        is_new = event.fingerprint not in self._seen_failures
        self._seen_failures.add(event.fingerprint)
        self._screen.settled(event, is_new=is_new)
        if event.disposition in _FINAL and not event.is_void and event.id in self._under_way:
            self._under_way.remove(event.id)
            self.ends[event.disposition] += 1

    # The author's part.

    def _changed(self, changes: Changes) -> None:
        try:
            files = changes.take()
        except OSError as error:
            self._screen.problem(f"changes of files are not seen any more: {error}; r restarts")
            self._selector.unregister(changes.descriptor)
            return
        names = sorted(os.path.relpath(path, self._root) for path in files)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 -- as many as fit
        self._screen.note(f"{', '.join(names[:3])}{more} changed; restarting")
        self._restart()

    def _read_keys(self) -> None:
        keyboard = self._options.keyboard
        assert keyboard is not None  # noqa: S101 -- it was registered
        try:
            data = os.read(keyboard, 4096)
        except OSError:
            # The terminal is gone.
            data = b""
        if not data:
            self._is_over = True
        for line in data.decode(errors="replace").splitlines():
            word = line.strip().lower()
            if not word:
                self._send(1)
            elif word.isdecimal():
                self._send(min(int(word), _MOST_UNDER_WAY))
            elif word in {"r", "restart"}:
                self._restart()
            elif word in {"q", "quit", "exit"}:
                self._is_over = True
            else:
                self._screen.note(_KEYS)

    def _send(self, count: int) -> None:
        for _ in range(count):
            found = next(self._messages, None)
            if self._supply is not None:
                for fault in self._supply.take_faults():
                    self._screen.problem(fault)
            if found is None:
                self._screen.note("there is no further message to send")
                self._messages = iter(())
                return
            self.sent += 1
            if self._consumer is None:
                self._screen.note(f"{found.topic} waits in its queue for the consumer")
            self._under_way.add(found.id)
            if not self._broker.publish(found):
                self._under_way.remove(found.id)
                self._screen.problem(f"no binding takes {found.topic} from {found.exchange}")
