# SPDX-License-Identifier: GPL-2.0-or-later
"""The options and steps that the commands share which watch a broker: tail and record."""

from __future__ import annotations

import json
import logging
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from .options import complete_instance, configuration_file, may_exist, no_such_instance

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumer_framework.settings import Binding, Settings

# Keys that a sentence names.
_NAMED = 5

_OPTIONS = (
    click.option("--exchange", default="", help="Default: that of the bindings, or amq.topic."),
    click.option(
        "--conf",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Connect as this configuration says. Default: $FEDORA_MESSAGING_CONF, or "
        "/etc/fedora-messaging/config.toml, or the broker of this machine.",
    ),
    click.option(
        "--instance",
        metavar="NAME",
        shell_complete=complete_instance,
        help="Connect as /etc/fedora-messaging/NAME.toml says.",
    ),
    click.option(
        "--url", metavar="URL", help="Connect to this broker: amqp://USER:PASSWORD@HOST/VHOST."
    ),
    click.option(
        "--fedora",
        is_flag=True,
        help="Connect to Fedora's public broker, with the public certificates of fedora-messaging. "
        "With --url: to that broker with these certificates.",
    ),
)


def source(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the options of :class:`Source`, without ``--topic``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Source:
    """The broker and the topics that a command line names."""

    topics: tuple[str, ...]
    exchange: str
    conf: Path | None
    instance: str | None
    url: str | None
    fedora: bool

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> Self:
        """Take the options of :func:`source`, and ``topics``, out of *given*.

        Raises:
            click.UsageError: They do not go together.
        """
        made = cls(**{name: given.pop(name) for name in cls.__dataclass_fields__})
        if (made.conf or made.instance) and (made.url or made.fedora):
            raise click.UsageError("give one of --conf, --instance, --url and --fedora")
        return made

    def settings(self, app: str) -> Settings:
        """Load the configuration of the broker and the bindings, and give it to fedora-messaging.

        Args:
            app: The name of the command, which the broker's administrators see.

        Raises:
            ConfigurationError: It cannot be used.
        """
        from consumer_framework.adapters import config, log  # noqa: PLC0415
        from consumer_framework.adapters.codec import load_schemas  # noqa: PLC0415
        from consumer_framework.adapters.systemd.notify import is_journal  # noqa: PLC0415
        from consumer_framework.operate.watching import FEDORA_URL, fedora_values  # noqa: PLC0415
        from consumer_framework.runtime.assembly.access import from_outside  # noqa: PLC0415
        from consumer_framework.settings import Overrides  # noqa: PLC0415

        log.set_up(None, is_journal, level=logging.ERROR)
        client = {"app": app}
        overrides = Overrides("", "", self.exchange, self.topics)
        load_schemas()
        if self.fedora:
            values = {**fedora_values(self.url or FEDORA_URL), "client_properties": client}
            return config.load_values(values, "--fedora", overrides)
        if self.url:
            values = {"amqp_url": self.url, "client_properties": client}
            return config.load_values(values, "--url", overrides)
        path = configuration_file(self.instance, self.conf)
        if self.instance and path is not None and not may_exist(path):
            raise no_such_instance(self.instance, path)
        instance = path.stem if path else ""
        return config.load(path, overrides, from_outside(path, instance, lenient=False))


class Stopped(BaseException):
    """Told to stop, by a signal."""


class Signals:
    """The handler of the signals that end the command: it raises :class:`Stopped`."""

    def __init__(self) -> None:
        self._is_held = self._has_come = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until the block has ended without an error."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._has_come:
            raise Stopped

    def __call__(self, *_: object) -> None:
        """Take a signal."""
        # A second one must not disturb the goodbye.
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        self._has_come = True
        if not self._is_held:
            raise Stopped


_NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[Signals]:
    """Raise :class:`Stopped` for the signals that end the command; yield their handler."""
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    signals = Signals()
    try:
        for number in _NUMBERS:
            signal.signal(number, signals)
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def distinct(bindings: Sequence[Binding]) -> list[Binding]:
    """Return the bindings, each one once: two queues of a file may have the same."""
    found: dict[str, Binding] = {}
    for binding in bindings:
        key = json.dumps([binding.exchange, binding.routing_keys, binding.arguments], default=repr)
        found.setdefault(key, binding)
    return list(found.values())


def told(bindings: Sequence[Binding]) -> str:
    """Name the keys and the exchanges of *bindings*, for a sentence."""
    keys = list(dict.fromkeys(key for binding in bindings for key in binding.routing_keys))
    shown = ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} more" * (len(keys) > _NAMED))
    exchanges = ", ".join(dict.fromkeys(binding.exchange for binding in bindings))
    return f"{shown} of {exchanges}"
