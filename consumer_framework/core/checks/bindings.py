# SPDX-License-Identifier: GPL-2.0-or-later
"""Queues that get no message: their bindings match none, or there is none.

The broker takes such bindings without a word: RabbitMQ's topic exchange
(rabbitmq.com/tutorials/tutorial-five-python) compares a key word by word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.errors import ExitCode, Problem
from consumer_framework.core.findings import error, info, warning
from consumer_framework.core.settings import toml_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.findings import Finding
    from consumer_framework.core.settings import Binding, Settings

_WILD = ("*", "#")
# Exchanges that every broker has (AMQP 0-9-1, section 3.1.3); others are of type topic mostly.
_KINDS = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
}


def binding_findings(settings: Settings) -> Iterator[Finding]:
    """Say which bindings bring no message, and which queues have none."""
    for index, binding in enumerate(settings.bindings):
        place = f"bindings[{index}]"
        kind = _KINDS.get(binding.exchange, "topic")
        kind = settings.exchanges.get(binding.exchange, {}).get("type", kind)
        if not binding.exchange:
            what = "is the default exchange, and the broker lets nobody bind to it"
            cure = 'name another one, such as "amq.topic"'
            yield error(Problem(f"{place}.exchange", what, cure), ExitCode.BAD_DECLARATION)
        else:
            yield from _key_findings(f"{place}.routing_keys", binding, kind)
    bound = {binding.queue for binding in settings.bindings if binding.routing_keys}
    for name, queue in settings.queues.items():
        if name not in bound:
            what = "no binding of this file brings messages to the queue"
            cure = f'add [[bindings]] with queue = "{name}", unless others bind it'
            is_passive = settings.passive_declares if queue.passive is None else queue.passive
            yield (info if is_passive else warning)(toml_path("queues", (name,)), what, cure)


def _key_findings(place: str, binding: Binding, kind: str) -> Iterator[Finding]:
    if not binding.routing_keys:
        yield warning(place, "is empty: the binding is never made", 'write ["#"] for every topic')
    look = {"topic": _topic_problem, "direct": _direct_problem}.get(kind)
    for key in binding.routing_keys if look else ():
        assert look is not None  # noqa: S101 -- the line above
        if found := look(key):
            yield warning(place, f'"{key}" {found[0]}', found[1])


def _topic_problem(key: str) -> tuple[str, str] | None:
    if odd := [word for word in key.split(".") if _is_half_wild(word)]:
        better = ".".join(_whole(word) for word in key.split("."))
        what = (
            'matches no ordinary topic: "*" (one word) and "#" (any number of words) stand for '
            f'whole words between dots, and "{odd[0]}" mixes one with other text'
        )
        return what, f'write "{better}", for one'
    return ("has a space in it, and topics have none", "remove it") if " " in key else None


def _direct_problem(key: str) -> tuple[str, str] | None:
    if any(sign in key for sign in _WILD):
        what = 'matches no ordinary topic: for a direct exchange, "*" and "#" stand for themselves'
        return what, "bind to a topic exchange, or write each topic"
    return None


def _is_half_wild(word: str) -> bool:
    return word not in _WILD and any(sign in word for sign in _WILD)


def _whole(word: str) -> str:
    """What was meant, perhaps: a word, and any others after it."""
    if not _is_half_wild(word):
        return word
    text = word.strip("*#")
    if not text or any(sign in text for sign in _WILD):
        return "#"
    return f"{text}.#" if word.startswith(text) else f"#.{text}"
