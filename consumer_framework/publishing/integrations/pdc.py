# SPDX-License-Identifier: GPL-2.0-or-later
"""The messengers of the Product Definition Center (PDC): the same settings, and nothing lost.

::

    bus = messenger(settings.MESSAGE_BUS, outbox="sqlite:////var/lib/pdc/outbox.sqlite3")
    bus.send_messages([(".compose", {"action": "create"})])

``MESSAGE_BUS`` is PDC's dictionary, unchanged: :mod:`.message_bus` describes its keys. The code
around it is unchanged too: a middleware calls ``send_messages`` when the request has succeeded.

**Stored, then sent.** ``send_messages`` stores its messages in the outbox, in one transaction, and
returns. A relay sends them, for as long as that takes. So a broker that is away delays no request,
and a process that dies after the request loses none of its messages. The relay is one of

- a thread of this process, if the outbox is a URL or an :class:`.Outbox`. Of several processes one
  sends at a time. The thread goes with the process; messages that are left are sent by the next.
- a process of its own, which :func:`configuration` writes the settings of.

**Sent at once.** ``direct=True`` needs no outbox: ``send_messages`` returns when the broker has the
messages. A message that it does not get is lost, and is written to the log.

**Exceptions.** A request that has committed its changes must not fail because of its messages, as
it did in PDC. So a message that can never be sent, or that the database does not take, is written
to the log as a line that ``fm-consumer publish`` reads; the others of the list are stored. Inside a
transaction of the outbox's database it is the other way round: there the exception undoes all of
the request, with its messages.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime as dt
import importlib
import json
import logging
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol, cast

from fedora_messaging.exceptions import ValidationError
from fedora_messaging.message import Message

from consumer_framework.core.errors import ConfigurationError, ExitCode, Problem
from consumer_framework.core.secrets import redact
from consumer_framework.core.text import printable
from consumer_framework.publishing import messengers
from consumer_framework.publishing.collecting import Publisher
from consumer_framework.publishing.events import RelayLog
from consumer_framework.publishing.message import (
    MAX_BODY,
    NotSentError,
    OutboxError,
    Outgoing,
    PublishError,
    outgoing,
    schema_fault,
)
from consumer_framework.publishing.messengers import Reject, Retry, Scope, Sent
from consumer_framework.publishing.outbox import Outbox, database_of
from consumer_framework.publishing.policy import Policy
from consumer_framework.publishing.relay import Relay
from consumer_framework.settings import OutboxSettings

from .message_bus import MessageBus, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from consumer_framework.core.ports import Clock
    from consumer_framework.publishing.messengers import Endpoints, Feature, Messenger, Result

__all__ = ["Backend", "PdcMessenger", "configuration", "messenger"]

_log = logging.getLogger(__name__)
# The longest line of a lost message in the log: journald cuts lines of 48 KiB.
_LONGEST_LINE = 40_000
# Seconds that the end of the process waits for the relay's batch.
_PATIENCE = 5.0


def messenger(
    message_bus: Mapping[str, Any],
    outbox: Publisher | str | None = None,
    *,
    direct: bool = False,
    relay: bool | None = None,
    timeout: float = 30.0,
) -> PdcMessenger:
    """Return the messenger that ``MESSAGE_BUS`` describes.

    Args:
        message_bus: PDC's dictionary.
        outbox: The outbox that stores the messages, or the URL of its database. None for the file
            ``outbox.sqlite3`` in the state directory of the service (``$STATE_DIRECTORY``). In a
            Django project: ``consumer_framework.publishing.integrations.django.outbox.outbox()``.
        direct: Send at once, without an outbox.
        relay: Run a relay in a thread of this process. None: if the outbox is one of SQLAlchemy.
        timeout: Seconds to connect, and to wait for the broker's answer.

    Raises:
        ConfigurationError: A key is wrong, a package is missing, or there is no outbox.
    """
    # As fedmsg does, for the topic.
    module = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]  # noqa: SLF001
    bus = read(message_bus, module, timeout)
    made = messengers.make(bus.messenger, bus.endpoints, bus.options)
    if direct or bus.messenger in {"dummy", "capture"}:
        return PdcMessenger(bus, _Direct(bus, made))
    return PdcMessenger(bus, _Stored(bus, made, _outbox_of(outbox), relay=relay))


def _outbox_of(outbox: Publisher | str | None) -> Publisher:
    if isinstance(outbox, Publisher):
        return outbox
    if outbox is None:
        try:
            outbox = database_of(OutboxSettings())
        except ConfigurationError:
            cure = 'pass outbox="sqlite:////var/lib/NAME/outbox.sqlite3", or direct=True'
            what = "there is no place for its messages"
            raise ConfigurationError(Problem("MESSAGE_BUS", what, cure)) from None
    return Outbox(outbox)


class PdcMessenger:
    """Sends messages by topic, as the messengers of PDC did. Several threads may use it at once.

    Attributes:
        bus: The way to send.
    """

    def __init__(self, bus: MessageBus, way: _Way) -> None:
        self.bus = bus
        self._way = way
        self._listeners: list[list[tuple[str, Any]]] = []

    def send_message(self, topic: str, msg: dict[str, Any]) -> None:
        """Do the same as :meth:`send_messages` for one message."""
        self.send_messages([(topic, msg)])

    def send_messages(self, msgs: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Store, or send, messages in their order.

        Args:
            msgs: Pairs of topic and body. Dates become texts of ISO 8601.

        Raises:
            PublishError: Only inside a transaction of the outbox's database: a message can never
                be sent, or the database did not take it. The transaction must be rolled back.
            fedora_messaging.exceptions.ValidationError: Likewise, for a body that is no object.
        """
        may_raise = self._way.is_in_transaction
        prepared = []
        for topic, msg in list(msgs):
            try:
                prepared.append(self._prepared(topic, msg))
            except (PublishError, ValidationError) as error:
                if may_raise:
                    self._way.roll_back()
                    raise
                reason = schema_fault(error) if isinstance(error, ValidationError) else str(error)
                _tell_lost(str(topic), msg, reason)
                continue
            for heard in self._listeners:
                heard.append((topic, msg))
        try:
            self._way.put(prepared)
        except NotSentError as error:
            _log.warning("%s", error)
        except OutboxError as error:
            if may_raise:
                self._way.roll_back()
                raise
            for message in prepared:
                _tell_lost(message.topic, json.loads(message.body), str(error))

    @contextlib.contextmanager
    def listen(self) -> Iterator[list[tuple[str, Any]]]:
        """Record the messages of a block, as PDC's ``test`` messenger did; they are sent too."""
        heard: list[tuple[str, Any]] = []
        self._listeners.append(heard)
        try:
            yield heard
        finally:
            self._listeners.remove(heard)

    def close(self) -> None:
        """End the relay and the connection. Messages in the outbox stay there."""
        self._way.close()

    def _prepared(self, topic: str, msg: dict[str, Any]) -> Outgoing:
        if not isinstance(topic, str):
            raise PublishError(f"the topic is no text: {topic!r}")
        try:
            body = json.loads(json.dumps(msg, default=_plain))
        except (TypeError, ValueError, RecursionError) as error:
            raise PublishError(f"the body is no JSON: {error}") from error
        message = Message(topic=self.bus.address(topic), body=body)
        largest = self._way.max_body
        return outgoing(message, exchange=self.bus.exchange, now=time.time(), max_body=largest)


def _plain(value: Any) -> Any:
    """Return *value* as JSON has it, for the types that the libraries of PDC took."""
    if hasattr(value, "__json__"):
        return value.__json__()
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if type(value).__name__ in {"UUID", "Decimal", "__proxy__"}:
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} is no JSON")


def _tell_lost(topic: str, msg: Any, reason: str) -> None:
    line = json.dumps({"topic": topic, "body": msg}, default=repr)
    if len(line) > _LONGEST_LINE:
        line = f"{line[:_LONGEST_LINE]} [...]"
    text = "A message is lost: %s; fm-consumer publish takes it as this line: %s"
    _log.error(text, printable(redact(reason)), redact(line))


class _Way(Protocol):
    """The part of a messenger that takes the messages."""

    max_body: int

    @property
    def is_in_transaction(self) -> bool:
        """True if an exception undoes the caller's changes."""
        ...

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Take *messages*."""
        ...

    def roll_back(self) -> None:
        """Let the caller's transaction fail."""
        ...

    def close(self) -> None:
        """Release all connections."""
        ...


class _Direct:
    """Sends at once. A lock lets one thread after the other use the connection."""

    is_in_transaction = False
    max_body = MAX_BODY

    def __init__(self, bus: MessageBus, made: Messenger) -> None:
        self._bus = bus
        self._messenger = made
        self._lock = threading.Lock()
        _directs.add(self)

    def after_fork(self) -> None:
        """Use a connection of this process, and leave that of the parent alone."""
        self._lock = threading.Lock()
        _inherited.append(self._messenger)
        bus = self._bus
        self._messenger = messengers.make(bus.messenger, bus.endpoints, bus.options)

    def put(self, messages: Sequence[Outgoing]) -> None:
        with self._lock:
            results = self._messenger.send_many(messages) if messages else []
        for message, result in zip(messages, results, strict=True):
            if not isinstance(result, Sent):
                _tell_lost(message.topic, json.loads(message.body), result.reason)

    def roll_back(self) -> None:
        pass

    def close(self) -> None:
        with self._lock:
            self._messenger.close()


class _Stored:
    """Stores, and lets a relay send."""

    def __init__(
        self, bus: MessageBus, made: Messenger, outbox: Publisher, *, relay: bool | None
    ) -> None:
        self._outbox = outbox
        self._timeout = bus.endpoints.timeout
        self.max_body = outbox.settings.max_body
        self._policy = Policy.of(outbox.settings)
        self._relay: _RelayThread | None = None
        if relay and not isinstance(outbox, Outbox):
            cure = "run a relay of its own: see consumer_framework.publishing.integrations.pdc"
            what = "a relay in this process cannot read this outbox"
            raise ConfigurationError(Problem("relay", what, cure))
        if isinstance(outbox, Outbox) and relay is not False:
            self._relay = _RelayThread(outbox, made)
            self._relay.ensure()

    @property
    def is_in_transaction(self) -> bool:
        return bool(getattr(self._outbox, "is_in_transaction", False))

    def put(self, messages: Sequence[Outgoing]) -> None:
        choice = self._policy.on_failure_of
        if self._relay is not None:
            self._relay.ensure()
        entries = [(message, choice(message.topic).value) for message in messages]
        self._outbox.accept(entries, self._timeout)
        if self._relay is not None:
            self._relay.wake()

    def roll_back(self) -> None:
        # Django turns an exception of a middleware into a response, and would commit.
        if (roll_back := getattr(self._outbox, "roll_back", None)) is not None:
            roll_back()

    def close(self) -> None:
        if self._relay is not None:
            self._relay.stop()
        if isinstance(self._outbox, Outbox):
            self._outbox.close()


class _Clock:
    """The part of a clock that a relay uses."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


class _RelayThread:
    """A relay in a thread of this process, which a forked child starts anew."""

    def __init__(self, outbox: Outbox, made: Messenger) -> None:
        self._outbox = outbox
        self._messenger = made
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._relay: Relay | None = None
        self._is_over = False
        _threads.add(self)
        atexit.register(_stop, weakref.ref(self))

    def after_fork(self) -> None:
        """Forget the thread of the parent, with its locks."""
        self._lock, self._stop, self._thread = threading.Lock(), threading.Event(), None

    def ensure(self) -> None:
        """Start the thread if it does not run in this process."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._lock:
            if self._is_over or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._run, name="outbox-relay", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        if self._relay is not None:
            self._relay.wake()

    def stop(self) -> None:
        """End the thread after its batch."""
        self._is_over = True
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        store, settings = self._outbox.store, self._outbox.settings
        if store.engine.dialect.name == "sqlite":
            with contextlib.suppress(OutboxError):  # the relay tells it
                store.migrate()
        self._relay = Relay(
            store,
            self._messenger,
            Policy.of(settings),
            clock=cast("Clock", _Clock()),
            observer=RelayLog(),
            window=settings.window,
            lease=settings.lease,
            lossy=settings.lossy,
        )
        self._relay.run(self._stop)


_threads: weakref.WeakSet[_RelayThread] = weakref.WeakSet()
_directs: weakref.WeakSet[_Direct] = weakref.WeakSet()
# Messengers of the parent: closing them here could end its connections.
_inherited: list[Messenger] = []


def _stop(thread: weakref.ref[_RelayThread]) -> None:
    if (found := thread()) is not None:
        found.stop()


def _forked() -> None:
    for thread in list(_threads):
        thread.after_fork()
    for direct in list(_directs):
        direct.after_fork()


os.register_at_fork(after_in_child=_forked)


class Backend:
    """The messenger ``pdc-backend``: a class as PDC has them, with ``send_message(topic, msg)``.

    An exception of the class is a failure of that message, which is sent again later.

    Args:
        endpoints: They are not used.
        backend: The dotted path of the class, which is called without arguments.

    Raises:
        ConfigurationError: It cannot be imported or made.
    """

    features: frozenset[Feature] = frozenset()

    def __init__(self, endpoints: Endpoints, *, backend: str) -> None:
        self.endpoints = endpoints
        module, _, name = backend.rpartition(".")
        try:
            self._backend = getattr(importlib.import_module(module), name)()
        except Exception as error:
            what = f"{backend} cannot be made: {type(error).__name__}: {error}"
            cure = 'write it as "package.module.Class"'
            raise ConfigurationError(Problem("MESSAGE_BUS.BACKEND", what, cure)) from error

    def open(self) -> None:
        """Do nothing: the class connects by itself."""

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Send the messages of *batch* one by one."""
        return [self._send(message) for message in batch]

    def close(self) -> None:
        """Do nothing."""

    def _send(self, message: Outgoing) -> Result:
        try:
            self._backend.send_message(message.topic, json.loads(message.body))
        except ValueError as error:
            return Reject(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 -- it may raise anything
            return Retry(f"{type(error).__name__}: {error}", Scope.MESSAGE)
        return Sent()


def configuration(message_bus: Mapping[str, Any], database: str, module: str = "pdc") -> str:
    """Return the configuration file of a relay that sends as ``MESSAGE_BUS`` says, as TOML.

    Args:
        message_bus: PDC's dictionary.
        database: The URL of the outbox's database.
        module: The name of the application, for the topics of fedmsg.

    Raises:
        ConfigurationError: A key is wrong.
    """
    bus = read(message_bus, module)
    files = {name: getattr(bus.endpoints, name) for name in ("ca_cert", "certfile", "keyfile")}
    own = {
        "database": database,
        "messenger": bus.messenger,
        "endpoints": list(bus.endpoints.urls),
        "options": dict(bus.options),
    }
    tables = {"tls": files, "consumer_config.framework.outbox": own}
    parts = []
    for name, values in tables.items():
        lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value]
        parts += [f"[{name}]", *lines, ""] if lines else []
    return "\n".join(parts)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = [f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    if isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(int(value))  # a constant of ssl is one too
    if isinstance(value, float):
        return repr(value)
    what = f"{value!r} cannot be written to a file"
    raise ConfigurationError(Problem("MESSAGE_BUS.OPTIONS", what, "use texts and numbers"))


def _main(arguments: Sequence[str] | None = None) -> int:
    """Write the configuration of a relay for a module with ``MESSAGE_BUS``."""
    parser = argparse.ArgumentParser(
        prog="python -m consumer_framework.publishing.integrations.pdc",
        description="Write the configuration file of a relay that sends as MESSAGE_BUS says.",
        epilog="example: python -m consumer_framework.publishing.integrations.pdc pdc.settings "
        "postgresql:///pdc > /etc/fedora-messaging/pdc.toml",
    )
    parser.add_argument("module", help="the module with MESSAGE_BUS, such as pdc.settings")
    parser.add_argument("database", help="the URL of the database with the outbox")
    given = parser.parse_args(arguments)
    sys.path.insert(0, "")
    try:
        bus = importlib.import_module(given.module).MESSAGE_BUS
    except Exception as error:  # noqa: BLE001 -- the module is the user's
        sys.stderr.write(f"error: {given.module}: {type(error).__name__}: {error}\n")
        return ExitCode.CONFIGURATION
    try:
        text = configuration(bus, given.database, given.module.partition(".")[0])
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return ExitCode.CONFIGURATION
    sys.stdout.write(text)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(_main())
