# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives deliveries to the routes of a consumer.

:mod:`.author.routing` has the routes of a class, and :mod:`.core.routed` runs them. Here is the
part between: the routes of a delivery, by its topic and by the class that its headers name.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from consumer_framework.adapters import codec
from consumer_framework.core.delivery import RAW_PROPERTIES, Failed, Undecodable, readable
from consumer_framework.core.errors import Quarantine
from consumer_framework.core.routed import RoutedRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.author.routing import RouteTable
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.ports import Chance, HandlerRunner
    from consumer_framework.core.routed import Router
    from consumer_framework.core.settler import Settler
    from consumer_framework.runtime.assembly.plan import Plan


def router_of(table: RouteTable) -> Router:
    """Return a function that finds the names of a delivery's routes in *table*."""
    find = table.find
    if not table.needs_class:
        return lambda delivery: find(delivery.routing_key, None)

    def route(delivery: Delivery) -> tuple[str, ...] | Outcome:
        headers = delivery.properties.headers or {}
        try:
            kind = codec.class_of(headers)
        except TypeError as error:
            return Undecodable(error)
        names = find(delivery.routing_key, kind)
        if names:
            return names
        if RAW_PROPERTIES in headers:
            return Undecodable(codec.UndecodableError("its properties cannot be decoded"))
        if codec.names_unknown_class(headers):
            return Failed(Quarantine(_unknown(headers["fedora_messaging_schema"])))
        return ()

    return route


def _unknown(name: str | bytes) -> str:
    return (
        f"no route takes its topic, and its message class {readable(name)!r} is not installed, so "
        "no route by class can be chosen: install the package, and replay the message"
    )


def routed(
    runner: HandlerRunner, plan: Plan, settler: Settler, chance: Chance, slots: Callable[[], int]
) -> HandlerRunner:
    """Return *runner* for a consumer without routes, else one that runs the routes with it.

    Args:
        runner: Runs the handler.
        plan: Has the routes.
        settler: Settles the deliveries.
        chance: Spreads delays.
        slots: Returns the number of slots.
    """
    if plan.routes is None:
        return runner
    return RoutedRunner(
        runner,
        router=router_of(plan.routes),
        policy=plan.policy,
        settler=settler,
        chance=chance,
        record=lambda *step: asyncio.wrap_future(settler.store.record_step(*step)),
        is_serial=lambda: slots() == 1,
    )


def apply(handler: HandlerRunner | None, plan: Plan) -> None:
    """Let *handler* run the routes of *plan* from now on, as a reload wants it."""
    if isinstance(handler, RoutedRunner) and plan.routes is not None:
        handler.router, handler.policy = router_of(plan.routes), plan.policy


def most_of(handler: HandlerRunner | None) -> int:
    """Return the largest number of routes that *handler* ran with one message; 1 for no routes."""
    return handler.most_routes if isinstance(handler, RoutedRunner) else 1
