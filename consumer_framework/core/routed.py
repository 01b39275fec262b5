# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the routes of a consumer, and keeps apart those that have the same message.

::

    Pipeline ──▶ RoutedRunner ──▶ one route:       one run, as in a consumer without routes
                      │
                      └─────────▶ several routes:  run ─▶ decide ─▶ publish ─▶ record, for each
                                                   └──▶ Routed, of which decide() makes one decision

Each route has its own outcome, its own attempts and its own time for the next one. They run one
after the other. A route that is done never runs again with the message: its state is part of the
history (:class:`.RouteState`), and before another route begins, or the message has to wait, the
store records it as the step ``route:NAME``. The crash points between two routes:

==========================================  ====================================================
the process dies                            then
==========================================  ====================================================
before a route has ended                    the redelivery runs it, and those after it
after a route, while its messages are       the redelivery runs it again; its messages are stored
published, or its step is recorded          once, by the source key of the route
after its step is recorded                  the redelivery runs the routes after it
after the last route, before the ack        the redelivery runs the last route again
==========================================  ====================================================

A route that has failed for good keeps the others from nothing. Once they are done, the message is
quarantined, and a replay runs the failed routes alone.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from .attempt import RouteState
from .delivery import Failed, Routed, RouteResult, Undecodable, Unrouted, Withdrawn
from .disposition import Halt
from .errors import StoreError
from .memory import may_come_again
from .ports import HandlerRunner
from .recovery import Decision, Situation, decide, result_of, state_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from typing import TypeAlias

    from .delivery import Delivery, Outcome
    from .ports import Chance, Clock, Future, RecordedStep
    from .recovery import Policy
    from .settler import Settler

    # Returns the names of a delivery's routes, in their order; an outcome if it must not run.
    Router: TypeAlias = Callable[[Delivery], "tuple[str, ...] | Outcome"]
    # Records a step: the delivery, its name, its result.
    Record: TypeAlias = Callable[[Delivery, str, str], Awaitable[None]]

_log = logging.getLogger(__name__)

# Before the name of a route in that of its step; no author's step has a name like it.
STEP = "route:"


class RoutedRunner(HandlerRunner):
    """A :class:`.HandlerRunner` that runs the routes of each delivery.

    Args:
        runner: Runs one route, which the delivery names; the consumer's ``handle`` for none.
        router: Finds the routes of a delivery.
        policy: Decides about each route.
        settler: Has the store, the outbox and the hold slots.
        chance: Spreads delays.
        record: Records that a route is done.
        is_serial: Tells whether messages are handled one after the other, in their order.

    Attributes:
        router: See above; a reload sets another one.
        policy: Likewise.
        most_routes: The largest number of routes that a message has had.
    """

    def __init__(  # noqa: PLR0913 -- each is a port
        self,
        runner: HandlerRunner,
        *,
        router: Router,
        policy: Policy,
        settler: Settler,
        chance: Chance,
        record: Record,
        is_serial: Callable[[], bool] = lambda: False,
    ) -> None:
        self._runner = runner
        self.router = router
        self.policy = policy
        self._settler = settler
        self._chance = chance
        self._record = record
        self._turns = Turns(settler.clock, is_serial)
        self.most_routes = 1

    @property
    def is_quick(self) -> bool:
        """As :attr:`.HandlerRunner.is_quick`."""
        return self._runner.is_quick

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the routes of *delivery*; one outcome stands for all of them.

        Returns:
            The outcome of the only route; :class:`.Routed` of several ones; :class:`.Unrouted` for
            a message that nothing takes.
        """
        routes = self.router(delivery)
        if not isinstance(routes, tuple):
            return routes
        if not routes:
            return Unrouted()
        if len(routes) > 1 or delivery.history.routes:
            return await self._run_each(delivery, routes)
        if self._turns.is_taken and not await self._turns.pass_by(delivery):
            return Withdrawn()
        route = routes[0]
        if not route:
            return await self._runner.run(delivery)
        return _named(await self._runner.run(delivery.in_route(route)), route)

    def stop(self) -> None:
        """As :meth:`.HandlerRunner.stop`."""
        self._runner.stop()

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        """As :meth:`.HandlerRunner.withdraw`."""
        return self._turns.withdraw(which) + self._runner.withdraw(which)

    # Several routes.

    async def _run_each(self, delivery: Delivery, routes: tuple[str, ...]) -> Outcome:
        if not await self._turns.take(delivery):
            return Withdrawn()
        self.most_routes = max(self.most_routes, len(routes))
        try:
            return await self._run_in_turn(delivery, routes)
        finally:
            self._turns.leave()

    async def _run_in_turn(self, delivery: Delivery, routes: tuple[str, ...]) -> Outcome:
        states = await self._states_of(delivery)
        due = due_routes(states.values(), routes, self._settler.clock.time())
        results: list[RouteResult] = []
        is_over = False
        for route in routes:
            state = states.get(route)
            if state is not None and not due(state):
                results.append(result_of(state, delivery.history))
                continue
            result = (
                self._withdrawn(delivery, route)
                if is_over
                else await self._run_one(delivery.in_route(route))
            )
            if isinstance(result.outcome, Undecodable):
                # It is so for every route.
                return result.outcome
            results.append(result)
            is_over = is_over or isinstance(result.outcome, Withdrawn)
            is_over = is_over or isinstance(result.decision.disposition, Halt)
            await self._note(delivery, result, is_last=route == routes[-1], results=results)
        if all(isinstance(result.outcome, Withdrawn) for result in results):
            return Withdrawn()
        return Routed(tuple(results))

    async def _run_one(self, delivery: Delivery) -> RouteResult:
        """Run one route, decide about it, and store the messages that it published."""
        outcome = _named(await self._runner.run(delivery), delivery.route)
        result = RouteResult(delivery.route, self._decide(delivery, outcome), outcome)
        state = state_of(result)
        if state is None or not state.is_done or outcome.published is None:
            return result
        if await self._settler.publish(outcome.published):
            return result
        # The database takes nothing, and nobody waits for it any more: the route runs again.
        return self._withdrawn(delivery, delivery.route)

    def _decide(self, delivery: Delivery, outcome: Outcome) -> Decision:
        settler = self._settler
        now, waited = settler.clock.time(), settler.clock.monotonic() - delivery.arrived_at
        may_hold, keeps = settler.holds.has_room, settler.store.keeps
        situation = Situation(now, self._chance(), may_hold, waited, keeps)
        return decide(delivery, outcome, self.policy, situation)

    def _withdrawn(self, delivery: Delivery, route: str) -> RouteResult:
        outcome = Withdrawn()
        return RouteResult(route, self._decide(delivery, outcome), outcome)

    # The states of routes, in the store.

    async def _states_of(self, delivery: Delivery) -> dict[str, RouteState]:
        """Return the states that are known of the routes: those of the history, and of the store.

        Of a message that comes for the first time, the store knows nothing: steps that it has are
        those of an equal message.
        """
        states = {state.route: state for state in delivery.history.routes}
        steps: Mapping[str, RecordedStep] = {}
        try:
            steps = self._settler.store.steps_of(delivery)
        except StoreError as error:
            # At the worst a route runs a second time.
            _log.warning("the routes that are done cannot be read: %s", error)
        for name, step in steps.items():
            if name.startswith(STEP):
                if not step.is_durable:
                    await self._try_to_record(delivery, name, step.result)
                if may_come_again(delivery):
                    state = RouteState(name.removeprefix(STEP), *json.loads(step.result))
                    states[state.route] = state
        return states

    async def _note(
        self, delivery: Delivery, result: RouteResult, *, is_last: bool, results: list[RouteResult]
    ) -> None:
        """Record that a route is done, unless the whole message is."""
        state = state_of(result)
        states = map(state_of, results)
        if is_last and all(each is not None and each.is_done for each in states):
            return
        if state is not None and state.is_done:
            await self._try_to_record(delivery, STEP + state.route, json.dumps(state[1:]))

    async def _try_to_record(self, delivery: Delivery, name: str, result: str) -> None:
        try:
            await self._record(delivery, name, result)
        except StoreError as error:
            # This process knows it all the same; after a crash the route runs again.
            route = name.removeprefix(STEP)
            _log.warning("route %s is done, and cannot be recorded: %s", route, error)


def _named(outcome: Outcome, route: str) -> Outcome:
    return replace(outcome, route=route) if isinstance(outcome, Failed) else outcome


def due_routes(
    states: Collection[RouteState], routes: tuple[str, ...], now: float
) -> Callable[[RouteState], bool]:
    """Return a function that tells whether a route with a state runs now.

    Unless a route without a state runs, at least the one that is due first does: the message runs,
    whatever the clock says.
    """
    known = {state.route for state in states}
    waiting = [s.until for s in states if s.ending == "later" and s.route in routes]
    is_any_new = not known.issuperset(routes)
    until = now if is_any_new else max(now, min(waiting, default=now))
    return lambda state: state.ending == "later" and state.until <= until


class Turns:
    """Keeps the order of messages while one of them goes through several routes.

    Where messages are handled one after the other, such a message frees its slot between two
    routes, and those behind it must not take the slot.

    Args:
        clock: Makes futures.
        is_serial: Tells whether there is an order to keep.
    """

    def __init__(self, clock: Clock, is_serial: Callable[[], bool]) -> None:
        self._clock = clock
        self._is_serial = is_serial
        self.is_taken = False
        # The messages that wait, in their order.
        self._waiting: dict[Future[bool], Delivery] = {}
        self._called: Future[bool] | None = None

    async def take(self, delivery: Delivery) -> bool:
        """Wait until no other message has the turn, and take it.

        Returns:
            False if *delivery* was withdrawn meanwhile: then it has no turn.
        """
        if not self.is_taken:
            self.is_taken = self._is_serial()
            return True
        waiter: Future[bool] = self._clock.create_future()
        self._waiting[waiter] = delivery
        try:
            return await waiter
        except BaseException:
            self._waiting.pop(waiter, None)
            if self._called is waiter:
                # It was called in the same moment.
                self._next()
            raise

    async def pass_by(self, delivery: Delivery) -> bool:
        """Wait for the turn, and let the next one follow as soon as the caller waits again.

        Returns:
            As :meth:`take`.
        """
        if not await self.take(delivery):
            return False
        self.leave()
        return True

    def leave(self) -> None:
        """Give the turn to the next message."""
        if self.is_taken:
            self._next()

    def withdraw(self, which: Callable[[Delivery], bool]) -> int:
        """Take the messages for which *which* is true out of the line; return their number."""
        gone = [waiter for waiter, delivery in self._waiting.items() if which(delivery)]
        for waiter in gone:
            del self._waiting[waiter]
            waiter.set_result(False)
        return len(gone)

    def _next(self) -> None:
        while self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():
                self._called = waiter
                waiter.set_result(True)
                return
        self.is_taken = False
