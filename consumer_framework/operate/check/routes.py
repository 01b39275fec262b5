# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the routes of a consumer with the bindings that bring it messages, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.author.consumer import table_of
from consumer_framework.operate.bindings import feeds_of, hungry, route_needs, superfluous

from .findings import warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.operate.bindings import Feed
    from consumer_framework.runtime.assembly.loader import Target
    from consumer_framework.settings import Settings

    from .findings import Finding


def route_findings(settings: Settings, target: Target) -> Iterator[Finding]:
    """Warn of routes that get no message, and of bindings with messages that no route takes.

    Args:
        settings: The configuration.
        target: The author's object.
    """
    table = table_of(target.value, settings.topic_prefix)
    if table is None:
        return
    needs = [route_needs(route, table) for route in table.routes]
    for route in needs:
        for name in route.absent:
            what = f"the route {route.route} takes messages of {name}, and no installed package "
            what += "registers that class: no message has it"
            yield warning("callback", what, "install the package with its entry point")
    feeds = list(feeds_of(settings))
    for route in hungry(needs, feeds):
        keys = ", ".join(f'"{key}"' for key in route.keys)
        what = f"no binding brings messages to the route {route.route} ({keys})"
        yield warning(
            "bindings", what, "add what `fm-consumer bindings` prints, unless others bind the queue"
        )
    for feed, is_all in () if table.takes_rest else superfluous(needs, feeds):
        yield _superfluous(feed, is_all=is_all)


def _superfluous(feed: Feed, *, is_all: bool) -> Finding:
    path = f"bindings[{feed.binding}].routing_keys[{feed.index}]"
    if is_all:
        what = f'"{feed.key}" brings messages that no route takes: all of them are dropped'
        return warning(path, what, "remove it, or add a route")
    what = f'"{feed.key}" also brings messages that no route takes: they are dropped'
    cure = "narrow it to what `fm-consumer bindings` prints, or add a route, or a handle() for them"
    return warning(path, what, cure)
