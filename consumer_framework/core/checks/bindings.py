# SPDX-License-Identifier: GPL-2.0-or-later
"""Queues that get no message: their bindings match none, or there is none.

The broker takes such bindings without a word: RabbitMQ's topic exchange
(rabbitmq.com/tutorials/tutorial-five-python) compares a key word by word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.findings import info, warning
from consumer_framework.core.settings import toml_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from consumer_framework.core.findings import Finding
    from consumer_framework.core.settings import Binding, Queue

_WILD = ("*", "#")


def binding_findings(
    queues: Mapping[str, Queue], bindings: list[Binding], *, passive: bool
) -> Iterator[Finding]:
    """Say which bindings bring no message, and which queues have none.

    Args:
        queues: By their names in the file.
        bindings: All of the file.
        passive: ``passive_declares``: somebody else makes queues, and perhaps bindings.
    """
    for index, binding in enumerate(bindings):
        yield from _key_findings(f"bindings[{index}].routing_keys", binding)
    bound = {binding.queue for binding in bindings if binding.routing_keys}
    for name, queue in queues.items():
        if name not in bound:
            what = "no binding of this file brings messages to the queue"
            cure = f'add [[bindings]] with queue = "{name}", unless others bind it'
            is_passive = passive if queue.passive is None else queue.passive
            yield (info if is_passive else warning)(toml_path("queues", (name,)), what, cure)


def _key_findings(place: str, binding: Binding) -> Iterator[Finding]:
    if not binding.routing_keys:
        yield warning(place, "is empty: the binding is never made", 'write ["#"] for every topic')
    for key in binding.routing_keys:
        if odd := [word for word in key.split(".") if _is_half_wild(word)]:
            better = ".".join(_whole(word) for word in key.split("."))
            what = (
                f'"{key}" matches no ordinary topic: "*" (one word) and "#" (any number of words) '
                f'stand for whole words between dots, and "{odd[0]}" mixes one with other text'
            )
            yield warning(place, what, f'write "{better}", for one')
        elif key.strip() != key or " " in key:
            yield warning(place, f'"{key}" has a space in it, and topics have none', "remove it")


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
